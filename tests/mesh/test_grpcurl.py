"""The mesh as operators see it: through the real grpcurl."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from bxmesh.server.embedded import EmbeddedMesh

SERVICES = {
    "bxmesh.agent.v1.AgentService",
    "bxmesh.geometry.v1.GeometryService",
    "bxmesh.registry.v1.RegistryService",
    "bxmesh.security.v1.SecurityService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


async def grpcurl(*arguments: str) -> tuple[int, str]:
    """Runs grpcurl; returns its exit status and all that it printed."""
    name = shutil.which("grpcurl", path=str(Path(sys.executable).parent))
    if name is None:
        pytest.skip("grpcurl is not packaged for this machine")
    process = await asyncio.create_subprocess_exec(
        name,
        "-plaintext",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, output.decode()


def key(server: EmbeddedMesh) -> str:
    return f"authorization: Bearer {(server.state_dir / 'admin.key').read_text().strip()}"


def address(server: EmbeddedMesh) -> tuple[str, ...]:
    return "-unix", "-authority", "localhost", server.address.removeprefix("unix:")


async def test_lists_and_describes_without_a_key(shared_mesh: EmbeddedMesh) -> None:
    status, output = await grpcurl(*address(shared_mesh), "list")
    assert status == 0, output
    assert set(output.split()) >= SERVICES
    status, output = await grpcurl(
        *address(shared_mesh), "describe", "bxmesh.geometry.v1.ComputeGradientsRequest"
    )
    assert status == 0, output
    assert "coordinates" in output


async def test_calls_with_a_key(shared_mesh: EmbeddedMesh) -> None:
    status, output = await grpcurl(
        "-H",
        key(shared_mesh),
        *address(shared_mesh),
        "bxmesh.registry.v1.RegistryService/ListAgents",
    )
    assert status == 0, output
    agents = json.loads(output)["agents"]
    # Reflection in Python leaves JSON names out, so grpcurl shows those of the contract.
    assert {agent["agent_type"] for agent in agents} == {"geometry.worker"}


async def test_refused_without_a_key(shared_mesh: EmbeddedMesh) -> None:
    status, output = await grpcurl(
        *address(shared_mesh), "bxmesh.geometry.v1.GeometryService/ListBundles"
    )
    assert status != 0
    assert "Unauthenticated" in output


async def test_definitions_can_be_listed(shared_mesh: EmbeddedMesh) -> None:
    status, output = await grpcurl(
        "-H",
        key(shared_mesh),
        *address(shared_mesh),
        "bxmesh.registry.v1.RegistryService/ListAgentDefinitions",
    )
    assert status == 0, output
    assert json.loads(output) == {}


async def test_health_needs_no_key(shared_mesh: EmbeddedMesh) -> None:
    for service in ("", "bxmesh.geometry.v1.GeometryService", "dependency:redis"):
        status, output = await grpcurl(
            "-d",
            json.dumps({"service": service}),
            *address(shared_mesh),
            "grpc.health.v1.Health/Check",
        )
        assert status == 0, output
        assert "SERVING" in output and "NOT_SERVING" not in output


async def test_channelz_is_on_the_admin_port_only(shared_mesh: EmbeddedMesh) -> None:
    admin = json.loads((shared_mesh.state_dir / "server.json").read_text())["admin_address"]
    call = "grpc.channelz.v1.Channelz/GetServers"
    target = ("-unix", "-authority", "localhost", admin.removeprefix("unix:"))
    image = ("-protoset", _channelz_image(shared_mesh.state_dir))
    status, output = await grpcurl("-H", key(shared_mesh), *image, *target, call)
    assert status == 0, output
    assert "server" in json.loads(output)
    status, output = await grpcurl(*image, *target, call)
    assert "Unauthenticated" in output
    status, output = await grpcurl("-H", key(shared_mesh), *image, *address(shared_mesh), call)
    assert "Unimplemented" in output


def _channelz_image(directory: Path) -> str:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
    from grpc_channelz.v1 import channelz_pb2

    image = FileDescriptorSet()
    added: set[str] = set()

    def add(descriptor: object) -> None:
        name = descriptor.name  # type: ignore[attr-defined]
        if name in added:
            return
        added.add(name)
        for dependency in descriptor.dependencies:  # type: ignore[attr-defined]
            add(dependency)
        proto = FileDescriptorProto()
        descriptor.CopyToProto(proto)  # type: ignore[attr-defined]
        image.file.append(proto)

    add(channelz_pb2.DESCRIPTOR)
    path = directory / "channelz.binpb"
    path.write_bytes(image.SerializeToString())
    return str(path)
