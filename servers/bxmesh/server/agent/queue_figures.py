"""What waits where, in figures."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from typing import Any

from bxmesh.agent.v1 import message_pb2, queue_pb2
from bxmesh.server.agent.mesh import AgentMesh
from bxmesh.server.errors import invalid_argument, not_found
from bxmesh.server.live_agents import no_such_agent
from bxmesh.server.streams import WorkQueue
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.keys import GROUP
from bxmesh.server.streams.mailbox_scripts import FIGURES

__all__ = ["queue_stats", "require_mailbox"]

_DEFAULT_SIZE = 100
_SLOT_MS = 10_000
_SLOTS = 6
_PRIORITIES = ("PRIORITY_CRITICAL", "PRIORITY_HIGH", "PRIORITY_MEDIUM", "PRIORITY_LOW")
_AGENT, _CAPABILITY = "agent/", "capability/"


async def queue_stats(
    mesh: AgentMesh, request: queue_pb2.GetQueueStatsRequest, owned: frozenset[str] | None
) -> queue_pb2.GetQueueStatsResponse:
    """Figures of a page of queues, by name; only these are looked at. Of mailboxes there are those
    of `owned` agents, None for all; work queues are everybody's. Raises MeshError NOT_FOUND
    for a queue that there is not, INVALID_ARGUMENT for a token that is none."""
    digest = hashlib.sha256(repr((request.agent_id, request.capability)).encode()).hexdigest()[:16]
    after = ""
    if request.page_token:
        found, _, after = request.page_token.partition(":")
        if found != digest or not after:
            raise invalid_argument(
                "page_token",
                "is not the next_page_token of a page with this queue",
                reason="PAGE_TOKEN_INVALID",
            )
    names = [name for name in await _names(mesh, request, owned) if name > after]
    page = names[: request.page_size or _DEFAULT_SIZE]
    response = queue_pb2.GetQueueStatsResponse()
    dead_since = await _dead_since(mesh)
    response.queues.extend(await asyncio.gather(*(_stats(mesh, name, dead_since) for name in page)))
    if len(page) < len(names):
        response.next_page_token = f"{digest}:{page[-1]}"
    return response


async def require_mailbox(mesh: AgentMesh, agent_id: str) -> None:
    """Raises MeshError NOT_FOUND for an agent that is not alive and never was sent anything."""
    with redis_errors():
        known: Any = await mesh.redis.sismember(mesh.mailboxes.keys.mailboxes, agent_id)
    if not known and await mesh.directory.find(agent_id) is None:
        raise no_such_agent(agent_id)


async def _names(
    mesh: AgentMesh, request: queue_pb2.GetQueueStatsRequest, owned: frozenset[str] | None
) -> list[str]:
    match request.WhichOneof("queue"):
        case "agent_id":
            if owned is not None and request.agent_id not in owned:
                raise no_such_agent(request.agent_id)
            await require_mailbox(mesh, request.agent_id)
            return [f"{_AGENT}{request.agent_id}"]
        case "capability":
            return [f"{_CAPABILITY}{_queue_of(mesh, request.capability).options.name}"]
    with redis_errors():
        members: Any = await mesh.redis.smembers(mesh.mailboxes.keys.mailboxes)
    agents = {member.decode() for member in members}
    names = [f"{_AGENT}{name}" for name in (agents if owned is None else agents & owned)]
    names += [f"{_CAPABILITY}{queue.options.name}" for queue in mesh.work_queues]
    return sorted(names)


def _queue_of(mesh: AgentMesh, capability: str) -> WorkQueue:
    """The queue that work of a capability waits in."""
    for queue in mesh.work_queues:
        if f"{capability}.".startswith(f"{queue.options.name}."):
            return queue
    raise not_found(
        f"{capability} has no queue of its own; its tasks wait as tasks, then in mailboxes.",
        reason="QUEUE_NOT_FOUND",
        capability=capability,
    )


async def _dead_since(mesh: AgentMesh) -> str:
    with redis_errors():
        first: Any = await mesh.redis.xrange(mesh.mailboxes.keys.dead, count=1)
    return first[0][0].decode().partition("-")[0] if first else ""


async def _stats(mesh: AgentMesh, name: str, dead_since: str) -> queue_pb2.QueueStats:
    if name.startswith(_AGENT):
        return await _mailbox(mesh, name.removeprefix(_AGENT), dead_since)
    return await _work(_queue_of(mesh, name.removeprefix(_CAPABILITY)))


async def _mailbox(mesh: AgentMesh, agent_id: str, dead_since: str) -> queue_pb2.QueueStats:
    keys = mesh.mailboxes.keys
    with redis_errors():
        (
            now,
            connections,
            dead,
            held,
            oldest,
            flat,
            waiting,
        ) = await mesh.mailboxes.queue.scripts.call(
            FIGURES,
            [
                keys.connections(agent_id),
                keys.figures(agent_id),
                keys.dead_of(agent_id),
                *keys.inboxes(agent_id),
            ],
            [GROUP, dead_since],
        )
    counts = dict(zip(flat[0::2], flat[1::2], strict=True))
    stats = queue_pb2.QueueStats(
        queue=f"{_AGENT}{agent_id}",
        waiting=dict(zip(_PRIORITIES, waiting, strict=True)),
        in_flight=held,
        delayed=max(0, int(counts.get(b"delayed", 0))),
        dead_letters=dead,
        capacity=mesh.mailboxes.options.capacity,
        connections=connections,
        delivery_rate=_rate(counts, now),
        acknowledged=int(counts.get(b"acknowledged", 0)),
        redelivered=int(counts.get(b"redelivered", 0)),
        expired=int(counts.get(b"expired", 0)),
    )
    stats.oldest_age.FromMilliseconds(max(0, now - oldest) if oldest >= 0 else 0)
    return stats


def _rate(counts: Mapping[bytes, bytes], now: int) -> float:
    """Deliveries per second over the last minute, as counted by ten seconds."""
    present, delivered = now // _SLOT_MS, 0.0
    for field, value in counts.items():
        if not field.startswith(b"delivered"):
            continue
        slot, count = (int(part) for part in value.split(b":"))
        age = present - slot
        if 0 <= age < _SLOTS:
            delivered += count
        elif age == _SLOTS:
            # The part of it that the minute still covers.
            delivered += count * (1 - now % _SLOT_MS / _SLOT_MS)
    return delivered * 1000 / (_SLOTS * _SLOT_MS)


async def _work(queue: WorkQueue) -> queue_pb2.QueueStats:
    found = await queue.stats()
    with redis_errors():
        workers: Any = await queue.redis.zcount(queue.keys.lanes, time.time() * 1000, "+inf")
    stats = queue_pb2.QueueStats(
        queue=f"{_CAPABILITY}{queue.options.name}",
        waiting={message_pb2.Priority.Name(message_pb2.PRIORITY_MEDIUM): found.waiting},
        in_flight=found.pending,
        delayed=found.delayed,
        dead_letters=found.dead,
        capacity=queue.options.max_depth,
        connections=workers,
    )
    stats.oldest_age.FromNanoseconds(int(found.oldest_age * 1e9))
    return stats
