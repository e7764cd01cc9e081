"""Signed messages at the server: only what their sender signed, once, and by the policy's mode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis

from bxmesh.agent.v1 import message_pb2
from bxmesh.security.v1 import identity_pb2, violation_pb2
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.security.signatures import Signatures
from bxmesh.signing import SigningKey, key_id_of, opened, verify
from tests.agent.mesh import ALICE, Link, Mesh, agents, envelope, refused
from tests.registry.mesh import BOB
from tests.security.test_data_loss import Policy, Told

DIRECT = message_pb2.DELIVERY_MODE_DIRECT
REPLAYS = 20


class People:
    """Alice and Bob with a key each; Carol has none."""

    def __init__(self, folder: Path) -> None:
        self.keys = {name: SigningKey.create(folder / name) for name in ("alice", "bob")}
        self.records = {
            name: identity_pb2.Identity(
                identity_id=name,
                message_keys=[
                    identity_pb2.MessageKey(key_id=key.key_id, public_key=key.public_key)
                ],
            )
            for name, key in self.keys.items()
        }

    def identity(self, identity_id: str) -> identity_pb2.Identity | None:
        return self.records.get(identity_id)

    def sign(self, signer: str = "alice", **fields: Any) -> message_pb2.Envelope:
        written = {"recipient": "bob", "sender": signer, "message_id": "m1", **fields}
        return self.keys[signer].sign(envelope(**written))


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path)


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def mesh(
    redis: Redis, shared_valkey: str, people: People, policy: Policy, told: Told
) -> AsyncIterator[Mesh]:
    signatures = Signatures(redis, people, policy, told)
    async with agents(shared_valkey, delivery_lease=5, signatures=signatures) as running:
        yield running


async def send(
    mesh: Mesh, message: message_pb2.Envelope, metadata: Any = ALICE, **request: Any
) -> Any:
    return await mesh.stub.SendMessage(
        message_pb2.SendMessageRequest(envelope=message, **request), metadata=metadata
    )


@asynccontextmanager
async def connected(mesh: Mesh) -> AsyncIterator[Link]:
    """Bob's agent of his own name."""
    lease_id = await mesh.register("bob", metadata_=BOB)
    async with mesh.connected("bob", lease_id=lease_id, metadata=BOB) as link:
        yield link


async def nothing_waits(mesh: Mesh, link: Link) -> None:
    """Sends a message that is not signed: it must be the next that arrives."""
    await mesh.send(recipient="bob", message_type="the.next")
    await link.credit()
    assert (await link.delivery()).envelope.message_type == "the.next"


async def test_it_arrives_as_it_was_signed(mesh: Mesh, people: People, told: Told) -> None:
    signed = people.sign(json='{"a": 1}', headers={"h": "v", "g": "w"}, priority=3)
    async with connected(mesh) as bob:
        answer = await send(mesh, signed)
        assert answer.message_id == "m1"
        arrived = (await bob.delivery()).envelope
    assert arrived.signature == signed.signature
    assert verify(arrived.signature, people.keys["alice"].public_key)
    assert not verify(arrived.signature, people.keys["bob"].public_key)
    inner = opened(arrived.signature)
    assert (inner.payload.json.json, inner.sender) == ('{"a": 1}', "alice")
    arrived.ClearField("signature")
    arrived.ClearField("create_time")
    arrived.ClearField("trace_context")
    assert arrived == inner
    assert not told.violations


async def test_the_fields_beside_the_signature_are_not_looked_at(
    mesh: Mesh, people: People
) -> None:
    signed = people.sign(json='"mine"')
    signed.MergeFrom(envelope("carol", "other.type", '"forged"', message_id="m2", sender="bob"))
    async with connected(mesh) as bob:
        await send(mesh, signed)
        arrived = (await bob.delivery()).envelope
    assert (arrived.message_id, arrived.sender, arrived.recipient) == ("m1", "alice", "bob")
    assert (arrived.message_type, arrived.payload.json.json) == ("test.message", '"mine"')


async def test_what_was_changed_is_refused(
    mesh: Mesh, people: People, policy: Policy, told: Told
) -> None:
    good = people.sign(json='"text"')
    bad = [message_pb2.Envelope() for _ in range(6)]
    for each in bad:
        each.CopyFrom(good)
    flipped = bytearray(good.signature.signature)
    flipped[7] ^= 1
    bad[0].signature.signature = bytes(flipped)
    bad[1].signature.nonce = bytes(16)
    bad[2].signature.sign_time.nanos ^= 1
    bad[3].signature.envelope = good.signature.envelope.replace(b"text", b"test")
    bad[4].signature.key_id = "unknown"
    bad[5].signature.key_id = people.keys["bob"].key_id
    async with connected(mesh) as bob:
        for mode in (pb.SIGNING_MODE_UNSPECIFIED, pb.SIGNING_MODE_REQUIRE):
            policy.policy.signing_mode = mode
            for each in bad:
                with refused("PERMISSION_DENIED", "SIGNATURE_INVALID"):
                    await send(mesh, each)
        policy.policy.signing_mode = pb.SIGNING_MODE_ACCEPT
        await nothing_waits(mesh, bob)
    assert len(told.violations) == 12
    first = told.violations[0]
    assert first.kind == violation_pb2.VIOLATION_KIND_SIGNATURE
    assert (first.rule, first.identity_id) == ("SIGNATURE_INVALID", "alice")
    assert "text" not in repr(told.violations)


