"""Whether language models answer.

None is asked for the report's sake, which would cost money: it goes by what became of those that
conversations asked, and by the circuits of those who ask models.
"""

from __future__ import annotations

import time
from collections import Counter

from redis.asyncio import Redis
from sqlalchemy import Connection, func, select

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.conversations.question import LANGUAGE_MODEL
from bxmesh.server.database import Database
from bxmesh.server.database.tables import CONVERSATION_MESSAGES
from bxmesh.server.doctor.findings import fail, ok, warn
from bxmesh.server.errors import MeshError
from bxmesh.server.health_report.report import Check, Examined
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.security.circuit_breakers import (
    CircuitBreakers,
    agent_target,
    capability_target,
)
from bxmesh.server.streams.connection import redis_errors

__all__ = ["model_providers"]

_M = CONVERSATION_MESSAGES.c
_NAME = "model_providers"
_LATELY_SECONDS = 600.0
_MOST_FAILURES = 200
_MOST_TOLD = 5
_MOST_NAME = 100
_PROVIDERS = frozenset(
    {
        "EXTRA_MISSING",
        "MODEL_KEY_REFUSED",
        "MODEL_NOT_CONFIGURED",
        "MODEL_REJECTED",
        "MODEL_UNAVAILABLE",
        "OUTPUT_INVALID",
    }
)
"""Why there is no answer when it is the model's, its provider's or its host's doing."""
_LATE = "ANSWER_TIMED_OUT"
_REMEDY = (
    "Look at the log of the host, at its key for the provider, and at the provider's own status."
)


def model_providers(redis: Redis, database: Database, circuits: CircuitBreakers) -> Check:
    """Whether the language models that conversations asked in the last ten minutes answered."""
    agents = LiveAgents(redis)

    async def check() -> Examined:
        since = int((time.time() - _LATELY_SECONDS) * 1e6)
        answers, failures = await database.read(lambda connection: _outcomes(connection, since))
        failed = failures.total()
        with redis_errors():
            live = (await agents.snapshot()).agents
        ours = {capability_target(LANGUAGE_MODEL)}
        for agent in live:
            offered = any(one.name == LANGUAGE_MODEL for one in agent.capabilities)
            if agent.definition_id or offered:
                ours.add(agent_target(agent.agent_id))
        opened = sorted(ours.intersection(await circuits.open_targets()))
        details = {
            "answers": str(answers),
            "failures": str(failed),
            "open_circuits": str(len(opened)),
            "hosted_agents": str(len(ours) - 1),
        }
        findings = []
        if failed:
            told = ", ".join(
                f"{who} ({reason}, {count})"
                for (who, reason), count in failures.most_common(_MOST_TOLD)
            )
            message = f"{failed} of {failed + answers} answers failed in ten minutes: {told}"
            findings.append((warn if answers else fail)(_NAME, message, _REMEDY))
        if opened:
            message = f"circuits are open: {', '.join(opened[:_MOST_TOLD])}"
            findings.append(warn(_NAME, message, _REMEDY))
        fine = ok(_NAME, f"{answers} answers in ten minutes, none failed")
        return Examined(findings or [fine], details)

    return check


def _outcomes(connection: Connection, since: int) -> tuple[int, Counter[tuple[str, str]]]:
    """Returns how many answers models gave, and who failed to give one, with the reason."""
    lately = _M.end_time >= since
    answered = select(func.count()).where(lately, _M.failed == 0, _M.model != "")
    failed = (
        select(_M.said)
        .where(lately, _M.failed != 0)
        .order_by(_M.end_time.desc())
        .limit(_MOST_FAILURES)
    )
    failures: Counter[tuple[str, str]] = Counter()
    for said in connection.scalars(failed):
        turn = pb.Turn.FromString(said)
        reason = MeshError.from_status(turn.error).reason
        if reason in _PROVIDERS or (reason == _LATE and turn.model):
            failures[(turn.model or turn.participant_id)[:_MOST_NAME], reason] += 1
    return connection.scalar(answered) or 0, failures
