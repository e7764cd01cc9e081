"""Figures of conversations, beside the same figures computed another way."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from fractions import Fraction

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client import AsyncMesh
from bxmesh.client.conversations import AgentAnswer, ConversationStats
from bxmesh.registry.v1.agent_definition_pb2 import ModelSettings
from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL
from bxmesh.server.conversations.archive import Archive, open_archive
from bxmesh.server.conversations.archive.statistics import statistics
from bxmesh.server.database import Database, open_database
from bxmesh.server.http.models.archive import Statistics
from bxmesh.server.security.identities import Identity
from tests.conversations.archived import ALICE, BOB, CAROL, OPERATOR
from tests.conversations.talk import Talk, spec, taking_part
from tests.host.conftest import mesh, served

__all__ = ["mesh", "served"]

Stats = archive_pb.GetConversationStatsResponse

US = 1_000_000
HOUR, DAY = 3600 * US, 86_400 * US
NOON = 20_000 * DAY + 12 * HOUR
COMPLETED, FAILED, CANCELLED = (
    pb.CONVERSATION_STATE_COMPLETED,
    pb.CONVERSATION_STATE_FAILED,
    pb.CONVERSATION_STATE_CANCELLED,
)
RUNNING, PENDING = pb.CONVERSATION_STATE_RUNNING, pb.CONVERSATION_STATE_PENDING


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url) as opened:
        yield opened


@pytest.fixture
async def archive(database: Database) -> AsyncIterator[Archive]:
    async with open_archive(database, None) as opened:
        yield opened


def at(microseconds: int) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(microseconds)
    return time


def answer(begin: int, end: int, model: str = "", *, failed: bool = False) -> pb.Turn:
    """One answer, by times in microseconds."""
    turn = pb.Turn(
        turn=1, participant_id="ann", text="said", start_time=at(begin), end_time=at(end)
    )
    turn.model, turn.input_tokens, turn.output_tokens = model, 7, 3
    if failed:
        turn.error.code = 14
    return turn


def held(
    name: str,
    begin: int,
    end: int,
    turns: Iterable[pb.Turn] = (),
    state: pb.ConversationState.ValueType = COMPLETED,
    owner: str = "alice",
    *,
    all_see: bool = False,
) -> pb.Conversation:
    """A conversation, by times in microseconds."""
    made = pb.Conversation(
        conversation_id=name,
        spec=pb.ConversationSpec(message="Which?"),
        state=state,
        turns=turns,
        owner=owner,
        create_time=at(begin),
        revision=1,
    )
    if all_see:
        made.spec.visibility = VISIBILITY_ALL
    if state >= COMPLETED:
        made.end_time.CopyFrom(at(end))
    return made


def quantile(values: list[int], part: Fraction) -> float:
    """Between the two values that are nearest to a part of the way from the least to the most."""
    place = part * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return float(values[low] + (place - low) * (values[high] - values[low])) / US


def seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def micros(time: Timestamp) -> int:
    return time.ToMicroseconds()


def check(
    found: Stats, conversations: Iterable[pb.Conversation], now: int, period: int = DAY
) -> None:
    """Compares figures with those that are counted here, one conversation at a time."""
    kept = list(conversations)
    since = now - period
    today = datetime.fromtimestamp(now // US, UTC).date()
    ended = [one for one in kept if one.state >= COMPLETED and micros(one.end_time) >= since]
    said = [
        turn
        for one in kept
        for turn in one.turns
        if turn.participant_id and micros(turn.end_time) >= since
    ]
    good = [turn for turn in said if not turn.HasField("error")]
    latencies = sorted(micros(turn.end_time) - micros(turn.start_time) for turn in good)
    assert found.total_conversations == len(kept)
    assert found.today_conversations == sum(
        datetime.fromtimestamp(micros(one.create_time) // US, UTC).date() == today for one in kept
    )
    assert found.recent_conversations == sum(micros(one.create_time) >= since for one in kept)
    assert found.running_conversations == sum(one.state in (PENDING, RUNNING) for one in kept)
    assert (found.answers, found.errors) == (len(good), len(said) - len(good))
    assert found.error_rate == pytest.approx((len(said) - len(good)) / max(1, len(said)))
    reached = sum(one.state == COMPLETED for one in ended)
    assert found.success_rate == pytest.approx(reached / max(1, len(ended)))
    took = [micros(one.end_time) - micros(one.create_time) for one in ended]
    near(found.average_duration, sum(took) / max(1, len(took)) / US)
    near(found.average_latency, sum(latencies) / max(1, len(latencies)) / US)
    for field, part in (
        (found.latency_p50, Fraction(1, 2)),
        (found.latency_p95, Fraction(95, 100)),
        (found.latency_p99, Fraction(99, 100)),
    ):
        near(field, quantile(latencies, part) if latencies else 0.0)
    assert set(found.models) == {turn.model for turn in said} - {""}
    for name, figures in found.models.items():
        mine = [turn for turn in good if turn.model == name]
        asked = [turn for turn in said if turn.model == name]
        assert (figures.answers, figures.errors) == (len(mine), len(asked) - len(mine))
        assert figures.tokens == sum(turn.input_tokens + turn.output_tokens for turn in asked)
        times = [micros(turn.end_time) - micros(turn.start_time) for turn in mine]
        near(figures.average_duration, sum(times) / max(1, len(times)) / US)


def near(duration: Duration, wanted: float) -> None:
    assert seconds(duration) == pytest.approx(wanted, abs=2e-6)


async def test_none_at_all(database: Database, archive: Archive) -> None:
    for identity in (None, OPERATOR, ALICE):
        assert await archive.statistics(identity) == Stats()
        assert await statistics(database, identity, 60.0, NOON / US) == Stats()


async def test_none_that_ended_or_answered(database: Database, archive: Archive) -> None:
    open_ones = [
        held("waiting", NOON - 5, 0, state=PENDING),
        held("asking", NOON - 9, 0, [answer(NOON - 8, NOON - 7, "m", failed=True)], state=RUNNING),
    ]
    for one in open_ones:
        await archive.save(one)
    found = await statistics(database, None, 0.0, NOON / US)
    check(found, open_ones, NOON)
    assert (found.error_rate, found.success_rate) == (1.0, 0.0)
    assert not found.HasField("average_latency")
    assert not found.HasField("latency_p99")


async def test_where_a_day_and_24_hours_begin(database: Database, archive: Archive) -> None:
    midnight, since = NOON - 12 * HOUR, NOON - DAY
    edges = {
        "today": midnight,
        "yesterday": midnight - 1,
        "within": since,
        "before": since - 1,
        "now": NOON,
    }
    kept = [
        held(name, edge, max(edge, since) + HOUR, [answer(edge - HOUR, edge, name)])
        for name, edge in edges.items()
    ]
    # Begun before the period, ended on its edge, and just before it.
    kept.append(held("ended", since - HOUR, since, state=FAILED))
    kept.append(held("ended before", since - HOUR, since - 1, state=FAILED))
    for one in kept:
        await archive.save(one)
    found = await statistics(database, None, 0.0, NOON / US)
    check(found, kept, NOON)
    assert (found.today_conversations, found.recent_conversations) == (2, 4)
    assert set(found.models) == {"today", "yesterday", "within", "now"}
    assert found.success_rate == pytest.approx(5 / 6)
    # The day is that of now, whatever the period.
    first = await statistics(database, None, 60.0, midnight / US)
    assert first.today_conversations == 2
    last = await statistics(database, None, 60.0, (midnight - 1) / US)
    assert last.today_conversations == 7


async def test_many(database: Database, archive: Archive) -> None:
    dice = random.Random(7)
    kept = []
    for number in range(120):
        begin = NOON - dice.randrange(3 * DAY)
        state = dice.choice([COMPLETED, COMPLETED, FAILED, CANCELLED, RUNNING, PENDING])
        turns = []
        for _ in range(dice.randrange(6)):
            asked = begin + dice.randrange(HOUR)
            turns.append(
                answer(
                    asked,
                    asked + dice.randrange(1, 600 * US),
                    dice.choice(["", "openai:gpt-5", "anthropic:claude"]),
                    failed=dice.random() < 0.2,
                )
            )
        if turns:
            # The next question, which is nobody's answer.
            turns.append(pb.Turn(turn=2, text="And?", end_time=at(begin + HOUR)))
        kept.append(
            held(
                f"c{number}",
                begin,
                begin + dice.randrange(2 * HOUR),
                turns,
                state,
                dice.choice(["alice", "bob"]),
                all_see=dice.random() < 0.3,
            )
        )
        await archive.save(kept[-1])

    def seen(identity: Identity) -> list[pb.Conversation]:
        return [
            one
            for one in kept
            if identity is OPERATOR
            or one.owner == identity.id
            or one.spec.visibility == VISIBILITY_ALL
        ]

    for identity in (OPERATOR, ALICE, BOB, CAROL):
        for period in (60 * US, DAY, 2 * DAY, 90 * DAY):
            found = await statistics(database, identity, period / US, NOON / US)
            check(found, seen(identity), NOON, period)


async def test_of_conversations_that_were_held(mesh: AsyncMesh) -> None:
    talk = Talk(mesh)

    def model(name: str, tokens: int) -> AgentAnswer:
        return AgentAnswer(text="Yes.", model=name, input_tokens=tokens, output_tokens=1)

    async with taking_part(
        mesh,
        one=lambda question: model("small", 10).model_dump(),
        two=lambda question: model("large", 20).model_dump(),
        broken=lambda question: ValueError("no idea"),
    ):
        await talk.hold(spec("one", "two", turns=2))
        await talk.hold(spec("one", "two", "broken"))
        await talk.hold(spec("broken"))
    # A model that no host lends, asked by its name.
    nobody = spec()
    nobody.participants.add(participant_id="lent", model=ModelSettings(model="far:away"))
    nobody.budget.max_answer_duration.FromMilliseconds(300)
    failed = await talk.hold(nobody)
    assert failed.state == FAILED

    async def exported() -> tuple[int, list[pb.Conversation]]:
        stream = talk.stub.ExportConversations(
            archive_pb.ExportConversationsRequest(), metadata=mesh._connection.metadata
        )
        lines = [line.conversation async for line in stream]
        return time.time_ns() // 1000 // DAY, lines

    # Conversations of others may go on, and days end.
    before = await exported()
    while True:
        found = await talk.call("GetConversationStats", archive_pb.GetConversationStatsRequest())
        after = await exported()
        if after == before:
            break
        before = after
    check(found, after[1], time.time_ns() // 1000)
    assert found.models["small"].answers >= 3
    assert found.models["far:away"].errors == 1
    assert found.errors >= 3


@pytest.mark.parametrize("kind", [ConversationStats, Statistics])
def test_clients_and_http_tell_all_figures(
    kind: type[ConversationStats] | type[Statistics],
) -> None:
    message = Stats(today_conversations=3, error_rate=0.25, average_latency=Duration(seconds=2))
    told = kind.from_message(message)
    assert (told.today_conversations, told.error_rate, told.average_latency) == (3, 0.25, 2.0)
