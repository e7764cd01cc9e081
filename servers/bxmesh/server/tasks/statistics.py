"""Figures of tasks: what there is, and what became of what has ended."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.tasks.keys import SPANS
from bxmesh.server.tasks.store import TaskStore

_DEFAULT_SECONDS = 3600.0
_MOST_AGENTS = 1000
_PAGE = 2000
_GIVEN_UP = (0, pb.TASK_STATE_FAILED, pb.TASK_STATE_TIMED_OUT)


@dataclass
class _Work:
    """What one agent did; times in ms."""

    busy: float = 0.0
    slots: int = 1
    completed: int = 0
    failed: int = 0


@dataclass
class _Sum:
    start: float
    ended: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    work: defaultdict[str, _Work] = field(default_factory=lambda: defaultdict(_Work))

    def add(self, end: int, fields: dict[bytes, bytes]) -> None:
        """Takes the end of a task, or of an attempt at one, in."""
        state, assigned = int(fields[b"state"]), float(fields[b"assigned"]) / 1000
        if state:
            self.ended[state] += 1
            self.latencies.append(max(0.0, end - float(fields[b"created"]) / 1000))
        if agent_id := fields[b"agent"].decode():
            work = self.work[agent_id]
            work.busy += max(0.0, end - max(assigned, self.start))
            work.slots = max(work.slots, int(fields[b"slots"]))
            work.completed += state == pb.TASK_STATE_COMPLETED
            work.failed += state in _GIVEN_UP


async def task_stats(
    store: TaskStore, agents: dict[str, Agent], request: pb.GetTaskStatsRequest
) -> pb.GetTaskStatsResponse:
    """Returns the figures of a period, or of its part from which ends are still known: these are
    kept for 30 days, and of the latest 100,000 tasks and attempts.

    An agent's tasks that have not ended count for its utilisation when no type is asked for.
    """
    seconds = request.period.ToNanoseconds() / 1e9 or _DEFAULT_SECONDS
    counts, load, since, now_us = await store.figures()
    now = now_us / 1000
    start = now - 1000 * seconds
    total = _Sum(start)
    oldest = await _read(store, total, request.task_type)
    window = min(seconds, max(0.001, (now - oldest) / 1000)) if oldest else seconds
    response = pb.GetTaskStatsResponse()
    for name, count in counts.items():
        state, _, task_type = name.partition(":")
        if state.isdigit() and request.task_type in ("", task_type):
            response.tasks_by_state[pb.TaskState.Name(pb.TaskState.ValueType(int(state)))] += count
    response.queue_depth = response.tasks_by_state.get("TASK_STATE_PENDING", 0)
    for ended, count in total.ended.items():
        response.tasks_by_state[pb.TaskState.Name(pb.TaskState.ValueType(ended))] += count
    if all_ended := total.ended.total():
        response.completion_rate = total.ended[pb.TASK_STATE_COMPLETED] / all_ended
        response.throughput = all_ended / window
        total.latencies.sort()
        for part, latency in (
            (0.5, response.latency_p50),
            (0.95, response.latency_p95),
            (0.99, response.latency_p99),
        ):
            _set(latency, _percentile(total.latencies, part))
    if not request.task_type:
        for name, count in load.items():
            work = total.work[name.rpartition("@")[0]]
            work.busy += max(0.0, min(count * now - since.get(name, 0), count * 1000 * seconds))
    _add_agents(response, total, agents, now, window)
    return response


async def _read(store: TaskStore, total: _Sum, task_type: str) -> float:
    """Sums the ends up; returns when the first that is kept was, 0 when it is not known of any that
    it is not."""
    wanted, first = task_type.encode(), f"{int(total.start)}-0"
    with redis_errors():
        full = await store.redis.xlen(SPANS) >= store.options.most_spans
        kept: Any = await store.redis.xrange(SPANS, count=1)
    oldest = float(kept[0][0].split(b"-")[0]) if kept and full else 0.0
    while True:
        with redis_errors():
            rows: Any = await store.redis.xrange(SPANS, min=first, count=_PAGE)
        for entry_id, fields in rows:
            if not wanted or fields[b"type"] == wanted:
                total.add(int(entry_id.split(b"-")[0]), fields)
        if len(rows) < _PAGE:
            return oldest
        first = f"({rows[-1][0].decode()}"
        # Others get their turn.
        await asyncio.sleep(0)


def _add_agents(
    response: pb.GetTaskStatsResponse,
    total: _Sum,
    agents: dict[str, Agent],
    now: float,
    window: float,
) -> None:
    found = []
    for agent_id, work in total.work.items():
        there = 1000 * window
        if agent := agents.get(agent_id):
            work.slots = max(1, agent.max_concurrent_tasks)
            there = min(there, max(1.0, now - agent.register_time.ToMilliseconds()))
        found.append(
            pb.AgentUtilisation(
                agent_id=agent_id,
                utilisation=min(1.0, work.busy / (work.slots * there)),
                completed=work.completed,
                failed=work.failed,
            )
        )
    found.sort(key=lambda each: (-each.utilisation, each.agent_id))
    response.agents.extend(found[:_MOST_AGENTS])


def _percentile(values: Sequence[float], part: float) -> float:
    return values[max(0, math.ceil(part * len(values)) - 1)]


def _set(duration: Duration, milliseconds: float) -> None:
    duration.FromMicroseconds(int(milliseconds * 1000))
