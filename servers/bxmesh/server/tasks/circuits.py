"""What becomes of attempts at tasks, told to the circuit breakers of agents and capabilities.

An attempt counts as a failure of its agent, and of each capability that the task asked for, when the
agent had it and its time ran out, when the agent had taken it and was lost, and when it was reported
as failed. It counts for nothing when the task was cancelled, when the agent was lost before it took
it, and when the report blames the task: what no agent could do says nothing of this one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.server.errors import MeshError
from bxmesh.server.security.circuit_breakers import (
    CircuitBreakers,
    agent_target,
    capability_target,
)
from bxmesh.server.tasks.demand import Demand

_BLAMES_TASK = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)
_SUCCEEDED, _FAILED = 1, -1


def targets(demand: Demand, agent: Agent | str) -> list[str]:
    """Returns what an attempt of an agent at such a task uses."""
    agent_id = agent if isinstance(agent, str) else agent.agent_id
    return [agent_target(agent_id), *map(capability_target, demand.capabilities)]


def attempt_name(task_id: str, attempt: int) -> str:
    """Names an attempt as a trial."""
    return f"{task_id}:{attempt}"


async def tell_circuits(
    circuits: CircuitBreakers, ended: Iterable[Sequence[Any]], error: MeshError | None = None
) -> None:
    """Tells of the attempts that a script ended; the error is what an agent reported."""
    blames_task = error is not None and error.code in _BLAMES_TASK
    calls = []
    for agent_id, task_id, attempt, demand, how in ended:
        name = attempt_name(task_id.decode(), attempt)
        if how == _SUCCEEDED:
            tell = circuits.succeeded
        elif how == _FAILED and not blames_task:
            tell = circuits.failed
        else:
            tell = circuits.abandoned
        for target in targets(Demand.parse(demand), agent_id.decode()):
            calls.append(tell(target, name))
    if calls:
        await asyncio.gather(*calls)
