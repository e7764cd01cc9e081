"""Tasks in Redis: every transition is one step, and whoever comes second changes nothing."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from google.rpc import status_pb2
from redis.asyncio import Redis

from bxmesh.agent.v1 import message_pb2
from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy
from bxmesh.server.errors import MeshError
from bxmesh.server.security.circuit_breakers import ALL_CLOSED, CircuitBreakers
from bxmesh.server.security.quotas import Allowance
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.scripts import Script
from bxmesh.server.tasks import errors, query_scripts, scripts
from bxmesh.server.tasks.circuits import tell_circuits
from bxmesh.server.tasks.demand import Demand
from bxmesh.server.tasks.keys import ROOT, request_key
from bxmesh.server.tasks.options import TaskOptions
from bxmesh.server.tasks.records import Change, Record, clipped, delivery_entry

_PAGE = 100
_WISH_MS = 300_000
# How much earlier than another a task seems to have been assigned, in seconds: so long it may wait
# behind later ones of a higher priority.
_BONUS = {
    message_pb2.PRIORITY_LOW: 0,
    message_pb2.PRIORITY_MEDIUM: 60,
    message_pb2.PRIORITY_HIGH: 300,
    message_pb2.PRIORITY_CRITICAL: 1800,
}
_PUBLIC = 3

Report: TypeAlias = pb.TaskProgress | message_pb2.Payload | status_pb2.Status


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task that is to be."""

    spec: pb.TaskSpec
    owner: str
    """The identity that assigns it."""
    demand: Demand
    on_behalf_of: str = ""
    """The identity for which it is done; empty for the owner."""
    team: str = ""
    """Who sees it besides; empty for no team."""
    depth: int = 0
    """How many parents it has above it."""
    line: tuple[str, ...] = ()
    """The agents that its parents are with."""
    trace_context: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    allowance: Allowance | None = None
    """How many open tasks the owner may have; None for any number."""


@dataclass(frozen=True, slots=True)
class Parent:
    """What a child must know of its parent."""

    depth: int
    line: tuple[str, ...]
    """The agents that it and its parents are with."""
    owner: str
    identity: str
    """Whose agent has it."""
    public: bool
    """Whether every identity sees it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task that waits for an agent."""

    demand: str
    task_id: str
    score: int
    """The lowest is next."""
    attempts: int
    priority: int
    sticky_key: str
    trace: str
    owner: str


