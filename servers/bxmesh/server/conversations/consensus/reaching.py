"""One answer out of many."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from bxmesh.agent.v1.conversation_pb2 import ConsensusMethod, ConsensusSettings
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.server.conversations.consensus.answers import Answer, Judge, Meaning
from bxmesh.server.conversations.consensus.decision import (
    Decision,
    confidence_of,
    evidence_of,
)
from bxmesh.server.conversations.consensus.grouping import SIMILARITY, by_key, by_meaning
from bxmesh.server.conversations.consensus.numeric import in_one_unit, median, read_number
from bxmesh.server.conversations.consensus.outcome import Outcome
from bxmesh.server.conversations.consensus.polls import Poll, equal_votes, votes_by_weight
from bxmesh.server.conversations.consensus.ranked import ranked
from bxmesh.server.conversations.consensus.structured import reader_for, structured
from bxmesh.server.conversations.consensus.ties import TieBreaker
from bxmesh.server.conversations.consensus.voices import Reader, Table, read_any, seat
from bxmesh.server.errors import failed_precondition, invalid_argument

__all__ = ["consensus"]

# Earlier turns that are looked at, the latest ones.
_MOST_TURNS = 16


async def consensus(
    answers: Sequence[Answer],
    settings: ConsensusSettings,
    *,
    participants: Sequence[str],
    question: str = "",
    earlier: Sequence[Sequence[Answer]] = (),
    judge: Judge | None = None,
    meaning: Meaning | None = None,
    similarity: float = SIMILARITY,
) -> Outcome:
    """Returns what the answers of one turn come to; those of earlier turns say who kept to what.

    `participants` are all of the conversation, in its order: who has not answered counts against the
    quorum. The judge is asked about ties, and by the judge's method; `meaning` tells texts that mean the
    same. Where either fails it goes on as if there were none.

    Raises MeshError: FAILED_PRECONDITION, NO_QUORUM when too few have answered, NO_VOTES when
    all who have weigh nothing; INVALID_ARGUMENT for settings that lack what their method needs.
    Raises ValueError for answers of others than the participants, or two of one.
    """
    method = settings.method or ConsensusMethod.CONSENSUS_METHOD_MAJORITY
    breaker = TieBreaker(judge, question, participants)
    read = _reader(method, settings, judge)
    # Large answers take a while to read, in which others are to be served.
    (now, silent), *seated = await asyncio.to_thread(
        lambda: [seat(turn, participants, read) for turn in (answers, *earlier[-_MOST_TURNS:])]
    )
    before = [voices for voices, _ in seated]
    table, unit = Table(now, before, max(0, len(earlier) - _MOST_TURNS)), ""
    if method == ConsensusMethod.CONSENSUS_METHOD_NUMERIC:
        table, unit, others = in_one_unit(table)
        for voice in others:
            silent[voice.answer.participant_id] = f"its number is in {voice.unit}, not in {unit}"
    _require_quorum(len(table.now), settings.quorum, participants, silent)

    if method == ConsensusMethod.CONSENSUS_METHOD_NUMERIC:
        groups = Poll(table, by_key(table.voices)).candidates(breaker)
        decision = replace(median(table, unit), groups=groups)
    elif method == ConsensusMethod.CONSENSUS_METHOD_STRUCTURED:
        schema = Schema(json_schema=settings.answer_schema)
        decision = await structured(table, schema, breaker)
    else:
        decision = await _vote(method, table, await by_meaning(table, meaning, similarity), breaker)
    return _outcome(decision, method, participants, table, silent, breaker)


def _reader(
    method: ConsensusMethod.ValueType, settings: ConsensusSettings, judge: Judge | None
) -> Reader:
    """Returns what reads answers for a method; raises MeshError where it lacks something."""
    if method == ConsensusMethod.CONSENSUS_METHOD_NUMERIC:
        return read_number
    if method == ConsensusMethod.CONSENSUS_METHOD_STRUCTURED:
        if not settings.HasField("answer_schema"):
            raise invalid_argument("consensus.answer_schema", "is needed for the structured method")
        return reader_for(Schema(json_schema=settings.answer_schema))
    if method == ConsensusMethod.CONSENSUS_METHOD_JUDGE and judge is None:
        raise invalid_argument("consensus.judge", "is needed for the judge's method")
    return read_any


async def _vote(
    method: ConsensusMethod.ValueType, table: Table, groups: dict[str, int], breaker: TieBreaker
) -> Decision:
    if method == ConsensusMethod.CONSENSUS_METHOD_RANKED:
        return await ranked(table, groups, breaker)
    weighted = method == ConsensusMethod.CONSENSUS_METHOD_WEIGHTED
    poll = Poll(table, groups, votes_by_weight if weighted else equal_votes)
    winner = None
    if method == ConsensusMethod.CONSENSUS_METHOD_JUDGE and len(poll.members) > 1:
        winner = await breaker.judge(poll.candidates(breaker))
    return poll.decision(winner or await poll.winner(breaker), breaker)


def _require_quorum(
    count: int, quorum: int, participants: Sequence[str], silent: dict[str, str]
) -> None:
    needed = quorum or len(participants) // 2 + 1
    if count >= needed:
        return
    missing = [name for name in participants if name in silent]
    reasons = "; ".join(f"{name}: {silent[name]}" for name in missing)
    raise failed_precondition(
        f"{count} of {len(participants)} participants have answered, and {needed} are needed ({reasons})",
        reason="NO_QUORUM",
        subject="consensus",
        answered=str(count),
        needed=str(needed),
        missing=",".join(missing),
    )


def _outcome(
    decision: Decision,
    method: ConsensusMethod.ValueType,
    participants: Sequence[str],
    table: Table,
    silent: dict[str, str],
    breaker: TieBreaker,
) -> Outcome:
    return Outcome(
        answer=decision.answer,
        text=decision.text,
        confidence=confidence_of(decision),
        method=method,
        groups=tuple(decision.groups),
        tie_break=breaker.used,
        spread=decision.spread,
        evidence=evidence_of(
            table.now[position].answer for position in sorted(decision.supporters)
        ),
        supporters=tuple(participants[position] for position in sorted(decision.supporters)),
        abstentions={name: silent[name] for name in participants if name in silent},
        outliers=tuple(participants[position] for position in sorted(decision.outliers)),
        judge_reasons=tuple(breaker.reasons),
    )
