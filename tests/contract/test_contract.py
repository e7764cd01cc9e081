"""The contract: stubs for protobuf 6 and 7, a self-contained image, rules that bite."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import protovalidate
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from bxmesh.agent.v1 import message_pb2, state_pb2
from bxmesh.contract import descriptor_set
from bxmesh.registry.v1 import agent_pb2
from bxmesh.security.v1 import credential_pb2

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "generated"
STUBS = sorted(GENERATED.rglob("*_pb2.py"))
SERVICES = {
    "bxmesh.agent.v1.AgentService",
    "bxmesh.agent.v1.ChainService",
    "bxmesh.agent.v1.ConversationService",
    "bxmesh.agent.v1.FunctionService",
    "bxmesh.geometry.v1.GeometryService",
    "bxmesh.health.v1.HealthService",
    "bxmesh.registry.v1.RegistryService",
    "bxmesh.security.v1.SecurityService",
}
MUTATIONS = (
    "Create|Update|Set|Delete|Register|Deregister|Send|Broadcast|Assign|Report|Cancel|Upload|Rotate"
    "|Revoke|Grant|Apply|Purge|Replay|Start|Execute"
)


def image() -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(descriptor_set())


def pool() -> descriptor_pool.DescriptorPool:
    filled = descriptor_pool.DescriptorPool()
    for file in image().file:
        filled.Add(file)
    return filled


def methods() -> Iterator[MethodDescriptor]:
    known = pool()
    for service in sorted(SERVICES):
        yield from known.FindServiceByName(service).methods


def violated(message: Message) -> set[str]:
    """Name the fields that the rules of the contract refuse."""
    fields: list[Any] = [found.proto.field for found in protovalidate.collect_violations(message)]
    return {".".join(element.field_name for element in field.elements) for field in fields}


@pytest.mark.parametrize("path", STUBS, ids=lambda path: path.stem)
def test_stub_is_for_protobuf_6(path: Path) -> None:
    call = re.search(r"ValidateProtobufRuntimeVersion\(\s*\S+,\s*(\d+),", path.read_text())
    assert call is not None
    assert int(call[1]) <= 6


@pytest.mark.parametrize("path", sorted(GENERATED.rglob("*_pb2*.py")), ids=lambda path: path.stem)
def test_stub_imports(path: Path) -> None:
    name = ".".join(path.relative_to(GENERATED).with_suffix("").parts)
    assert importlib.import_module(name).__name__ == name


def test_image_is_self_contained() -> None:
    seen: set[str] = set()
    for file in image().file:
        assert set(file.dependency) <= seen, file.name
        seen.add(file.name)
    assert {"buf/validate/validate.proto", "google/rpc/status.proto"} <= seen


def test_image_has_every_service() -> None:
    found = {f"{file.package}.{service.name}" for file in image().file for service in file.service}
    assert found == SERVICES


def test_mutations_are_idempotent() -> None:
    mutations = [method for method in methods() if re.match(f"({MUTATIONS})[A-Z]", method.name)]
    assert len(mutations) > 40
    missing = [
        method.full_name
        for method in mutations
        if "request_id" not in method.input_type.fields_by_name
    ]
    assert missing == []


def test_lists_have_pages() -> None:
    for method in methods():
        if method.name.startswith("List") and method.name not in {
            "ListTokenKeys",
            "ListMessageKeys",
        }:
            assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name), method.name
            assert "next_page_token" in method.output_type.fields_by_name, method.name


def test_watches_resume() -> None:
    watches = [method for method in methods() if method.name.startswith("Watch")]
    assert len(watches) >= 5
    for method in watches:
        assert "after_revision" in method.input_type.fields_by_name, method.full_name


def request_fields() -> Iterator[FieldDescriptor]:
    """Walk the fields that a caller can set, through messages of the contract."""
    waiting: list[Descriptor] = [method.input_type for method in methods()]
    seen: set[str] = set()
    while waiting:
        message = waiting.pop()
        if message.full_name in seen or not message.full_name.startswith("bxmesh."):
            continue
        seen.add(message.full_name)
        yield from message.fields
        waiting += [
            field.message_type
            for field in message.fields
            if field.message_type and not field.message_type.GetOptions().map_entry
        ]


def test_what_grows_in_requests_is_bounded() -> None:
    known = pool()
    rules: Any = known.FindExtensionByName("buf.validate.field")
    options = message_factory.GetMessageClass(
        known.FindMessageTypeByName("google.protobuf.FieldOptions")
    )
    grows = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    unbounded = {
        field.full_name
        for field in request_fields()
        if (field.is_repeated or field.type in grows)
        and not options.FromString(field.GetOptions().SerializeToString()).HasExtension(rules)
    }
    assert not unbounded


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_rules_of_every_request_compile(name: str) -> None:
    package, _, service = name.rpartition(".")
    stem = re.sub(r"(?<!^)(?=[A-Z])", "_", service).lower()
    importlib.import_module(f"{package}.{stem}_pb2")
    for method in descriptor_pool.Default().FindServiceByName(name).methods:
        request = message_factory.GetMessageClass(method.input_type)()
        assert isinstance(violated(request), set)


def register(**changes: object) -> agent_pb2.RegisterAgentRequest:
    fields: dict[str, Any] = {"agent_id": "worker-1", "agent_type": "geometry.worker"} | changes
    return agent_pb2.RegisterAgentRequest(**fields)


def test_registration_is_accepted() -> None:
    capability = agent_pb2.Capability(name="geometry.gradients")
    assert violated(register(capabilities=[capability], lease_ttl_seconds=10)) == set()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"agent_id": ""}, "agent_id"),
        ({"agent_id": "-worker"}, "agent_id"),
        ({"agent_id": "w" * 129}, "agent_id"),
        ({"agent_id": "worker\n"}, "agent_id"),
        ({"request_id": "r" * 129}, "request_id"),
        ({"capabilities": [agent_pb2.Capability(name="Geometry")]}, "capabilities.name"),
        ({"capabilities": [agent_pb2.Capability(name="a..b")]}, "capabilities.name"),
        ({"metadata": {"host": "h" * 1025}}, "metadata"),
        ({"max_concurrent_tasks": -1}, "max_concurrent_tasks"),
        ({"lease_ttl_seconds": 3601}, "lease_ttl_seconds"),
        ({"status": 17}, "status"),
    ],
)
def test_registration_is_refused(changes: dict[str, object], field: str) -> None:
    assert violated(register(**changes)) == {field}


def test_heartbeat_load_is_a_fraction() -> None:
    assert violated(agent_pb2.KeepAliveRequest(lease_id="l", current_load=1.0)) == set()
    for load in (-0.1, 1.1, float("nan")):
        assert violated(agent_pb2.KeepAliveRequest(lease_id="l", current_load=load)) == {
            "current_load"
        }


def test_message_needs_an_envelope() -> None:
    assert violated(message_pb2.SendMessageRequest()) == {"envelope"}
    nameless = message_pb2.Envelope(recipient="worker-1")
    assert violated(message_pb2.SendMessageRequest(envelope=nameless)) == {"envelope.message_type"}


def test_state_change_is_needed() -> None:
    assert violated(state_pb2.UpdateStateRequest(agent_id="worker-1")) == {"change"}


def test_token_life_is_short() -> None:
    request = credential_pb2.IssueTokenRequest()
    assert violated(request) == set()
    request.lifetime.FromSeconds(86401)
    assert violated(request) == {"lifetime"}