class TaskStore:
    """All tasks. Methods raise MeshError UNAVAILABLE without Redis.

    `begin`, `progress`, `finish` and `fail` are for agents. They raise MeshError NOT_FOUND for a
    task that is forgotten, and FAILED_PRECONDITION (LEASE_LOST) when the attempt is not that
    agent's, or no longer. A repeated report changes nothing, and neither does one on a task that
    has ended: the task that is returned says how it stands.
    """

    def __init__(
        self,
        redis: Redis,
        options: TaskOptions | None = None,
        circuits: CircuitBreakers = ALL_CLOSED,
    ) -> None:
        self.redis = redis
        self.circuits = circuits
        self.options = options or TaskOptions()
        self._scripts = ScriptBatcher(redis)
        self._constants = self.options.for_scripts()

    async def _call(
        self, script: Script, *arguments: str | bytes | int, request: str = ROOT
    ) -> Any:
        with redis_errors():
            return await self._scripts.call(script, [ROOT, request], [self._constants, *arguments])

    # Beginning

    async def create(
        self,
        new: NewTask,
        candidates: Sequence[Mapping[str, Any]] = (),
        unmet: Sequence[str] = (),
    ) -> Record:
        """Enters a task, and gives it to a candidate with a free slot unless others wait; `unmet`
        are the demands that nobody meets, which wait in nobody's way.

        A repeated request id of an owner returns the first task. Raises MeshError
        RESOURCE_EXHAUSTED when there are too many (TOO_MANY_TASKS) or the owner has as many as it may
        (QUOTA_EXCEEDED), NOT_FOUND and FAILED_PRECONDITION for the parent.
        """
        task_id = uuid.uuid4().hex
        spec, trace = new.spec, json.dumps(dict(new.trace_context))
        head = pb.Task(
            task_id=task_id,
            spec=spec,
            owner=new.owner,
            on_behalf_of=new.on_behalf_of or new.owner,
            team=new.team,
            trace_context=new.trace_context,
        )
        priority = spec.priority or message_pb2.PRIORITY_MEDIUM
        answer = await self._call(
            scripts.CREATE,
            task_id,
            head.SerializeToString(),
            json.dumps(
                {
                    "demand": new.demand.name,
                    "wanted": new.demand.text,
                    "bonus": _BONUS[priority] * 1_000_000,
                    "priority": priority,
                    "sticky": spec.sticky_key,
                    "type": spec.task_type,
                    "owner": new.owner,
                    "team": new.team,
                    "public": spec.visibility == _PUBLIC,
                    "timeout": int(spec.timeout.ToNanoseconds() / 1000),
                    "parent": spec.parent_task_id,
                    "depth": new.depth,
                    "line": new.line,
                    "trace": trace,
                    "candidates": candidates,
                    "unmet": unmet,
                    "most": new.allowance.most if new.allowance else 0,
                    **self._retries(spec.retry_policy),
                }
            ),
            delivery_entry(task_id, 1, new.owner, trace, self.options.seals),
            int(self.options.request_lifetime * 1000) if new.request_id else 0,
            request=request_key(new.owner, new.request_id) if new.request_id else ROOT,
        )
        match answer:
            case [-1, count]:
                raise errors.too_many_tasks(count)
            case [-2]:
                raise errors.no_such_task(spec.parent_task_id)
            case [-3, _]:
                raise errors.parent_ended(spec.parent_task_id)
            case [-4, count] if new.allowance:
                raise new.allowance.refusal(count)
        return Record.of(answer[-1])

    def _retries(self, policy: RetryPolicy) -> Mapping[str, Any]:
        options = self.options
        first, most = options.initial_backoff, options.max_backoff
        if policy.HasField("initial_backoff"):
            first = policy.initial_backoff.ToNanoseconds() / 1e9
        if policy.HasField("max_backoff"):
            most = policy.max_backoff.ToNanoseconds() / 1e9
        return {
            "limit": policy.max_attempts or options.max_attempts,
            "backoff": int(first * 1e6),
            "most_backoff": int(most * 1e6),
            "final": list(policy.non_retryable_reasons),
        }

    async def parent(self, task_id: str) -> Parent:
        """Returns what a child must know; raises MeshError NOT_FOUND."""
        match await self._call(query_scripts.LINE, task_id):
            case [depth, line, owner, identity, public]:
                agents = tuple(json.loads(line))
                return Parent(depth, agents, owner.decode(), identity.decode(), bool(public))
        raise errors.no_such_task(task_id)

    # Giving out

    async def overview(self, channel: str) -> tuple[dict[str, Demand], dict[str, int]]:
        """Returns the demands for which tasks wait, and how many tasks each holder has; the channel
        is told when to look again (topic SLOTS_TOPIC)."""
        demands, load = await self._call(query_scripts.OVERVIEW, channel, _WISH_MS)
        return (
            {name: Demand.parse(text) for name, text in _pairs(demands)},
            {name: int(count) for name, count in _pairs(load)},
        )

    async def first(self, counts: Mapping[str, int]) -> list[Waiting]:
        """Returns the first that wait, at most so many for each demand."""
        rows = await self._call(
            query_scripts.FIRST, *(value for pair in counts.items() for value in pair)
        )
        return [
            Waiting(
                row[0].decode(),
                row[1].decode(),
                row[2],
                row[3],
                row[4],
                row[5].decode(),
                row[6].decode(),
                row[7].decode(),
            )
            for row in rows
        ]

    async def assign(self, waiting: Waiting, candidates: Sequence[Mapping[str, Any]]) -> bool:
        """Gives a task to the first candidate with a free slot; False when all are full, or another
        was faster."""
        entry = delivery_entry(
            waiting.task_id,
            waiting.attempts + 1,
            waiting.owner,
            waiting.trace,
            self.options.seals,
        )
        answer = await self._call(
            scripts.ASSIGN, waiting.task_id, waiting.attempts, entry, json.dumps(candidates)
        )
        return bool(answer == 1)

    async def release(self, holder: str, error: MeshError) -> int:
        """Takes all tasks from an agent that is gone; they wait for others or, when their attempts
        are used up, fail. Returns how many."""
        status, released = error.to_status().SerializeToString(), 0
        while True:
            count, ended = await self._call(scripts.RELEASE, holder, status, _PAGE)
            await tell_circuits(self.circuits, ended)
            if not count:
                return released
            released += count

    async def holders(self) -> list[str]:
        """Returns who has tasks."""
        load = (await self._call(query_scripts.FIGURES))[1]
        return [name for name, _ in _pairs(load)]

    async def look(self) -> float | None:
        """Ends what has run out of its time, lets what has waited for its retry go on, and forgets
        what ended long ago; returns the seconds until something is due, None when nothing is."""
        timed_out = errors.timed_out().to_status().SerializeToString()
        nobody_came = errors.nobody_came().to_status().SerializeToString()
        while True:
            looked, next_us, ended = await self._call(scripts.LOOK, _PAGE, timed_out, nobody_came)
            await tell_circuits(self.circuits, ended)
            forgotten = await self._call(scripts.FORGET, _PAGE)
            if looked < _PAGE and forgotten < _PAGE:
                return None if next_us < 0 else next_us / 1e6

    # What agents say

    async def deliverable(self, task_id: str, attempt: int, agent_id: str) -> pb.Task | None:
        """Returns the task if this attempt at it is still this agent's; None for a stale delivery."""
        record = await self.read(task_id)
        if record is None:
            return None
        task = record.task()
        given = task.state in (pb.TASK_STATE_ASSIGNED, pb.TASK_STATE_RUNNING)
        return task if given and task.attempts == attempt and task.agent_id == agent_id else None

    async def begin(self, task_id: str, attempt: int, agent_id: str) -> pb.Task:
        """Says that an agent is at it; returns the task."""
        return await self.progress(task_id, attempt, agent_id, pb.TaskProgress())

    async def progress(
        self, task_id: str, attempt: int, agent_id: str, progress: pb.TaskProgress
    ) -> pb.Task:
        """Says how far it is; returns the task, which may have been cancelled."""
        return await self._report(task_id, attempt, agent_id, progress)

    async def finish(
        self, task_id: str, attempt: int, agent_id: str, result: message_pb2.Payload
    ) -> pb.Task:
        """Completes it with a result; returns the task."""
        return await self._report(task_id, attempt, agent_id, result)

    async def leave(
        self, task_id: str, attempt: int, agent_id: str, result: message_pb2.Payload
    ) -> None:
        """Keeps what was reached of a task that has been cancelled, or ran out of its time.

        Raises MeshError for one that has not: another attempt will be made at it.
        """
        await self._say(task_id, result, attempt, agent_id, "", "", "left", whole=False)

    async def fail(
        self,
        task_id: str,
        attempt: int,
        agent_id: str,
        error: status_pb2.Status,
        *,
        hopeless: bool = False,
    ) -> pb.Task:
        """Says that the attempt has failed: it is tried again later if its policy says so, and it is
        not hopeless."""
        kind = "hopeless" if hopeless else ""
        return await self._report(task_id, attempt, agent_id, error, kind)

    async def _report(
        self, task_id: str, attempt: int, agent_id: str, report: Report, kind: str = ""
    ) -> pb.Task:
        answer = await self._say(task_id, report, attempt, agent_id, "", "", kind, whole=True)
        return Record.of(answer).task()

    async def report_delivery(
        self, task_id: str, delivery_id: str, identity: str, report: Report
    ) -> Change:
        """What `progress`, `finish` and `fail` do, by the delivery with which an agent of an identity
        got the task."""
        return Change(*await self._say(task_id, report, 0, "", identity, delivery_id, whole=False))

    async def _say(
        self,
        task_id: str,
        report: Report,
        attempt: int,
        agent_id: str,
        identity: str,
        delivery_id: str,
        kind: str = "",
        *,
        whole: bool,
    ) -> Any:
        reason, error = "", None
        if isinstance(report, pb.TaskProgress):
            kind = "progress"
            report.ClearField("update_time")
        elif isinstance(report, message_pb2.Payload):
            kind = kind or "result"
        elif isinstance(report, status_pb2.Status):
            error = MeshError.from_status(report)
            kind, reason, report = kind or "error", error.reason, clipped(report)
        answer = await self._call(
            scripts.REPORT,
            task_id,
            attempt,
            agent_id,
            identity,
            kind,
            report.SerializeToString(),
            reason,
            f"{random.random():.6f}",
            delivery_id,
            int(whole),
        )
        match answer:
            case [1, found, ended]:
                await tell_circuits(self.circuits, ended, error)
                return found
            case [0]:
                raise errors.no_such_task(task_id)
        raise errors.not_yours(task_id)

    # Ending

    async def cancel(self, task_id: str, error: MeshError) -> Record:
        """Cancels a task unless it has ended; whoever works on it is told. Raises MeshError
        NOT_FOUND."""
        answer = await self._call(scripts.CANCEL, task_id, error.to_status().SerializeToString())
        if answer[0] == 0:
            raise errors.no_such_task(task_id)
        if answer[0] == 1:
            await tell_circuits(self.circuits, answer[2])
        return Record.of(answer[1])

    # Looking

    async def read(self, task_id: str) -> Record | None:
        """Returns a task, None when there is none of that name."""
        answer = await self._call(query_scripts.READ, task_id, -1, "", 0)
        return Record.of(answer[0]) if answer else None

    async def follow(
        self, task_id: str, after: int, channel: str
    ) -> tuple[Record, int, list[Change]] | None:
        """Returns a task, the revision of the oldest change that is kept, and the changes after a
        revision; the channel is told of the next one (topic `task:<id>`)."""
        answer = await self._call(query_scripts.READ, task_id, after, channel, _WISH_MS)
        if not answer:
            return None
        return Record.of(answer[0]), answer[1], [Change(*change) for change in answer[2]]

    async def children(self, task_id: str, after: int = 0) -> tuple[list[str], int]:
        """Returns some of what was assigned on behalf of a task, and the time with which to ask for
        more."""
        rows = _pairs(await self._call(query_scripts.CHILDREN, task_id, after, _PAGE))
        return [name for name, _ in rows], int(float(rows[-1][1])) if rows else after

    async def page(
        self, parent: str, before: int, not_before: int, wanted: str, most: int, most_bytes: int
    ) -> tuple[bool, int, list[Record]]:
        """Returns a part of a list, newest first: whether that was all, the create time of the last
        one looked at, and what fits of them. `before` 0 means from the newest."""
        done, last, rows = await self._call(
            query_scripts.PAGE,
            parent,
            before or "+inf",
            not_before,
            wanted,
            most,
            most_bytes,
            _PAGE * 5,
        )
        return bool(done), last, [Record.of(row) for row in rows]

    async def figures(self) -> tuple[dict[str, int], dict[str, int], dict[str, int], int]:
        """Returns the open tasks by state and type, how many each holder has, the sums of the times
        (ms) at which it got them, and the time (us)."""
        counts, load, since, now = await self._call(query_scripts.FIGURES)
        return (
            {name: int(value) for name, value in _pairs(counts)},
            {name: int(value) for name, value in _pairs(load)},
            {name: int(value) for name, value in _pairs(since)},
            now,
        )


def _pairs(flat: Sequence[bytes]) -> list[tuple[str, str]]:
    names = [value.decode() for value in flat]
    return list(zip(names[0::2], names[1::2], strict=True))
