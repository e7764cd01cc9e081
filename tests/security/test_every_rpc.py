"""Every RPC of every service, called by everybody who may not call it.

The table is written out here, and not taken from the code that it checks: a new RPC without a line
fails, and so does one whose rule changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import jwt
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message_factory import GetMessageClass
from redis.asyncio import Redis

from bxmesh.agent.v1 import (
    agent_service_pb2,
    chain_service_pb2,
    conversation_service_pb2,
    function_service_pb2,
)
from bxmesh.client.errors import from_rpc_error
from bxmesh.geometry.v1 import geometry_service_pb2
from bxmesh.health.v1 import health_service_pb2
from bxmesh.registry.v1 import registry_service_pb2
from bxmesh.security.v1 import credential_pb2, identity_pb2, security_service_pb2
from bxmesh.server.security.permissions import METHODS, OPEN_SERVICES, PERMISSIONS
from bxmesh.server.security.records import Change
from tests.security.mesh import ADMIN, Metadata, Server, bearer, serving
from tests.security.test_tokens import _b64

FILES = (
    geometry_service_pb2,
    agent_service_pb2,
    chain_service_pb2,
    conversation_service_pb2,
    function_service_pb2,
    health_service_pb2,
    registry_service_pb2,
    security_service_pb2,
)

# method: what it takes; "" is for what every identity may call.
TABLE = """
geometry.v1.GeometryService
  UploadBundle ShareBundle: bundle_write
  DownloadBundle GetBundle ListBundles: bundle_read
  DeleteBundle: bundle_delete
  CreateModel: bundle_read geometry_calculation
  ComputeGradients: gradient_calculation
  StreamGradients Minimize: gradient_calculation coordinate_update
  ComputeStructureFactors ComputeMap: structure_factor_calculation
  ComputeRealSpaceGradients: gradient_calculation bundle_read
  ValidateModel ExportRestraints: geometry_calculation
  AnalyzeData: experimental_data_processing
  CreateJob GetJob ListJobs CancelJob WatchJob: geometry_calculation
agent.v1.AgentService
  Connect: message_receive
  SendMessage BroadcastMessage: message_send
  AssignTask CancelTask: task_assign
  ReportTask: task_execute
  GetTask ListTasks WatchTask GetTaskStats: task_read
  GetState WatchState: state_read
  UpdateState: state_write
  ListDeadLetters GetQueueStats: queue_read
  ReplayDeadLetters PurgeDeadLetters ReplayMessages: queue_write
agent.v1.ChainService
  StartChain CancelChain: task_assign
  GetChain ListChains WatchChain: task_read
agent.v1.ConversationService
  StreamConversation StartConversation SendConversationMessage: conversation_write
  CancelConversation DeleteConversation PurgeConversations: conversation_write
  GetConversation ListConversations SearchConversations: conversation_read
  ExportConversations GetConversationStats: conversation_read
agent.v1.FunctionService
  CreateFunction UpdateFunctionAlias DeleteFunction: function_write
  GetFunction ListFunctions GetFunctionStats: function_read
  ExecuteFunction StreamFunction GetExecution ListExecutions CancelExecution: function_execute
health.v1.HealthService
  GetHealth:
registry.v1.RegistryService
  RegisterAgent KeepAlive DeregisterAgent: agent_register
  GetAgent ListAgents DiscoverAgents SelectAgent WatchAgents GetRegistryStats: registry_read
  GetAgentDefinition ListAgentDefinitions ListAgentDefinitionVersions: registry_read
  WatchAgentDefinitions: registry_read
  CreateAgentDefinition UpdateAgentDefinition: registry_write
  SetAgentDefinitionState DeleteAgentDefinition: registry_write
security.v1.SecurityService
  ListPermissions ListTokenKeys IssueToken GetIdentity CheckPermission:
  CreateApiKey ListApiKeys RotateApiKey RevokeApiKey RevokeToken GetSecurityReport:
  CreateIdentity UpdateIdentity ListIdentities DeleteIdentity: security_admin
  ListMessageKeys: registry_read
  GrantPermissions RevokePermissions: security_admin
  CreateRole UpdateRole GetRole ListRoles DeleteRole: security_admin
  ApplyPolicy GetPolicy ListPolicyVersions ListIpBlocks DeleteIpBlock: security_admin
  ListViolations WatchViolations QueryAuditLog VerifyAuditLog: audit_read
