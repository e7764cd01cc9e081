"""Figures over the conversations that are kept."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection, case, func, select

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.conversations.archive.conditions import visible
from bxmesh.server.conversations.states import ENDED
from bxmesh.server.database import Database
from bxmesh.server.database.tables import CONVERSATION_MESSAGES, CONVERSATIONS
from bxmesh.server.security.identities import Identity

__all__ = ["statistics"]

_C, _M = CONVERSATIONS.c, CONVERSATION_MESSAGES.c
_DAY = 86400.0
# Of more answers than that, the last ones tell.
_MOST_TIMED = 100_000
_MOST_MODELS = 100


async def statistics(
    database: Database,
    identity: Identity | None,
    period: float = 0.0,
    now: float | None = None,
) -> archive_pb.GetConversationStatsResponse:
    """Returns the figures of what an identity sees, over a period in seconds, 0 for a day, that ends
    now: in seconds since 1970, or None for the clock's. Open circuits are not ours to tell. Raises
    MeshError UNAVAILABLE without the database."""
    until = int((time.time() if now is None else now) * 1e6)
    since = until - int((period or _DAY) * 1e6)
    midnight = until - until % int(_DAY * 1e6)
    return await database.read(lambda connection: _figures(connection, identity, since, midnight))


def _figures(
    connection: Connection, identity: Identity | None, since: int, midnight: int
) -> archive_pb.GetConversationStatsResponse:
    answer = archive_pb.GetConversationStatsResponse()
    seen = visible(identity)
    _count_conversations(connection, seen, since, midnight, answer)
    answered = (
        select(_M.model, _M.failed, _M.duration, _M.tokens, _M.end_time)
        .join(CONVERSATIONS, _C.conversation_id == _M.conversation_id)
        .where(seen, _M.end_time >= since)
    ).subquery()
    a = answered.c
    good = case((a.failed == 0, 1), else_=0)
    timed = (a.failed == 0) & (a.duration >= 0)
    rows = connection.execute(
        select(
            a.model,
            func.sum(good),
            func.sum(a.failed),
            func.sum(a.tokens),
            func.avg(case((timed, a.duration))),
        )
        .group_by(a.model)
        .order_by(func.count().desc(), a.model)
    ).all()
    for model, *sums, duration in rows:
        # PostgreSQL's sums are decimals.
        answers, errors, tokens = map(int, sums)
        answer.answers += answers
        answer.errors += errors
        if model and len(answer.models) < _MOST_MODELS:
            figures = answer.models[model]
            figures.answers, figures.errors, figures.tokens = answers, errors, tokens
            _set(figures.average_duration, duration)
    if asked := answer.answers + answer.errors:
        answer.error_rate = answer.errors / asked
    durations = connection.scalars(
        select(a.duration).where(timed).order_by(a.end_time.desc()).limit(_MOST_TIMED)
    ).all()
    if durations:
        _set(answer.average_latency, connection.scalar(select(func.avg(a.duration)).where(timed)))
        quantiles = np.quantile(np.array(durations, np.float64), (0.5, 0.95, 0.99))
        for field, quantile in zip(
            (answer.latency_p50, answer.latency_p95, answer.latency_p99), quantiles, strict=True
        ):
            _set(field, quantile)
    return answer


def _count_conversations(
    connection: Connection,
    seen: Any,
    since: int,
    midnight: int,
    answer: archive_pb.GetConversationStatsResponse,
) -> None:
    def count(*conditions: Any) -> int:
        return (
            connection.scalar(
                select(func.count()).select_from(CONVERSATIONS).where(seen, *conditions)
            )
            or 0
        )

    answer.total_conversations = count()
    answer.recent_conversations = count(_C.create_time >= since)
    answer.today_conversations = count(_C.create_time >= midnight)
    answer.running_conversations = count(
        _C.state.in_([pb.CONVERSATION_STATE_PENDING, pb.CONVERSATION_STATE_RUNNING])
    )
    # In one, as others go on meanwhile and a part is never more than all.
    ended, reached, mean = connection.execute(
        select(
            func.count(),
            func.sum(case((_C.state == pb.CONVERSATION_STATE_COMPLETED, 1), else_=0)),
            func.avg(_C.end_time - _C.create_time),
        ).where(seen, _C.state.in_(ENDED), _C.end_time >= since)
    ).one()
    if ended:
        answer.success_rate = int(reached) / ended
        _set(answer.average_duration, mean)


def _set(field: Any, microseconds: Any) -> None:
    if microseconds is not None:
        field.FromTimedelta(timedelta(microseconds=max(0.0, float(microseconds))))
