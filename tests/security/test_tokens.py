"""Tokens: what is no token of this mesh for this server is refused, however it is made."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from bxmesh.registry.v1 import agent_pb2, discovery_pb2
from bxmesh.security.v1 import credential_pb2 as pb
from bxmesh.security.v1 import identity_pb2
from bxmesh.server.errors import MeshError
from bxmesh.server.security.directory import Directory
from bxmesh.server.security.mesh_key import MeshKey
from bxmesh.server.security.token_keys import TokenKeys
from bxmesh.server.security.tokens import TokenAuthenticator
from tests.security.mesh import ADMIN, Metadata, Server, bearer, refused, serving


@pytest.fixture
async def server(redis: Redis) -> AsyncIterator[Server]:
    async with serving(redis) as server:
        yield server


async def issue(server: Server, metadata: Metadata, **fields: Any) -> pb.IssueTokenResponse:
    answer: pb.IssueTokenResponse = await server.security.IssueToken(
        pb.IssueTokenRequest(**fields), metadata=metadata
    )
    return answer


async def permissions(server: Server, metadata: Metadata) -> list[str]:
    answer = await server.security.GetIdentity(identity_pb2.GetIdentityRequest(), metadata=metadata)
    return list(answer.effective_permissions)


async def test_a_token_calls_with_what_its_credential_allows(server: Server) -> None:
    alice = await server.identity("alice", "registry_read", "bundle_read")
    whole = await issue(server, alice)
    part = await issue(server, alice, permissions=["registry_read"])
    assert await permissions(server, bearer(whole.token)) == ["bundle_read", "registry_read"]
    assert await permissions(server, bearer(part.token)) == ["registry_read"]
    assert 890 < whole.expire_time.seconds - time.time() <= 900
    # What the identity gains later a token has not; what it loses is lost.
    await server.security.GrantPermissions(
        identity_pb2.GrantPermissionsRequest(identity_id="alice", permissions=["audit_read"]),
        metadata=ADMIN,
    )
    await server.security.RevokePermissions(
        identity_pb2.RevokePermissionsRequest(identity_id="alice", permissions=["bundle_read"]),
        metadata=ADMIN,
    )
    assert await permissions(server, bearer(whole.token)) == ["registry_read"]
    error = await refused(
        server.security.IssueToken(
            pb.IssueTokenRequest(permissions=["security_admin"]), metadata=alice
        )
    )
    assert error.reason == "CANNOT_GRANT"


async def test_no_credential_comes_of_a_token(server: Server) -> None:
    alice = await server.identity("alice", "registry_read")
    key, _ = await server.key("", alice)
    token = bearer((await issue(server, alice)).token)
    for call in (
        server.security.IssueToken(pb.IssueTokenRequest(), metadata=token),
        server.security.CreateApiKey(pb.CreateApiKeyRequest(), metadata=token),
        server.security.RotateApiKey(pb.RotateApiKeyRequest(key_id=key.key_id), metadata=token),
    ):
        assert (await refused(call)).reason == "TOKEN_MAKES_NONE"


@pytest.mark.parametrize("end", ["token", "key", "identity", "again"])
async def test_tokens_end_before_their_time_on_every_server(
    redis: Redis, tmp_path: Path, end: str
) -> None:
    async with serving(redis, tmp_path) as one, serving(redis, tmp_path) as two:
        alice = await one.identity("alice", "registry_read")
        issued = await issue(one, alice)
        token = bearer(issued.token)
        await two.guard.mesh.mirror.catch_up()
        watch = two.registry.WatchAgents(discovery_pb2.WatchAgentsRequest(), metadata=token)
        await watch.read()
        if end == "token":
            await one.security.RevokeToken(
                pb.RevokeTokenRequest(token_id=issued.token_id), metadata=alice
            )
        elif end == "key":
            mine = await one.security.ListApiKeys(pb.ListApiKeysRequest(), metadata=alice)
            await one.security.RevokeApiKey(
                pb.RevokeApiKeyRequest(key_id=mine.api_keys[0].key_id), metadata=ADMIN
            )
        else:
            await one.security.DeleteIdentity(
                identity_pb2.DeleteIdentityRequest(identity_id="alice"), metadata=ADMIN
            )
        if end == "again":
            # Another of the same name is somebody else.
            await one.identity("alice", "registry_read")
        await two.guard.mesh.mirror.catch_up()
        error = await refused(permissions(two, token))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            while await watch.read() is not grpc.aio.EOF:
                pass
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_tokens_of_others_are_not_there(server: Server) -> None:
    alice, bob = await server.identity("alice"), await server.identity("bob")
    issued = await issue(server, alice)
    for token_id in (issued.token_id, "alice:0.0", "x", issued.token_id + "0"):
        error = await refused(
            server.security.RevokeToken(pb.RevokeTokenRequest(token_id=token_id), metadata=bob)
        )
        assert error.reason == "TOKEN_NOT_FOUND"
    await permissions(server, bearer(issued.token))


async def test_public_keys_verify_tokens_anywhere(server: Server) -> None:
    alice = await server.identity("alice")
    issued = await issue(server, alice, audience="elsewhere")
    answer = await server.security.ListTokenKeys(pb.ListTokenKeysRequest(), metadata=alice)
    (key,) = answer.keys
    claims = jwt.decode(
        issued.token,
        Ed25519PublicKey.from_public_bytes(key.public_key),
        algorithms=["EdDSA"],
        audience="elsewhere",
        issuer=answer.issuer,
    )
    assert claims["sub"] == "alice"
    # This server does not stand for that audience.
    assert (await refused(permissions(server, bearer(issued.token)))).reason == "TOKEN_INVALID"


async def test_keys_rotate_and_the_old_ones_verify_on(server: Server) -> None:
    alice = await server.identity("alice")
    old = await issue(server, alice)
    keys = server.guard.mesh.token_keys
    await keys.rotate()
    new = await issue(server, alice)
    assert (
        jwt.get_unverified_header(old.token)["kid"] != jwt.get_unverified_header(new.token)["kid"]
    )
    for issued in (old, new):
        await permissions(server, bearer(issued.token))
    listed = await server.security.ListTokenKeys(pb.ListTokenKeysRequest(), metadata=alice)
    assert [key.HasField("expire_time") for key in listed.keys] == [False, True]


async def test_a_server_without_the_mesh_key_signs_nothing(server: Server) -> None:
    await issue(server, await server.identity("alice"))
    stranger = TokenKeys(server.guard.mesh.mirror, MeshKey(bytes(32)), 30)
    with pytest.raises(InvalidTag):
        await stranger.signing()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def test_wrong_tokens_are_refused(server: Server) -> None:
    alice = await server.identity("alice", "registry_read")
    issued = await issue(server, alice)
    good = jwt.decode(issued.token, options={"verify_signature": False})
    header = jwt.get_unverified_header(issued.token)
    key_id, private = await server.guard.mesh.token_keys.signing()
    public = private.public_key().public_bytes_raw()
    own = Ed25519PrivateKey.generate()

    def signed(claims: dict[str, Any], key: Any = private, **extra: Any) -> str:
        return jwt.encode({**good, **claims}, key, "EdDSA", {"kid": key_id, **extra})

    def raw(head: dict[str, Any], signature: bytes = b"") -> str:
        return (
            f"{_b64(json.dumps(head).encode())}.{_b64(json.dumps(good).encode())}.{_b64(signature)}"
        )

    body, _, signature = issued.token.rpartition(".")
    now = int(time.time())
    wrong = {
        "none": raw({**header, "alg": "none"}),
        "None": raw({**header, "alg": "None"}, b"x"),
        "HS256 by the public key": jwt.encode(good, public, "HS256", {"kid": key_id}),
        "RS256": raw({**header, "alg": "RS256"}, bytes(64)),
        "another key": signed({}, own),
        "another key that says so": jwt.encode(
            good, own, "EdDSA", {"kid": key_id, "jwk": {"kty": "OKP"}, "jku": "http://x/"}
        ),
        "unknown kid": signed({}, kid="99999999"),
        "no kid": jwt.encode(good, private, "EdDSA"),
        "kid of another kind": raw({**header, "kid": 7}, bytes(64)),
        "a path for kid": signed({}, kid="../../etc/passwd"),
        "crit": signed({}, crit=["exp"]),
        "changed": body[:-2] + ("AA" if body[-2:] != "AA" else "BB") + "." + signature,
        "cut": issued.token[:-4],
        "audience": signed({"aud": "elsewhere"}),
        "no audience": jwt.encode(
            {name: value for name, value in good.items() if name != "aud"},
            private,
            "EdDSA",
            {"kid": key_id},
        ),
        "issuer": signed({"iss": "bxmesh:other"}),
        "not yet": signed({"nbf": now + 600}),
        "subject of another kind": signed({"sub": 7}),
        "permissions of another kind": signed({"perm": "registry_read"}),
        "eyJ": "eyJ",
        "dots": "eyJ" + "." * 2000,
        "not UTF-8": "eyJ\u00ff.x.y",
    }
    for what, token in wrong.items():
        try:
            token.encode("ascii")
        except UnicodeEncodeError:
            continue
        error = await refused(permissions(server, bearer(token)))
        assert (error.code, error.reason) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "TOKEN_INVALID",
        ), what
        assert token not in str(error)
    expired = signed({"exp": now - 1, "iat": now - 9, "nbf": now - 9})
    assert (await refused(permissions(server, bearer(expired)))).reason == "TOKEN_EXPIRED"
    # Signed by this mesh, but for nobody: only a forger with its key could make that.
    for claims in ({"sub": "nobody"}, {"born": "1"}, {"cred": "bx_aaaaaaaaaaaa"}):
        error = await refused(permissions(server, bearer(signed(claims))))
        assert error.reason == "TOKEN_REVOKED"
    more = signed({"perm": ["*", "security_admin"]})
    assert await permissions(server, bearer(more)) == []
    await server.registry.ListAgents(agent_pb2.ListAgentsRequest(), metadata=alice)


async def test_a_lifetime_is_cut_by_the_credential_and_the_policy(server: Server) -> None:
    await server.identity("alice")
    _, short = await server.key("alice", lifetime=Duration(seconds=120))
    issued = await issue(server, short, lifetime=Duration(seconds=80_000))
    assert issued.expire_time.seconds - time.time() <= 120
    day = await issue(server, ADMIN, lifetime=Duration(seconds=80_000))
    assert day.expire_time.seconds - time.time() <= 3600
    assert "security_admin" in await permissions(server, bearer(day.token))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    head=st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "jku", "b64", "x"]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.just("EdDSA")),
    ),
    body=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)),
    signature=st.binary(max_size=80),
)
async def test_no_token_makes_the_authenticator_fail(
    head: dict[str, Any], body: bytes, signature: bytes
) -> None:
    authenticator = _authenticator()
    token = f"{_b64(json.dumps(head).encode())}.{_b64(body)}.{_b64(signature)}"
    for credential in (token, "eyJ" + token, token.replace(".", "..")):
        try:
            assert await authenticator.authenticate(credential) is None
        except MeshError as error:
            assert error.reason == "TOKEN_INVALID"


def _authenticator() -> Any:
    class Empty:
        def on_change(self, listener: Any) -> None:
            pass

        def all(self, kind: str) -> dict[str, Any]:
            return {}

        def get(self, kind: str, name: str) -> None:
            return None

        def check_fresh(self) -> None:
            pass

    mirror: Any = Empty()
    keys = TokenKeys(mirror, MeshKey(bytes(32)), 30)
    return TokenAuthenticator(keys, Directory(mirror), mirror)
