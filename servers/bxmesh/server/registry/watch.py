"""What one watch tells of the changes of the registry, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import grpc

from bxmesh.registry.v1 import discovery_pb2 as pb
from bxmesh.registry.v1.agent_pb2 import Agent, AgentFilter
from bxmesh.server.agent_selection import fits
from bxmesh.server.errors import MeshError, resource_exhausted
from bxmesh.server.live_agents import AgentChange, LiveAgents, RevisionCompactedError
from bxmesh.server.registry.feed import Feed
from bxmesh.server.streams.connection import redis_errors

__all__ = ["Watch", "follow"]

Write = Callable[[pb.WatchAgentsResponse], Awaitable[None]]

_INTERVAL = 1.0
_GROUP = 256
_BOOKMARK_SECONDS = 10.0

_REASONS = {
    "deregistered": pb.LEAVE_REASON_DEREGISTERED,
    "expired": pb.LEAVE_REASON_LEASE_EXPIRED,
    "replaced": pb.LEAVE_REASON_REPLACED,
}
_LOAD_FIELDS = ("current_load", "active_tasks", "heartbeat_time", "revision")


@dataclass
class _Held:
    event: pb.AgentEvent
    first_revision: int
    due: float


class Watch:
    """Filters changes and holds those of an agent's load back that come too close together.

    Times are in seconds of any clock.
    """

    def __init__(self, wanted: AgentFilter, min_interval: float) -> None:
        self._wanted = wanted
        self._min_interval = min_interval
        self._told: dict[str, float] = {}
        self._held: dict[str, _Held] = {}

    def events(self, changes: Iterable[AgentChange], now: float) -> list[pb.AgentEvent]:
        """Returns what is to be told now, in order."""
        told = []
        for change in changes:
            agent_id = change.agent.agent_id
            if change.kind in _REASONS:
                self._told.pop(agent_id, None)
            if not self._concerns(change):
                continue
            held = self._held.get(agent_id)
            due = self._told.get(agent_id, -self._min_interval) + self._min_interval
            if change.kind == "change" and now < due and _only_load(change):
                first = held.first_revision if held else change.revision
                self._held[agent_id] = _Held(_event(change), first, due)
                continue
            self._held.pop(agent_id, None)
            if change.kind not in _REASONS:
                self._told[agent_id] = now
            told.append(_event(change))
        for agent_id, held in list(self._held.items()):
            if held.due <= now:
                del self._held[agent_id]
                self._told[agent_id] = now
                told.append(held.event)
        return sorted(told, key=lambda event: event.revision)

    def resumable(self, revision: int) -> int:
        """Returns up to where all is told, when the changes up to a revision have been taken."""
        return min([revision, *(held.first_revision - 1 for held in self._held.values())])

    def seconds_until_due(self, now: float) -> float | None:
        """Returns when something held back is to be told, None when nothing is."""
        return min((max(0.0, held.due - now) for held in self._held.values()), default=None)

    def _concerns(self, change: AgentChange) -> bool:
        return fits(change.agent, self._wanted) or (
            change.kind == "change" and fits(change.before, self._wanted)
        )


def _joined(agent: Agent) -> pb.AgentEvent:
    """Returns the event for an agent that was there when a watch began."""
    return pb.AgentEvent(
        revision=agent.revision,
        kind=pb.AGENT_EVENT_KIND_JOINED,
        agent=agent,
        event_time=agent.register_time,
    )


def _event(change: AgentChange) -> pb.AgentEvent:
    kind = {"join": pb.AGENT_EVENT_KIND_JOINED, "change": pb.AGENT_EVENT_KIND_CHANGED}.get(
        change.kind, pb.AGENT_EVENT_KIND_LEFT
    )
    event = pb.AgentEvent(
        revision=change.revision,
        kind=kind,
        agent=change.agent,
        leave_reason=_REASONS.get(change.kind, pb.LEAVE_REASON_UNSPECIFIED),
        message=change.message,
    )
    event.event_time.FromMilliseconds(change.time_ms)
    return event


def _only_load(change: AgentChange) -> bool:
    before, after = Agent(), Agent()
    before.CopyFrom(change.before)
    after.CopyFrom(change.agent)
    for agent in (before, after):
        for field in _LOAD_FIELDS:
            agent.ClearField(field)  # type: ignore[arg-type]
    return before == after


async def follow(
    agents: LiveAgents,
    feed: Feed,
    request: pb.WatchAgentsRequest,
    write: Write,
    slow_consumer_seconds: float,
) -> None:
    """Writes what happens after a revision, or who lives and then what happens, until cancelled.

    Raises MeshError OUT_OF_RANGE when the changes are not kept any more, RESOURCE_EXHAUSTED when
    the reader does not keep up, UNAVAILABLE without Redis.
    """
    clock = asyncio.get_running_loop().time

    async def send(response: pb.WatchAgentsResponse) -> None:
        try:
            async with asyncio.timeout(slow_consumer_seconds):
                await write(response)
        except TimeoutError:
            raise resource_exhausted(
                f"Nothing has been read for {slow_consumer_seconds:g} s. Resume the watch.",
                retry_after=0.0,
                reason="SLOW_CONSUMER",
                subject="watch",
            ) from None

    interval = request.min_interval.ToTimedelta().total_seconds()
    watch = Watch(request.filter, interval if request.HasField("min_interval") else _INTERVAL)
    revision = request.after_revision
    if not revision:
        revision = await _send_present(agents, request.filter, send)
    complete = not request.after_revision
    told, next_bookmark = revision, clock() + _BOOKMARK_SECONDS
    while True:
        changes, revision = await _changes(agents, revision)
        events = watch.events(changes, clock())
        resumable = watch.resumable(revision)
        if events or not complete or (resumable > told and clock() > next_bookmark):
            await send(
                pb.WatchAgentsResponse(
                    events=events, revision=resumable, snapshot_complete=not complete
                )
            )
            complete, told, next_bookmark = True, resumable, clock() + _BOOKMARK_SECONDS
        if len(changes) < _GROUP:
            await feed.wait(revision, watch.seconds_until_due(clock()))


async def _send_present(agents: LiveAgents, wanted: AgentFilter, send: Write) -> int:
    with redis_errors():
        snapshot = await agents.snapshot()
    present = [_joined(agent) for agent in snapshot.agents if fits(agent, wanted)]
    while len(present) > _GROUP:
        await send(pb.WatchAgentsResponse(events=present[:_GROUP]))
        del present[:_GROUP]
    await send(
        pb.WatchAgentsResponse(events=present, revision=snapshot.revision, snapshot_complete=True)
    )
    return snapshot.revision


async def _changes(agents: LiveAgents, after: int) -> tuple[Sequence[AgentChange], int]:
    try:
        with redis_errors():
            return await agents.changes(after, _GROUP)
    except RevisionCompactedError:
        raise MeshError(
            grpc.StatusCode.OUT_OF_RANGE,
            "REVISION_COMPACTED",
            f"The changes after revision {after} are not kept any more. Begin again at 0.",
            metadata={"after_revision": str(after)},
        ) from None
