"""What is done later for somebody ends with them, and with what they called by."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from bxmesh.security.v1 import credential_pb2, identity_pb2
from bxmesh.server.errors import MeshError
from bxmesh.server.security.delegation import by_directory, nobody_else
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.on_behalf import Deputy, caller_of
from tests.security.mesh import ADMIN, Server, bearer, refused, serving


@pytest.fixture
async def server(redis: Redis) -> AsyncIterator[Server]:
    async with serving(redis) as server:
        yield server


@pytest.fixture
def deputy(server: Server) -> Deputy:
    channel: Any = None
    return Deputy(server.guard.mesh.tokens, server.address, channel)


def by_certificate(server: Server, name: str) -> Identity:
    """An identity by a credential that does not end with it."""
    found = server.guard.mesh.directory.resolve(name, None, f"certificate/{name}", float("inf"))
    assert found is not None
    return found


async def whoami(server: Server, metadata: Any) -> Any:
    return await server.security.GetIdentity(identity_pb2.GetIdentityRequest(), metadata=metadata)


async def test_another_of_the_same_name_does_not_do_what_was_begun(
    server: Server, deputy: Deputy
) -> None:
    await server.identity("alice", "registry_read")
    caller = caller_of(by_certificate(server, "alice"))
    metadata = await deputy.metadata(caller, 60.0)
    assert (await whoami(server, metadata)).identity.identity_id == "alice"
    await server.security.DeleteIdentity(
        identity_pb2.DeleteIdentityRequest(identity_id="alice"), metadata=ADMIN
    )
    await server.identity("alice", "registry_read", "security_admin")
    for old in (metadata, await deputy.metadata(caller, 60.0)):
        assert (await refused(whoami(server, old))).reason == "TOKEN_REVOKED"
    again = caller_of(by_certificate(server, "alice"))
    assert await whoami(server, await deputy.metadata(again, 60.0))


async def test_what_is_done_later_ends_with_the_credential(server: Server, deputy: Deputy) -> None:
    alice = await server.identity("alice", "registry_read")
    issued = await server.security.IssueToken(
        credential_pb2.IssueTokenRequest(lifetime=Duration(seconds=60)), metadata=alice
    )
    identity = await server.guard.authentication._find(issued.token)
    caller = caller_of(identity[1])
    assert caller.expire_time.seconds == issued.expire_time.seconds
    # However long it is asked for.
    token = (await deputy.metadata(caller, 3600.0))[0][1].removeprefix("Bearer ")
    _, later = await server.guard.authentication._find(token)
    assert later.expires == issued.expire_time.seconds
    caller.expire_time.FromSeconds(int(time.time()) - 1)
    over = await deputy.metadata(caller, 3600.0)
    assert (await refused(whoami(server, over))).reason == "TOKEN_EXPIRED"
    assert not caller_of(by_certificate(server, "alice")).HasField("expire_time")


async def test_nobody_learns_who_there_is(server: Server) -> None:
    for name, permissions in (("weak", ("task_read", "task_assign")), ("none", ())):
        await server.identity(name, *permissions)
    await server.identity("mallory", "task_assign", "function_execute")
    mallory = by_certificate(server, "mallory")
    needed = ("task_assign", "function_execute")
    answers = set()
    for name in ("weak", "none", "nobody"):
        for delegation in (by_directory(server.guard.mesh.directory), nobody_else):
            with pytest.raises(MeshError) as raised:
                delegation(mallory, name, needed)
            error = raised.value
            told = (error.code, error.reason, error.message, sorted(error.metadata.items()))
            answers.add(str(told).replace(name, "X"))
    assert len(answers) == 1


async def test_tokens_take_no_room_that_is_not_given_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bxmesh.server.security.tokens._MOST_VERIFIED", 3)
    alice = await server.identity("alice", "registry_read")
    (tokens,) = (
        each for each in server.guard.authentication._authenticators if hasattr(each, "_verified")
    )
    found = []
    for _ in range(8):
        issued = await server.security.IssueToken(
            credential_pb2.IssueTokenRequest(), metadata=alice
        )
        found.append(await tokens.authenticate(issued.token))
        assert await whoami(server, bearer(issued.token))
    sizes = [len(value) for value in vars(tokens).values() if isinstance(value, dict)]
    assert sizes
    assert max(sizes) <= 3
    # Open streams of all of them go on.
    assert all(tokens.renew(identity) == identity for identity in found)
