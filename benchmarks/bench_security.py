"""What it costs a call to be let in: address, credential, permission, rate limit, validation."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from benchmarks.figures import Figure
from bxmesh.registry.v1 import agent_pb2, registry_service_pb2
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.security.v1 import credential_pb2, identity_pb2, policy_pb2
from bxmesh.server.embedded_valkey import EmbeddedValkey
from bxmesh.server.interceptors import Interceptor
from bxmesh.server.security.api_keys import digest, new_secret
from bxmesh.server.security.directory import API_KEY, IDENTITY, StoredKey
from bxmesh.server.security.guard import guard
from bxmesh.server.security.records import Change
from bxmesh.server.settings import Settings
from bxmesh.server.streams import connect
from bxmesh.server.unimplemented import offer

BLOCKS = 40
CALLS = 100


class _Registry:
    """Answers at once."""

    async def GetAgent(self, request: Any, context: Any) -> agent_pb2.GetAgentResponse:
        """Answers at once."""
        return agent_pb2.GetAgentResponse()


def run() -> list[Figure]:
    return [asyncio.run(_admission())]


async def _admission() -> Figure:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bx-")))
        valkey = EmbeddedValkey(folder / "valkey", folder)
        valkey.start()
        stack.callback(valkey.stop)
        redis = connect(valkey.url)
        stack.push_async_callback(redis.aclose)
        settings = Settings(state_dir=folder / "state")
        settings.prepare_directories()
        secured = await stack.enter_async_context(guard(settings, redis, "bx_admin_" + "k" * 43))
        secret = await _caller(secured.mesh)
        # Without what traces calls and words errors, which is not what lets them in.
        inside = secured.interceptors()[2:]
        stubs = [
            await _serve(stack, folder / f"{name}.sock", interceptors)
            for name, interceptors in (("open", []), ("secured", inside))
        ]
        metadata = (("authorization", f"Bearer {secret}"),)
        times: list[list[float]] = [[], []]
        for block in range(BLOCKS):
            for stub, found in zip(stubs, times, strict=True):
                # The first block warms up.
                seconds = await _block(stub, metadata)
                if block:
                    found += seconds
    bare, secure = (1000 * statistics.median(found) for found in times)
    return Figure(
        "a unary call: address, API key, permission, rate limit and validation, added at p50",
        secure - bare,
        "ms",
        at_most=0.15,
        details=f"{secure:.3f} / {bare:.3f} ms",
    )


async def _caller(mesh: Any) -> str:
    """An identity with a key, and a policy with limits that concern it."""
    key_id, secret = new_secret()
    identity = identity_pb2.Identity(identity_id="bench", roles=["agent", "supervisor"])
    key = credential_pb2.ApiKey(key_id=key_id, identity_id="bench")
    policy = policy_pb2.Policy(
        rate_limits=[
            policy_pb2.RateLimit(name="all", rate=100_000, burst=100_000),
            policy_pb2.RateLimit(
                name="reads",
                scope=policy_pb2.RATE_LIMIT_SCOPE_IDENTITY_AND_METHOD,
                methods=["/bxmesh.registry.*"],
                rate=50_000,
                burst=50_000,
            ),
        ],
        ip_rules=[policy_pb2.IpRule(network="192.0.2.0/24")],
    )
    await mesh.mirror.commit(
        [
            Change(IDENTITY, "bench", 0, identity.SerializeToString()),
            Change(API_KEY, key_id, 0, StoredKey(digest(secret), key).pack()),
            *mesh.policies.changes(policy_pb2.PolicyVersion(version=1, policy=policy)),
        ]
    )
    return secret


async def _serve(stack: AsyncExitStack, path: Path, interceptors: list[Interceptor]) -> Any:
    server = grpc.aio.server(interceptors=interceptors, options=[("grpc.so_reuseport", 0)])
    offer(server, registry_service_pb2, _Registry())
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{path}"))
    return RegistryServiceStub(channel)


async def _block(stub: Any, metadata: Any) -> list[float]:
    request = agent_pb2.GetAgentRequest(agent_id="bench")
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await stub.GetAgent(request, metadata=metadata)
        seconds.append(time.perf_counter() - began)
    return seconds