async def test_nobody_signs_for_another(mesh: Mesh, people: People) -> None:
    # Bob's key, and Alice's name.
    with refused("PERMISSION_DENIED", "SIGNATURE_INVALID"):
        await send(mesh, people.keys["bob"].sign(envelope("bob", sender="alice", message_id="m")))
    # Bob has Alice's signed message and sends it as his.
    with refused("PERMISSION_DENIED", "SIGNATURE_INVALID"):
        await send(mesh, people.sign(), metadata=BOB)
    # Bob signs in Alice's name and sends it as his.
    with refused("PERMISSION_DENIED", "SENDER_FORGED"):
        await send(mesh, people.sign("bob", sender="alice"), metadata=BOB)


@pytest.mark.parametrize(
    "bits", ["message_id", "sender", "message_type", "junk", "twice", "nested"]
)
async def test_bytes_that_hold_something_else_are_invalid(
    mesh: Mesh, people: People, bits: str
) -> None:
    inner = envelope("bob", sender="alice", message_id="m1")
    extra = b""
    match bits:
        case "junk":
            extra = b"\xfa\x3f\x04junk"
        case "twice":
            # The parser takes the last.
            extra = envelope(message_id="m2", message_type="").SerializeToString()
        case "nested":
            inner.signature.key_id = "k"
        case _:
            inner.ClearField(bits)
    signed = people.keys["alice"].sign(inner)
    signed.message_type = "test.message"
    key = people.keys["alice"]
    signature = signed.signature
    signature.envelope += extra
    nanoseconds = signature.sign_time.ToNanoseconds().to_bytes(8, "big")
    signature.signature = key._key.sign(signature.nonce + nanoseconds + signature.envelope)
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await send(mesh, signed)


async def test_what_is_signed_keeps_to_the_contract(mesh: Mesh, people: People) -> None:
    for fields in (
        {"message_type": "no type!"},
        {"recipient": "../bob"},
        {"headers": {"k" * 64: "v"}},
    ):
        signed = people.sign(**fields)
        signed.message_type = "test.message"
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
            await send(mesh, signed)
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await send(mesh, people.sign(recipient=""))


async def test_the_time_of_signing_is_near(mesh: Mesh, people: People, told: Told) -> None:
    async with connected(mesh) as bob:
        for seconds in (-301, 301, -3600):
            with pytest.MonkeyPatch.context() as patch:
                now = time.time_ns() + seconds * 1_000_000_000
                patch.setattr("bxmesh.signing.time.time_ns", lambda now=now: now)
                signed = people.sign()
            with refused("PERMISSION_DENIED", "SIGNATURE_TIME"):
                await send(mesh, signed)
        await nothing_waits(mesh, bob)
    assert {each.rule for each in told.violations} == {"SIGNATURE_TIME"}


@pytest.mark.parametrize("mode", [DIRECT, message_pb2.DELIVERY_MODE_DURABLE])
async def test_a_replay_is_refused(mesh: Mesh, people: People, told: Told, mode: Any) -> None:
    signed = people.sign()
    async with connected(mesh) as bob:
        results = await asyncio.gather(
            *(send(mesh, signed, delivery_mode=mode) for _ in range(REPLAYS)),
            return_exceptions=True,
        )
        assert sum(not isinstance(each, BaseException) for each in results) == 1
        assert (await bob.delivery()).envelope.message_id == "m1"
        with refused("PERMISSION_DENIED", "SIGNATURE_REPEATED"):
            await send(mesh, signed, delivery_mode=mode, request_id="another")
        await nothing_waits(mesh, bob)
    assert len(told.violations) == REPLAYS


async def test_the_same_mutation_may_be_repeated(mesh: Mesh, people: People, told: Told) -> None:
    signed = people.sign()
    async with connected(mesh) as bob:
        first = await send(mesh, signed, request_id="r1")
        assert (await send(mesh, signed, request_id="r1")).message_id == first.message_id
        await bob.delivery()
        # The nonce of one message is no good for another.
        other = people.sign(message_id="m2")
        other.signature.nonce = signed.signature.nonce
        nanoseconds = other.signature.sign_time.ToNanoseconds().to_bytes(8, "big")
        other.signature.signature = people.keys["alice"]._key.sign(
            other.signature.nonce + nanoseconds + other.signature.envelope
        )
        with refused("PERMISSION_DENIED", "SIGNATURE_REPEATED"):
            await send(mesh, other, request_id="r1")
        await nothing_waits(mesh, bob)


