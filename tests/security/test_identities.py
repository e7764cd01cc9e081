"""Identities, roles and keys, and that what they lose is lost at once, everywhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from redis.asyncio import Redis

from bxmesh.client.errors import from_rpc_error
from bxmesh.registry.v1 import agent_pb2, discovery_pb2
from bxmesh.security.v1 import credential_pb2 as keys
from bxmesh.security.v1 import identity_pb2 as pb
from bxmesh.security.v1 import role_pb2 as roles
from bxmesh.server.security.mesh_key import MeshKey
from bxmesh.server.security.permissions import PERMISSIONS, ROLES
from bxmesh.server.security.records import Change, Records
from tests.security.mesh import ADMIN, Metadata, Server, bearer, refused, serving

ALL = frozenset(PERMISSIONS)


@pytest.fixture
async def server(redis: Redis) -> AsyncIterator[Server]:
    async with serving(redis) as server:
        yield server


def whoami(server: Server, metadata: Metadata) -> Any:
    return server.security.GetIdentity(pb.GetIdentityRequest(), metadata=metadata)


async def test_a_new_identity_calls_with_its_key(server: Server) -> None:
    alice = await server.identity("alice", "registry_read", team="blue")
    answer = await whoami(server, alice)
    assert answer.identity.identity_id == "alice"
    assert answer.identity.team == "blue"
    assert answer.effective_permissions == ["registry_read"]
    await server.registry.ListAgents(agent_pb2.ListAgentsRequest(), metadata=alice)
    error = await refused(
        server.registry.RegisterAgent(agent_pb2.RegisterAgentRequest(agent_id="a"), metadata=alice)
    )
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert "agent_register" in error.message
    assert "bxmesh security grant alice agent_register" in error.message


async def test_the_secret_is_shown_once_and_stored_nowhere(server: Server, redis: Redis) -> None:
    await server.identity("alice")
    request = keys.CreateApiKeyRequest(identity_id="alice", request_id="one")
    first = await server.security.CreateApiKey(request, metadata=ADMIN)
    again = await server.security.CreateApiKey(request, metadata=ADMIN)
    assert first.secret.startswith(first.api_key.key_id + "_")
    assert len(first.secret) == len(first.api_key.key_id) + 1 + 43
    assert (again.api_key, again.secret) == (first.api_key, "")
    dump = b"".join([await redis.dump(key) or b"" for key in await redis.keys("*")])
    assert first.secret[16:].encode() not in dump
    listed = await server.security.ListApiKeys(
        keys.ListApiKeysRequest(identity_id="alice"), metadata=ADMIN
    )
    assert first.secret not in str(listed)


async def test_a_key_may_allow_less_than_its_identity(server: Server) -> None:
    alice = await server.identity("alice", "registry_read", "message_send")
    key, narrow = await server.key("", alice, permissions=["registry_read"])
    assert key.identity_id == "alice"
    assert (await whoami(server, narrow)).effective_permissions == ["registry_read"]
    # A narrow key makes no wider one.
    for permissions in ([], ["message_send"]):
        error = await refused(
            server.security.CreateApiKey(
                keys.CreateApiKeyRequest(permissions=permissions), metadata=narrow
            )
        )
        assert error.reason == "CANNOT_GRANT"


async def test_keys_end_by_time_and_by_revocation(server: Server) -> None:
    alice = await server.identity("alice")
    key, metadata = await server.key("alice")
    lifetime = Duration(seconds=60)
    short, _ = await server.key("alice", lifetime=lifetime)
    assert 55 < short.expire_time.seconds - time.time() <= 60
    await server.security.RevokeApiKey(keys.RevokeApiKeyRequest(key_id=key.key_id), metadata=alice)
    error = await refused(whoami(server, metadata))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_ENDED")
    # To revoke it again succeeds, and another's key is not to be seen.
    await server.security.RevokeApiKey(keys.RevokeApiKeyRequest(key_id=key.key_id), metadata=alice)
    bob = await server.identity("bob")
    error = await refused(
        server.security.RevokeApiKey(keys.RevokeApiKeyRequest(key_id=short.key_id), metadata=bob)
    )
    assert error.reason == "KEY_NOT_FOUND"


async def test_keys_that_ended_long_ago_are_forgotten(server: Server) -> None:
    await server.identity("alice")
    key, _ = await server.key("alice")
    mesh = server.guard.mesh
    stored = mesh.directory.key(key.key_id)
    assert stored is not None
    old = keys.ApiKey()
    old.CopyFrom(stored.key)
    old.revoke_time.FromSeconds(int(time.time()) - 91 * 86400)
    await mesh.mirror.commit([Change("api_key", key.key_id, -1, stored._replace(key=old).pack())])
    await server.key("alice")
    assert mesh.directory.key(key.key_id) is None
    listed = await server.security.ListApiKeys(
        keys.ListApiKeysRequest(identity_id="alice", include_ended=True), metadata=ADMIN
    )
    assert len(listed.api_keys) == 2


async def test_a_rotated_key_works_as_long_as_it_overlaps(server: Server) -> None:
    await server.identity("alice")
    old, metadata = await server.key("alice", permissions=[])
    answer = await server.security.RotateApiKey(
        keys.RotateApiKeyRequest(key_id=old.key_id), metadata=metadata
    )
    assert answer.old_api_key.successor_key_id == answer.api_key.key_id
    for working in (metadata, bearer(answer.secret)):
        assert (await whoami(server, working)).identity.identity_id == "alice"
    error = await refused(
        server.security.RotateApiKey(keys.RotateApiKeyRequest(key_id=old.key_id), metadata=metadata)
    )
    assert error.reason == "KEY_ENDED"
    last = await server.security.RotateApiKey(
        keys.RotateApiKeyRequest(key_id=answer.api_key.key_id, overlap=Duration()),
        metadata=bearer(answer.secret),
    )
    assert (await refused(whoami(server, bearer(answer.secret)))).reason == "KEY_ENDED"
    await whoami(server, bearer(last.secret))


async def test_what_is_revoked_on_one_server_is_refused_on_another(
    redis: Redis, tmp_path: Path
) -> None:
    async with serving(redis, tmp_path) as one, serving(redis, tmp_path) as two:
        alice = await one.identity("alice", "registry_read")
        key = (await one.security.ListApiKeys(keys.ListApiKeysRequest(), metadata=alice)).api_keys[
            0
        ]
        await two.guard.mesh.mirror.catch_up()
        await whoami(two, alice)
        await one.security.RevokeApiKey(keys.RevokeApiKeyRequest(key_id=key.key_id), metadata=ADMIN)
        await two.guard.mesh.mirror.catch_up()
        assert (await refused(whoami(two, alice))).reason == "KEY_ENDED"


@pytest.mark.parametrize(
    ("loss", "code", "reason"),
    [
        ("key", grpc.StatusCode.UNAUTHENTICATED, "KEY_ENDED"),
        ("identity", grpc.StatusCode.UNAUTHENTICATED, "KEY_ENDED"),
        ("disabled", grpc.StatusCode.UNAUTHENTICATED, "KEY_ENDED"),
        ("permission", grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING"),
    ],
)
async def test_open_streams_end_with_what_opened_them(
    redis: Redis, tmp_path: Path, loss: str, code: grpc.StatusCode, reason: str
) -> None:
    async with serving(redis, tmp_path) as one, serving(redis, tmp_path) as two:
        alice = await one.identity("alice", "registry_read")
        other = await one.identity("bob", "registry_read")
        await two.guard.mesh.mirror.catch_up()
        watch = two.registry.WatchAgents(discovery_pb2.WatchAgentsRequest(), metadata=alice)
        bobs = two.registry.WatchAgents(discovery_pb2.WatchAgentsRequest(), metadata=other)
        await watch.read()
        await bobs.read()
        if loss == "key":
            mine = await one.security.ListApiKeys(keys.ListApiKeysRequest(), metadata=alice)
            await one.security.RevokeApiKey(
                keys.RevokeApiKeyRequest(key_id=mine.api_keys[0].key_id), metadata=alice
            )
        elif loss == "identity":
            await one.security.DeleteIdentity(
                pb.DeleteIdentityRequest(identity_id="alice"), metadata=ADMIN
            )
        elif loss == "disabled":
            await one.security.UpdateIdentity(
                pb.UpdateIdentityRequest(
                    identity=pb.Identity(identity_id="alice", disabled=True),
                    update_mask=FieldMask(paths=["disabled"]),
                ),
                metadata=ADMIN,
            )
        else:
            await one.security.RevokePermissions(
                pb.RevokePermissionsRequest(identity_id="alice", permissions=["registry_read"]),
                metadata=ADMIN,
            )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async with asyncio.timeout(30):
                while await watch.read() is not grpc.aio.EOF:
                    pass
        error = from_rpc_error(raised.value)
        assert (error.code, error.reason) == (code, reason)
        assert not bobs.done()
        bobs.cancel()


async def test_an_open_stream_ends_when_its_key_expires(server: Server, redis: Redis) -> None:
    await server.identity("alice", "registry_read")
    key, metadata = await server.key("alice")
    mirror = server.guard.mesh.mirror
    stored = server.guard.mesh.directory.key(key.key_id)
    assert stored is not None
    ending = keys.ApiKey()
    ending.CopyFrom(stored.key)
    ending.expire_time.FromMicroseconds(int((time.time() + 0.3) * 1e6))
    await mirror.commit([Change("api_key", key.key_id, -1, stored._replace(key=ending).pack())])
    watch = server.registry.WatchAgents(discovery_pb2.WatchAgentsRequest(), metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async with asyncio.timeout(30):
            while await watch.read() is not grpc.aio.EOF:
                pass
    assert from_rpc_error(raised.value).reason == "KEY_ENDED"


async def test_nobody_gives_what_they_have_not(server: Server) -> None:
    eve = await server.identity("eve", "security_admin", "registry_read")
    await server.identity("boss", roles=["admin"])
    stub = server.security
    attempts = [
        stub.CreateIdentity(
            pb.CreateIdentityRequest(identity=pb.Identity(identity_id="mallory", roles=["admin"])),
            metadata=eve,
        ),
        stub.GrantPermissions(
            pb.GrantPermissionsRequest(identity_id="eve", permissions=["bundle_delete"]),
            metadata=eve,
        ),
        stub.GrantPermissions(
            pb.GrantPermissionsRequest(identity_id="eve", roles=["worker"]), metadata=eve
        ),
        stub.CreateRole(
            roles.CreateRoleRequest(role=roles.Role(role_id="mine", permissions=["bundle_delete"])),
            metadata=eve,
        ),
        # A key of somebody who may more, or to be somebody who may more.
        stub.CreateApiKey(keys.CreateApiKeyRequest(identity_id="boss"), metadata=eve),
        stub.CreateApiKey(keys.CreateApiKeyRequest(identity_id="admin"), metadata=eve),
        stub.UpdateIdentity(
            pb.UpdateIdentityRequest(
                identity=pb.Identity(identity_id="boss", certificate_names=["eve.example"]),
                update_mask=FieldMask(paths=["certificate_names"]),
            ),
            metadata=eve,
        ),
        stub.UpdateIdentity(
            pb.UpdateIdentityRequest(
                identity=pb.Identity(
                    identity_id="boss",
                    message_keys=[pb.MessageKey(key_id="k", public_key=bytes(32))],
                ),
                update_mask=FieldMask(paths=["message_keys"]),
            ),
            metadata=eve,
        ),
    ]
    for attempt in attempts:
        error = await refused(attempt)
        assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CANNOT_GRANT")
    assert (await whoami(server, eve)).effective_permissions == ["registry_read", "security_admin"]
    # What she has, she may give.
    await stub.CreateRole(
        roles.CreateRoleRequest(role=roles.Role(role_id="mine", permissions=["registry_read"])),
        metadata=eve,
    )
    await stub.GrantPermissions(
        pb.GrantPermissionsRequest(identity_id="boss", roles=["mine"]), metadata=eve
    )
    # A role that somebody has is not widened by who has less.
    error = await refused(
        stub.UpdateRole(
            roles.UpdateRoleRequest(
                role=roles.Role(role_id="mine", permissions=["registry_read", "bundle_read"])
            ),
            metadata=eve,
        )
    )
    assert error.reason == "CANNOT_GRANT"


async def test_a_key_of_somebody_who_may_more_is_not_rotated(server: Server) -> None:
    eve = await server.identity("eve", "security_admin")
    await server.identity("boss", roles=["admin"])
    key, _ = await server.key("boss")
    error = await refused(
        server.security.RotateApiKey(keys.RotateApiKeyRequest(key_id=key.key_id), metadata=eve)
    )
    assert error.reason == "CANNOT_GRANT"


async def test_built_in_identities_and_roles_stay_as_they_are(server: Server) -> None:
    stub = server.security
    for call, reason in (
        (
            stub.DeleteIdentity(pb.DeleteIdentityRequest(identity_id="admin"), metadata=ADMIN),
            "IDENTITY_BUILT_IN",
        ),
        (
            stub.RevokePermissions(
                pb.RevokePermissionsRequest(identity_id="admin", roles=["admin"]), metadata=ADMIN
            ),
            "IDENTITY_BUILT_IN",
        ),
        (
            stub.CreateIdentity(
                pb.CreateIdentityRequest(identity=pb.Identity(identity_id="admin")), metadata=ADMIN
            ),
            "IDENTITY_EXISTS",
        ),
        (
            stub.UpdateRole(
                roles.UpdateRoleRequest(role=roles.Role(role_id="reader")), metadata=ADMIN
            ),
            "ROLE_BUILT_IN",
        ),
        (
            stub.DeleteRole(roles.DeleteRoleRequest(role_id="admin"), metadata=ADMIN),
            "ROLE_BUILT_IN",
        ),
        (
            stub.CreateRole(
                roles.CreateRoleRequest(role=roles.Role(role_id="worker")), metadata=ADMIN
            ),
            "ROLE_EXISTS",
        ),
    ):
        assert (await refused(call)).reason == reason


async def test_roles_of_ones_own(server: Server) -> None:
    stub = server.security
    await stub.CreateRole(
        roles.CreateRoleRequest(role=roles.Role(role_id="looker", permissions=["registry_read"])),
        metadata=ADMIN,
    )
    alice = await server.identity("alice", roles=["looker"])
    await server.registry.ListAgents(agent_pb2.ListAgentsRequest(), metadata=alice)
    role = (await stub.GetRole(roles.GetRoleRequest(role_id="looker"), metadata=ADMIN)).role
    changed = roles.UpdateRoleRequest(
        role=roles.Role(role_id="looker", permissions=["bundle_read"]),
        update_mask=FieldMask(paths=["permissions"]),
        expected_revision=role.revision,
    )
    await stub.UpdateRole(changed, metadata=ADMIN)
    assert (await whoami(server, alice)).effective_permissions == ["bundle_read"]
    assert (await refused(stub.UpdateRole(changed, metadata=ADMIN))).reason == "REVISION_CHANGED"
    await stub.DeleteRole(roles.DeleteRoleRequest(role_id="looker"), metadata=ADMIN)
    assert (await whoami(server, alice)).effective_permissions == []
    listed = await stub.ListRoles(roles.ListRolesRequest(), metadata=ADMIN)
    assert {role.role_id for role in listed.roles} == set(ROLES)


async def test_check_permission_explains(server: Server) -> None:
    await server.identity("alice", "bundle_read", roles=["reader"])

    async def check(**fields: Any) -> roles.CheckPermissionResponse:
        answer: roles.CheckPermissionResponse = await server.security.CheckPermission(
            roles.CheckPermissionRequest(identity_id="alice", **fields), metadata=ADMIN
        )
        return answer

    assert list((await check(permission="bundle_read")).granted_by) == ["identity", "reader"]
    denied = await check(method="/bxmesh.geometry.v1.GeometryService/StreamGradients")
    assert not denied.allowed
    assert list(denied.missing_permissions) == ["coordinate_update", "gradient_calculation"]
    error = await refused(check(permission="no_such_thing"))
    assert error.reason == "PERMISSION_UNKNOWN"


async def test_a_repeated_mutation_is_made_once(server: Server) -> None:
    request = pb.CreateIdentityRequest(
        request_id="r", identity=pb.Identity(identity_id="alice", display_name="A")
    )
    first, again = [await server.security.CreateIdentity(request, metadata=ADMIN) for _ in range(2)]
    assert first == again
    assert first.identity.revision > 0


async def test_mutations_at_the_same_moment_all_count(server: Server) -> None:
    await server.identity("alice")
    names = sorted(ALL)[:8]
    await asyncio.gather(
        *(
            server.security.GrantPermissions(
                pb.GrantPermissionsRequest(identity_id="alice", permissions=[name]), metadata=ADMIN
            )
            for name in names
        )
    )
    assert server.guard.mesh.directory.permissions_of("alice") == set(names)


async def test_identities_are_listed_in_pages(server: Server) -> None:
    for number in range(5):
        await server.identity(f"i{number}", team="even" if number % 2 == 0 else "odd")
    seen, token = [], ""
    while True:
        page = await server.security.ListIdentities(
            pb.ListIdentitiesRequest(team="even", page_size=2, page_token=token), metadata=ADMIN
        )
        seen += [identity.identity_id for identity in page.identities]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["i0", "i2", "i4"]
    first = await server.security.ListIdentities(
        pb.ListIdentitiesRequest(page_size=1), metadata=ADMIN
    )
    error = await refused(
        server.security.ListIdentities(
            pb.ListIdentitiesRequest(team="odd", page_token=first.next_page_token), metadata=ADMIN
        )
    )
    assert error.reason == "PAGE_TOKEN_INVALID"


async def test_an_identity_that_somebody_wrote_into_redis_is_nobody(
    server: Server, redis: Redis
) -> None:
    forged = pb.Identity(identity_id="eve", roles=["admin"])
    await Records(redis, MeshKey(bytes(32))).commit(
        [Change("identity", "eve", 0, forged.SerializeToString())]
    )
    await server.guard.mesh.mirror.catch_up()
    assert server.guard.mesh.directory.identity("eve") is None
