"""Messages with data that must not be sent: refused, redacted, held back, on a real agent service."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf import duration_pb2, struct_pb2, wrappers_pb2
from google.protobuf.message import Message
from redis.asyncio import Redis

from bxmesh.agent.v1 import message_pb2, queue_pb2
from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.security.v1 import violation_pb2
from bxmesh.server.errors import MeshError
from bxmesh.server.security.data_loss import DataGuard, complaints
from bxmesh.server.security.events import AuditEvent, ViolationEvent
from bxmesh.server.security.message_rules import MessageRules
from tests.agent.mesh import Mesh, agents, envelope, refused
from tests.registry.mesh import ADMIN, ALICE, BOB, OPERATOR

# A number that nothing else would write by chance, with its check digit.
CANARY = "4539148803436467"
SPACED = "4539 1488 0343 6467"
MAIL = "jane.roe@example.org"
DIRECT = message_pb2.DELIVERY_MODE_DIRECT


class Policy:
    """A policy that a test changes."""

    def __init__(self) -> None:
        self.policy = pb.Policy()
        self.policy_version = 0

    def rule(self, action: Any, detector: Any = pb.DETECTOR_CARD, **fields: Any) -> None:
        """Adds a rule."""
        name = fields.pop("name", f"rule-{len(self.policy.data_rules)}")
        self.policy.data_rules.add(name=name, action=action, detector=detector, **fields)
        self.policy_version += 1


class Told:
    """Keeps what security is told."""

    def __init__(self) -> None:
        self.violations: list[ViolationEvent] = []
        self.noted: list[tuple[str, str, str]] = []

    async def audit(self, event: AuditEvent) -> None:
        raise AssertionError("nothing to audit")

    def note(self, event: AuditEvent) -> None:
        self.noted.append((event.event_type, event.identity_id, event.resource))

    def violation(self, event: ViolationEvent) -> None:
        self.violations.append(event)


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def guard(policy: Policy, told: Told) -> DataGuard:
    return DataGuard(policy, told)


@pytest.fixture
async def mesh(
    redis: Redis, shared_valkey: str, policy: Policy, told: Told, guard: DataGuard
) -> AsyncIterator[Mesh]:
    rules = MessageRules(policy, told)
    async with agents(shared_valkey, delivery_lease=5, rules=rules, data=guard) as running:
        yield running


def signed(message: message_pb2.Envelope) -> message_pb2.Envelope:
    message.signature.envelope = message.SerializeToString()
    return message


def struct(**fields: Any) -> struct_pb2.Struct:
    content = struct_pb2.Struct()
    content.update(fields)
    return content


def packed(content: Message, **fields: Any) -> message_pb2.Envelope:
    message: message_pb2.Envelope = envelope("bob", **fields)
    message.payload.protobuf.Pack(content)
    return message


async def redacted(guard: DataGuard, message: message_pb2.Envelope) -> message_pb2.Envelope:
    before = message.SerializeToString(deterministic=True)
    verdict = await guard.inspect(message, "alice")
    assert verdict.quarantine is None
    assert message.SerializeToString(deterministic=True) == before
    # Nothing is left of what was taken out.
    assert (await guard.inspect(verdict.envelope, "alice")).envelope == verdict.envelope
    return verdict.envelope


async def blocked(guard: DataGuard, message: message_pb2.Envelope) -> MeshError:
    with pytest.raises(MeshError) as raised:
        await guard.inspect(message, "alice")
    assert raised.value.reason == "DATA_LOSS_BLOCKED"
    return raised.value


# Where data hide


@pytest.mark.parametrize(
    "message",
    [
        envelope("bob", json=f'{{"card": "{SPACED}"}}'),
        envelope("bob", json=f'{{"card": {CANARY}}}'),
        envelope("bob", json=f'{{"card": {CANARY}.0}}'),
        envelope("bob", json=f'{{"{CANARY}": 1}}'),
        envelope("bob", json=f"not JSON: {CANARY}"),
        envelope("bob", json='{"card": "' + "".join(f"\\u{ord(c):04x}" for c in CANARY) + '"}'),
        envelope("bob", json=f'"first\\n{CANARY}\\nlast"'),
        envelope("bob", json=json.dumps({"b": base64.b64encode(SPACED.encode()).decode()})),
        envelope(
            "bob",
            json=json.dumps({"b": base64.urlsafe_b64encode(b"??>" + SPACED.encode()).decode()}),
        ),
        envelope("bob", json=json.dumps({"q": "a=" + quote(SPACED)})),
        envelope("bob", json=json.dumps({"q": "a=" + "".join(f"%{ord(c):02X}" for c in CANARY)})),
        envelope("bob", json=json.dumps("４５３９１４８８０３４３６４６７", ensure_ascii=False)),
        envelope("bob", json=json.dumps("4539\u00a01488\u00a00343\u00a06467", ensure_ascii=False)),
        envelope("bob", json=json.dumps("4539\u200b148803436467", ensure_ascii=False)),
        envelope("bob", json="[" * 500 + CANARY + "]" * 500),
        envelope("bob", headers={"note": f"card {CANARY}"}),
        envelope("bob", headers={f"card {CANARY}": "1"}),
        envelope("bob", message_id=f"card-{CANARY}"),
        envelope("bob", correlation_id=CANARY),
        envelope("bob", conversation_id=f"a {CANARY}"),
        envelope("bob", trace_context={"baggage": f"card={CANARY}"}),
        envelope("bob", trace_context={"other": CANARY}),
        envelope("bob", trace_context={"traceparent": f"00-{CANARY}"}),
        envelope("bob", reply_to=CANARY),
        packed(wrappers_pb2.StringValue(value=CANARY)),
        packed(wrappers_pb2.BytesValue(value=CANARY.encode())),
        packed(wrappers_pb2.BytesValue(value=b"\xff\xfe " + CANARY.encode() + b"\x00")),
        packed(struct(card=int(CANARY))),
        packed(struct(a=[1, {"b": [SPACED]}])),
        packed(struct_pb2.Value(string_value=CANARY)),
        packed(struct_pb2.ListValue(values=[struct_pb2.Value(number_value=int(CANARY))])),
        packed(queue_pb2.DeadLetterFilter(dead_letter_ids=["x", CANARY])),
        packed(message_pb2.SendMessageRequest(envelope=envelope("x", json=f'["{CANARY}"]'))),
        packed(wrappers_pb2.Int64Value(value=int(CANARY))),
        packed(wrappers_pb2.DoubleValue(value=float(CANARY))),
    ],
)
async def test_data_are_found_wherever_they_hide(
    guard: DataGuard, policy: Policy, message: message_pb2.Envelope
) -> None:
    policy.rule(pb.DATA_ACTION_BLOCK)
    await blocked(guard, message)


async def test_a_length_that_looks_like_a_digit_hides_nothing(
    guard: DataGuard, policy: Policy
) -> None:
    policy.rule(pb.DATA_ACTION_BLOCK)
    for size in range(0x30, 0x3A):
        text = CANARY + " " * (size - len(CANARY))
        assert queue_pb2.DeadLetterFilter(type=text).SerializeToString()[1] == size
        await blocked(guard, packed(queue_pb2.DeadLetterFilter(type=text)))


async def test_unknown_fields_hide_nothing(guard: DataGuard, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_REDACT)
    unknown = message_pb2.Payload()
    unknown.MergeFromString(b"\x7a\x10" + CANARY.encode())
    await blocked(guard, message_pb2.Envelope(message_type="t", payload=unknown))
    message = envelope("bob", json="1")
    message.MergeFromString(b"\xfa\x07\x10" + CANARY.encode())
    await blocked(guard, message)
    message = packed(struct(a="b"))
    message.payload.protobuf.value += b"\x7a\x10" + CANARY.encode()
    await blocked(guard, message)
    message.payload.protobuf.value = b"\xff" + CANARY.encode()
    await blocked(guard, message)


async def test_trace_ids_are_no_cards(guard: DataGuard, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_BLOCK)
    context = {"traceparent": f"00-{CANARY}{CANARY}-{CANARY}-01"}
    message = envelope("bob", trace_context=context)
    assert (await guard.inspect(message, "alice")).envelope is message


# What becomes of them


async def test_a_json_is_redacted_and_stays_one(guard: DataGuard, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_REDACT)
    policy.rule(pb.DATA_ACTION_REDACT, pb.DETECTOR_EMAIL)
    text = (
        f'{{"a": "pay {SPACED} now", "n": {CANARY}, "x": 1.10, "big": 1e400, "x": [true, null],'
        f' "e": "to\\t{MAIL}", "two": "{MAIL} {CANARY}", "é": "ü"}}'
    )
    changed = (await redacted(guard, envelope("bob", json=text))).payload.json.json
    assert changed == (
        '{"a": "pay [CARD] now", "n": "[CARD]", "x": 1.10, "big": 1e400, "x": [true, null],'
        ' "e": "[EMAIL]", "two": "[EMAIL] [CARD]", "é": "ü"}'
    )
    json.loads(changed)


async def test_a_nested_struct_is_redacted(guard: DataGuard, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_REDACT)
    message = packed(
        struct(a={"b": [{"c": f"x {CANARY} y"}, int(CANARY), 1.5, True, None]}, d="kept"),
        headers={"h": f"<{SPACED}>", "other": "kept"},
    )
    changed = await redacted(guard, message)
    content = struct_pb2.Struct()
    assert changed.payload.protobuf.Unpack(content)
    assert content == struct(a={"b": [{"c": "x [CARD] y"}, "[CARD]", 1.5, True, None]}, d="kept")
    assert dict(changed.headers) == {"h": "<[CARD]>", "other": "kept"}


async def test_texts_are_redacted(guard: DataGuard, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_REDACT)
    policy.rule(pb.DATA_ACTION_REDACT, pb.DETECTOR_UNSPECIFIED, pattern="PROJECT-[0-9]+")
    text = f"é {CANARY} PROJECT-12 {base64.b64encode(SPACED.encode()).decode()}."
    expected = "é [CARD] [PATTERN] [CARD]."
    for kind in (wrappers_pb2.StringValue, wrappers_pb2.BytesValue):
        value = text if kind is wrappers_pb2.StringValue else text.encode()
        content = kind()
        changed = await redacted(guard, packed(kind(value=value)))  # type: ignore[arg-type]
        assert changed.payload.protobuf.Unpack(content)
        assert content.value in (expected, expected.encode())


async def test_what_cannot_be_redacted_is_refused(guard: DataGuard, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_REDACT)
    for message in (
        envelope("bob", message_id=CANARY),
        envelope("bob", json=f'{{"{CANARY}": 1}}'[:-1]),
        envelope("bob", json=f'"\\"{CANARY}'),
        packed(queue_pb2.DeadLetterFilter(type=CANARY)),
        envelope("bob", json=json.dumps([CANARY] * 1001)),
    ):
        await blocked(guard, message)
    message = envelope("bob", json=f'["{CANARY}"]')
    assert "[CARD]" in (await redacted(guard, message)).payload.json.json
    with pytest.raises(MeshError, match="Take") as raised:
        await guard.inspect(signed(message), "alice")
    assert raised.value.reason == "DATA_LOSS_BLOCKED"


async def test_the_strictest_of_what_hits_counts(
    guard: DataGuard, policy: Policy, told: Told
) -> None:
    both = envelope("bob", json=f'["{CANARY}", "{MAIL}"]')
    policy.rule(pb.DATA_ACTION_ALLOW, pb.DETECTOR_EMAIL, name="mails")
    assert (await guard.inspect(both, "alice")).envelope == both
    assert [each.rule for each in told.violations] == ["mails"]
    policy.rule(pb.DATA_ACTION_REDACT)
    assert json.loads((await redacted(guard, both)).payload.json.json) == ["[CARD]", MAIL]
    policy.rule(pb.DATA_ACTION_QUARANTINE, pb.DETECTOR_EMAIL, name="held")
    verdict = await guard.inspect(both, "alice")
    assert verdict.quarantine is not None
    assert verdict.quarantine.metadata == {"rule": "held", "detector": "EMAIL"}
    assert verdict.envelope == both
    policy.rule(pb.DATA_ACTION_BLOCK, name="never")
    assert (await blocked(guard, both)).metadata == {"rule": "never", "detector": "CARD"}


async def test_rules_are_for_types_of_messages(guard: DataGuard, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_BLOCK, message_types=["billing.*", "exact"])
    for message_type in ("billing.new", "exact"):
        await blocked(guard, envelope("bob", message_type, json=CANARY))
    for message_type in ("billing", "exactly", "xbilling.new"):
        message = envelope("bob", message_type, json=CANARY)
        assert (await guard.inspect(message, "alice")).envelope is message


async def test_what_is_told_holds_no_data(guard: DataGuard, policy: Policy, told: Told) -> None:
    policy.rule(pb.DATA_ACTION_BLOCK, name="cards")
    for message in (
        envelope("bob", json=f'["{CANARY}", "{SPACED}"]'),
        envelope("bob", message_id=f"m-{CANARY}", message_type="t"),
        envelope("bob", message_type=f"t-{CANARY}"),
    ):
        error = await blocked(guard, message)
        for text in (repr(error), str(error.to_status()), repr(told.violations)):
            assert CANARY not in text
            assert SPACED not in text
    first = told.violations[0]
    assert first.kind == violation_pb2.VIOLATION_KIND_DATA_LOSS
    assert first.severity == violation_pb2.SEVERITY_HIGH
    assert (first.rule, first.identity_id, first.resource) == ("cards", "alice", "agent/bob")
    assert (first.action, told.violations[2].action) == ("test.message", "")
    assert "CARD: 2" in first.message


async def test_a_large_message_is_looked_at_too(guard: DataGuard, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_REDACT)
    message = envelope("bob", json=json.dumps(["x" * 100] * 5_000 + [CANARY]))
    assert json.loads((await redacted(guard, message)).payload.json.json)[-1] == "[CARD]"


def test_complaints_about_rules() -> None:
    rules = [
        pb.DataRule(name="a", action=pb.DATA_ACTION_BLOCK),
        pb.DataRule(name="a", action=pb.DATA_ACTION_BLOCK, detector=pb.DETECTOR_CARD, pattern="x"),
        pb.DataRule(name="b", action=pb.DATA_ACTION_BLOCK, pattern="("),
        pb.DataRule(name="c", action=pb.DATA_ACTION_BLOCK, pattern="x+"),
    ]
    fields = [field for field, _ in complaints(pb.Policy(data_rules=rules))]
    start = "policy.data_rules"
    assert fields == [f"{start}[0]", f"{start}[1].name", f"{start}[1]", f"{start}[2].pattern"]


# On the service


async def letters(mesh: Mesh, metadata: Any = ADMIN) -> list[queue_pb2.DeadLetter]:
    answer = await mesh.stub.ListDeadLetters(queue_pb2.ListDeadLettersRequest(), metadata=metadata)
    return list(answer.dead_letters)


async def replayed(mesh: Mesh, metadata: Any) -> int:
    request = queue_pb2.ReplayDeadLettersRequest(
        filter=queue_pb2.DeadLetterFilter(reason="QUARANTINED")
    )
    answer = await mesh.stub.ReplayDeadLetters(request, metadata=metadata)
    return int(answer.replayed)


async def test_a_blocked_message_is_nowhere(
    mesh: Mesh, policy: Policy, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    policy.rule(pb.DATA_ACTION_BLOCK, name="cards")
    await mesh.register("bob")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await mesh.send(recipient="bob", json=f'["{CANARY}"]')
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert CANARY not in repr(raised.value)
    assert CANARY not in str(raised.value.trailing_metadata())
    with refused("PERMISSION_DENIED", "DATA_LOSS_BLOCKED"):
        await mesh.stub.BroadcastMessage(
            message_pb2.BroadcastMessageRequest(envelope=envelope(json=f'["{CANARY}"]')),
            metadata=ALICE,
        )
    assert not await redis.keys("*:inbox:*:?")
    assert not await letters(mesh)
    assert CANARY not in caplog.text
    # A direct message is kept nowhere, and not looked at.
    await mesh.send(recipient="bob", json=f'["{CANARY}"]', delivery_mode=DIRECT)


async def test_a_redacted_message_arrives_without_the_data(mesh: Mesh, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_REDACT)
    async with mesh.connected("bob", initial_credit=5) as bob:
        sent = await mesh.send(recipient="bob", json=f'["{CANARY}"]')
        assert not sent.quarantined
        assert (await bob.delivery()).envelope.payload.json.json == '["[CARD]"]'
        await mesh.stub.BroadcastMessage(
            message_pb2.BroadcastMessageRequest(envelope=envelope(json=f'["{CANARY}"]')),
            metadata=ALICE,
        )
        assert (await bob.delivery()).envelope.payload.json.json == '["[CARD]"]'


async def test_a_quarantined_message_waits_until_an_operator_lets_it_go(
    mesh: Mesh, policy: Policy, redis: Redis, told: Told
) -> None:
    policy.rule(pb.DATA_ACTION_QUARANTINE, name="cards")
    lease = await mesh.register("bob", metadata_=BOB)
    for _ in range(3):
        sent = await mesh.send(recipient="bob", json=f'["{CANARY}"]', message_id="m1")
        assert sent.quarantined
    assert not await redis.keys("*:inbox:*:?")
    (letter,) = await letters(mesh)
    assert MeshError.from_status(letter.error).reason == "QUARANTINED"
    assert (letter.envelope.message_id, letter.envelope.sender) == ("m1", "alice")
    assert (letter.origin, letter.agent_id, letter.attempts) == ("agent/bob", "", 0)
    # Its sender sees it, its recipient does not, and neither can let it go.
    assert len(await letters(mesh, ALICE)) == 1
    assert not await letters(mesh, BOB)
    assert await replayed(mesh, ALICE) == await replayed(mesh, BOB) == 0
    assert not told.noted
    assert await replayed(mesh, OPERATOR) == 1
    assert told.noted == [("quarantine.released", "operator", "agent/bob")]
    assert {each.outcome for each in told.violations} == {"FAILED_PRECONDITION"}
    assert not await letters(mesh)
    async with mesh.connected("bob", lease_id=lease, metadata=BOB) as bob:
        delivery = await bob.delivery()
        assert delivery.envelope.payload.json.json == f'["{CANARY}"]'
        assert (await bob.answer(delivery)).status.code == 0
    # Said again, it is the message that was let go.
    assert (await mesh.send(recipient="bob", json=f'["{CANARY}"]', message_id="m1")).quarantined
    assert not await letters(mesh)


async def test_a_quarantined_message_can_be_purged(mesh: Mesh, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_QUARANTINE)
    await mesh.register("bob", metadata_=BOB)
    await mesh.send(recipient="bob", json=CANARY)
    request = queue_pb2.PurgeDeadLettersRequest(
        filter=queue_pb2.DeadLetterFilter(reason="QUARANTINED")
    )
    assert (await mesh.stub.PurgeDeadLetters(request, metadata=BOB)).purged == 0
    assert (await mesh.stub.PurgeDeadLetters(request, metadata=OPERATOR)).purged == 1


async def test_who_waits_for_an_answer_is_told_of_the_quarantine(
    mesh: Mesh, policy: Policy
) -> None:
    policy.rule(pb.DATA_ACTION_QUARANTINE)
    await mesh.register("bob")
    with refused("FAILED_PRECONDITION", "QUARANTINED"):
        await mesh.send(
            recipient="bob", json=CANARY, reply_timeout=duration_pb2.Duration(seconds=20)
        )
    assert len(await letters(mesh)) == 1


async def test_a_quarantined_broadcast_is_held_for_each(mesh: Mesh, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_QUARANTINE)
    await mesh.register("bob")
    await mesh.register("carol")
    answer = await mesh.stub.BroadcastMessage(
        message_pb2.BroadcastMessageRequest(envelope=envelope(json=CANARY)), metadata=ALICE
    )
    assert (answer.quarantined, answer.recipients) == (True, 2)
    assert {each.origin for each in await letters(mesh)} == {"agent/bob", "agent/carol"}


async def test_a_quarantine_is_bounded(
    redis: Redis, shared_valkey: str, policy: Policy, guard: DataGuard
) -> None:
    policy.rule(pb.DATA_ACTION_QUARANTINE)
    async with agents(shared_valkey, mailbox_capacity=2, data=guard) as mesh:
        await mesh.register("bob")
        for _ in range(2):
            await mesh.send(recipient="bob", json=CANARY)
        with refused("RESOURCE_EXHAUSTED", "TOO_MANY_DEAD_LETTERS"):
            await mesh.send(recipient="bob", json=CANARY)
        assert len(await letters(mesh)) == 2


@pytest.mark.parametrize("action", [pb.DATA_ACTION_BLOCK, pb.DATA_ACTION_QUARANTINE])
async def test_answers_are_looked_at_as_well(mesh: Mesh, policy: Policy, action: Any) -> None:
    policy.rule(action, message_types=["answer"])
    reason = "DATA_LOSS_BLOCKED" if action == pb.DATA_ACTION_BLOCK else "QUARANTINED"
    await mesh.register("carol")
    async with mesh.connected("bob", initial_credit=5) as bob:
        await mesh.send(sender="carol", recipient="bob")
        answer = envelope(message_type="answer", json=CANARY)
        settled = await bob.answer(await bob.delivery(), reply=answer)
        assert MeshError.from_status(settled.status).reason == reason
        await mesh.send(recipient="bob", message_type="next")
        # The message that was answered does not come again.
        delivery = await bob.delivery()
        assert delivery.envelope.message_type == "next"
        await bob.answer(delivery, reply=envelope(message_type="harmless"))
    held = [each.envelope.message_type for each in await letters(mesh)]
    assert held == (["answer"] if action == pb.DATA_ACTION_QUARANTINE else [])


async def test_who_waits_is_told_why_there_is_no_answer(mesh: Mesh, policy: Policy) -> None:
    policy.rule(pb.DATA_ACTION_BLOCK)
    async with mesh.connected("bob") as bob:
        call = mesh.stub.SendMessage(
            message_pb2.SendMessageRequest(
                envelope=envelope("bob"), reply_timeout=duration_pb2.Duration(seconds=20)
            ),
            metadata=ALICE,
        )
        await bob.answer(await bob.delivery(), reply=envelope(message_type="answer", json=CANARY))
        with refused("PERMISSION_DENIED", "DATA_LOSS_BLOCKED"):
            await call


# Who may send what to whom


async def test_messages_that_the_policy_does_not_permit(
    mesh: Mesh, policy: Policy, told: Told
) -> None:
    for sender, recipient, allow in (("alice", "boss", False), ("*", "*", True)):
        policy.policy.message_permissions.add(
            sender=sender, recipient=recipient, message_type="order.*", allow=allow
        )
    policy.policy_version += 1
    await mesh.register("boss")
    await mesh.register("bob")
    for mode in (0, DIRECT):
        with refused("PERMISSION_DENIED", "MESSAGE_NOT_ALLOWED"):
            await mesh.send(recipient="boss", message_type="order.now", delivery_mode=mode)
    assert [each.kind for each in told.violations] == [violation_pb2.VIOLATION_KIND_MESSAGE] * 2
    await mesh.send(recipient="boss", message_type="greeting")
    await mesh.send(recipient="bob", message_type="order.now")
    # A broadcast leaves out who must not get it.
    answer = await mesh.stub.BroadcastMessage(
        message_pb2.BroadcastMessageRequest(envelope=envelope(message_type="order.all")),
        metadata=ALICE,
    )
    assert answer.recipients == 1


async def test_an_answer_is_no_way_around_the_rules(mesh: Mesh, policy: Policy) -> None:
    policy.policy.message_permissions.add(
        sender="bob", recipient="boss", message_type="*", allow=False
    )
    policy.policy_version += 1
    await mesh.register("boss")
    async with mesh.connected("bob", initial_credit=5) as bob:
        await mesh.send(recipient="bob", reply_to="boss")
        settled = await bob.answer(await bob.delivery(), reply=envelope(message_type="order.now"))
        assert MeshError.from_status(settled.status).reason == "MESSAGE_NOT_ALLOWED"
        # Who asked gets its answer, whatever the rules say.
        await mesh.send(sender="boss", recipient="bob")
        settled = await bob.answer(await bob.delivery(), reply=envelope(message_type="answer"))
        assert settled.status.code == 0
    waiting = await mesh.redis.keys("*:inbox:boss:?")
    assert len(waiting) == 1