async def test_every_message_must_be_signed_where_the_policy_says_so(
    mesh: Mesh, people: People, policy: Policy, told: Told
) -> None:
    policy.policy.signing_mode = pb.SIGNING_MODE_REQUIRE
    async with connected(mesh) as bob:
        with refused("PERMISSION_DENIED", "SIGNATURE_REQUIRED"):
            await mesh.send(recipient="bob")
        with refused("PERMISSION_DENIED", "SIGNATURE_REQUIRED"):
            await mesh.stub.BroadcastMessage(
                message_pb2.BroadcastMessageRequest(envelope=envelope()), metadata=ALICE
            )
        await send(mesh, people.sign())
        delivery = await bob.delivery()
        assert delivery.envelope.message_id == "m1"
        # So must answers.
        settled = await bob.answer(delivery, reply=envelope(message_type="an.answer"))
        assert "SIGNATURE_REQUIRED" in str(settled.status)
    assert {each.rule for each in told.violations} == {"SIGNATURE_REQUIRED"}


async def test_signatures_are_carried_where_nobody_asks(
    mesh: Mesh, people: People, policy: Policy
) -> None:
    policy.policy.signing_mode = pb.SIGNING_MODE_OFF
    signed = people.sign()
    signed.signature.signature = bytes(64)
    async with connected(mesh) as bob:
        await send(mesh, signed)
        assert (await bob.delivery()).envelope.signature == signed.signature


async def test_keys_that_have_ended_or_gone_sign_nothing(mesh: Mesh, people: People) -> None:
    ended = Timestamp()
    ended.FromNanoseconds(time.time_ns() - 1)
    people.records["alice"].message_keys[0].expire_time.CopyFrom(ended)
    with refused("PERMISSION_DENIED", "SIGNATURE_INVALID"):
        await send(mesh, people.sign())
    del people.records["alice"].message_keys[:]
    with refused("PERMISSION_DENIED", "SIGNATURE_INVALID"):
        await send(mesh, people.sign())
    del people.records["alice"]
    with refused("PERMISSION_DENIED", "SIGNATURE_INVALID"):
        await send(mesh, people.sign())


async def test_a_broadcast_is_signed_once_for_all(mesh: Mesh, people: People) -> None:
    signed = people.sign(recipient="")
    async with (
        connected(mesh) as bob,
        mesh.connected("worker") as worker,
    ):
        answer = await mesh.stub.BroadcastMessage(
            message_pb2.BroadcastMessageRequest(envelope=signed), metadata=ALICE
        )
        assert answer.recipients == 2
        for link, name in ((bob, "bob"), (worker, "worker")):
            arrived = (await link.delivery()).envelope
            assert arrived.recipient == name
            assert arrived.signature == signed.signature
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await mesh.stub.BroadcastMessage(
            message_pb2.BroadcastMessageRequest(envelope=people.sign()), metadata=ALICE
        )


async def test_answers_are_signed(mesh: Mesh, people: People) -> None:
    async with connected(mesh) as bob:
        asking = asyncio.create_task(send(mesh, people.sign(), reply_timeout=Duration(seconds=20)))
        delivery = await bob.delivery()
        reply = people.sign(
            "bob", recipient="alice", message_id="a1", correlation_id="m1", json='"yes"'
        )
        settled = await bob.answer(delivery, reply=reply)
        assert not settled.status.code
        answer = await asking
        assert answer.reply.signature == reply.signature
        assert (answer.reply.message_id, answer.reply.payload.json.json) == ("a1", '"yes"')


async def test_an_answer_cannot_be_signed_for_another_message(mesh: Mesh, people: People) -> None:
    wrong: list[dict[str, Any]] = [
        {"correlation_id": "m0"},
        {"recipient": "carol"},
        {"correlation_id": ""},
    ]
    async with connected(mesh) as bob:
        for number, fields in enumerate(wrong):
            await send(mesh, people.sign(message_id=f"m{number + 1}"))
            names = {"recipient": "alice", "correlation_id": f"m{number + 1}", **fields}
            settled = await bob.answer(
                await bob.delivery(), reply=people.sign("bob", message_id=f"a{number}", **names)
            )
            assert settled.status.code
            await bob.credit()


def test_keys_are_private(tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert SigningKey((tmp_path / "key").read_bytes()).public_key == key.public_key
    assert key.key_id == key_id_of(key.public_key)
    assert repr(key) == f"SigningKey({key.key_id!r})"
    with pytest.raises(FileExistsError):
        SigningKey.create(tmp_path / "key")
    for pem in (b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(ValueError, match="no private key"):
            SigningKey(pem)