"""


def table() -> dict[str, frozenset[str]]:
    rules: dict[str, frozenset[str]] = {}
    service = ""
    for line in TABLE.strip().splitlines():
        if not line.startswith(" "):
            service = line
            continue
        names, _, permissions = line.partition(":")
        for name in names.split():
            rules[f"/bxmesh.{service}/{name}"] = frozenset(permissions.split())
    return rules


def methods() -> Iterator[tuple[str, MethodDescriptor]]:
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method


def test_every_rpc_has_a_line() -> None:
    assert dict(methods()).keys() == table().keys()
    enforced = {name: frozenset(rule.permissions) for name, rule in METHODS.items()}
    assert {name: enforced[name] for name in table()} == table()
    assert set().union(*table().values()) <= PERMISSIONS.keys()
    # What strangers may call is this and nothing else.
    assert {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    } == OPEN_SERVICES


def test_every_permission_is_asked_for_by_something() -> None:
    asked = {name for rule in METHODS.values() for name in rule.permissions}
    asked |= {name for rule in METHODS.values() for name, _ in rule.also}
    assert asked == PERMISSIONS.keys()


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Serves every method and notes which of them was reached."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self._methods = dict(methods())

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = self._methods[details.method]
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        reached = self.reached

        async def unary(message: Any, context: Any) -> Any:
            reached.append(details.method)
            return response()

        async def stream(message: Any, context: Any) -> AsyncIterator[Any]:
            reached.append(details.method)
            yield response()

        kind = "_".join(
            "stream" if streams else "unary"
            for streams in (method.client_streaming, method.server_streaming)
        )
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        handler = stream if method.server_streaming else unary
        return make(handler, request.FromString, response.SerializeToString)


@asynccontextmanager
async def everything(server: Server) -> AsyncIterator[tuple[Handlers, grpc.aio.Channel]]:
    """All services behind the guard of a server."""
    handlers = Handlers()
    behind = grpc.aio.server(
        interceptors=server.guard.interceptors()[:-1], options=[("grpc.so_reuseport", 0)]
    )
    behind.add_generic_rpc_handlers((handlers,))
    with TemporaryDirectory(prefix="bx-") as folder:
        address = f"unix:{Path(folder) / 'socket'}"
        behind.add_insecure_port(address)
        await behind.start()
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield handlers, channel
        finally:
            await behind.stop(0)


async def call(channel: grpc.aio.Channel, name: str, metadata: Metadata) -> str:
    """Calls a method with an empty request; returns the reason of its error, or OK."""
    method = dict(methods())[name]
    kind = "_".join(
        "stream" if streams else "unary"
        for streams in (method.client_streaming, method.server_streaming)
    )
    request = GetMessageClass(method.input_type)()
    stub = getattr(channel, kind)(name, type(request).SerializeToString, lambda data: data)
    argument = iter([request]) if method.client_streaming else request
    started = stub(argument, metadata=metadata, timeout=20)
    try:
        if method.server_streaming:
            async for _ in started:
                pass
        else:
            await started
    except grpc.aio.AioRpcError as error:
        seen = from_rpc_error(error)
        return f"{error.code().name} {seen.reason}"
    return "OK"


async def strangers(server: Server) -> dict[str, tuple[Metadata, str]]:
    """Credentials that open nothing, with what they are answered, by what is wrong with them."""
    security, mesh = server.security, server.guard.mesh
    await server.identity("gone", roles=["admin"])
    revoked, with_revoked = await server.key("gone")
    await security.RevokeApiKey(
        credential_pb2.RevokeApiKeyRequest(key_id=revoked.key_id), metadata=ADMIN
    )
    with_disabled = await server.identity("off", roles=["admin"])
    token_of_gone = await security.IssueToken(credential_pb2.IssueTokenRequest(), metadata=ADMIN)
    await security.RevokeToken(
        credential_pb2.RevokeTokenRequest(token_id=token_of_gone.token_id), metadata=ADMIN
    )
    await security.UpdateIdentity(
        identity_pb2.UpdateIdentityRequest(
            identity=identity_pb2.Identity(identity_id="off", disabled=True),
            update_mask=FieldMask(paths=["disabled"]),
        ),
        metadata=ADMIN,
    )
    expired, with_expired = await server.key("gone")
    stored = mesh.directory.key(expired.key_id)
    assert stored is not None
    over = credential_pb2.ApiKey()
    over.CopyFrom(stored.key)
    over.expire_time.FromSeconds(1)
    await mesh.mirror.commit(
        [Change("api_key", expired.key_id, -1, stored._replace(key=over).pack())]
    )
    good = await security.IssueToken(credential_pb2.IssueTokenRequest(), metadata=ADMIN)
    claims = jwt.decode(good.token, options={"verify_signature": False})
    key_id, private = await mesh.token_keys.signing()
    public = private.public_key().public_bytes_raw()
    now = int(time.time())

    def signed(**changed: Any) -> str:
        return jwt.encode({**claims, **changed}, private, "EdDSA", {"kid": key_id})

    header = {"alg": "none", "typ": "JWT", "kid": key_id}
    none = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(claims).encode())}."
    invalid, token_invalid = "UNAUTHENTICATED KEY_INVALID", "UNAUTHENTICATED TOKEN_INVALID"
    return {
        "no credential": ((), "UNAUTHENTICATED KEY_MISSING"),
        "garbage": (bearer("garbage"), invalid),
        "an empty one": (bearer(""), invalid),
        "a key of nobody": (bearer("bx_" + "a" * 12 + "_" + "b" * 43), invalid),
        "another secret of a key": (bearer(revoked.key_id + "_" + "b" * 43), invalid),
        "the admin key but for a letter": (bearer("bx_admin_" + "k" * 42 + "K"), invalid),
        "a huge one": (bearer("x" * 5000), invalid),
        "a revoked key": (with_revoked, "UNAUTHENTICATED KEY_ENDED"),
        "an expired key": (with_expired, "UNAUTHENTICATED KEY_ENDED"),
        "a key of a disabled identity": (with_disabled, "UNAUTHENTICATED KEY_ENDED"),
        "a revoked token": (bearer(token_of_gone.token), "UNAUTHENTICATED TOKEN_REVOKED"),
        "an expired token": (
            bearer(signed(iat=now - 9, nbf=now - 9, exp=now - 1)),
            "UNAUTHENTICATED TOKEN_EXPIRED",
        ),
        "a token for another audience": (bearer(signed(aud="elsewhere")), token_invalid),
        "a token without a signature": (bearer(none), token_invalid),
        "a token signed with the public key": (
            bearer(jwt.encode(claims, public, "HS256", {"kid": key_id})),
            token_invalid,
        ),
    }


@pytest.mark.timeout(300)
async def test_no_stranger_gets_in_anywhere(redis: Redis) -> None:
    async with serving(redis) as server, everything(server) as (handlers, channel):
        for what, (metadata, answer) in (await strangers(server)).items():
            for name in table():
                assert await call(channel, name, metadata) == answer, (what, name)
        assert handlers.reached == []


@pytest.mark.timeout(300)
async def test_each_rpc_takes_its_permissions_and_no_others(redis: Redis) -> None:
    async with serving(redis) as server, everything(server) as (handlers, channel):
        keys: dict[frozenset[str], Metadata] = {}

        async def having(permissions: frozenset[str]) -> Metadata:
            if permissions not in keys:
                keys[permissions] = await server.identity(f"i{len(keys)}", *sorted(permissions))
            return keys[permissions]

        everything_there_is = frozenset(PERMISSIONS)
        for name, needed in table().items():
            for missing in needed:
                metadata = await having(everything_there_is - {missing})
                assert await call(channel, name, metadata) == (
                    "PERMISSION_DENIED PERMISSION_MISSING"
                ), (name, missing)
        assert handlers.reached == []
        for name, needed in table().items():
            assert await call(channel, name, await having(needed)) == "OK", name
        assert handlers.reached == list(table())


async def test_a_method_that_nobody_knows_is_denied(redis: Redis) -> None:
    async with serving(redis) as server:
        alice = await server.identity("alice", *PERMISSIONS)
        async with grpc.aio.insecure_channel(server.address) as channel:
            for name in ("/bxmesh.security.v1.SecurityService/Backdoor", "/x.y/Z"):
                stub = channel.unary_unary(name)
                for metadata, code in (
                    (alice, grpc.StatusCode.PERMISSION_DENIED),
                    (ADMIN, grpc.StatusCode.UNIMPLEMENTED),
                    ((), grpc.StatusCode.UNAUTHENTICATED),
                ):
                    with pytest.raises(grpc.aio.AioRpcError) as raised:
                        await stub(b"", metadata=metadata)
                    assert raised.value.code() is code
