"""Messages that were acknowledged lately, delivered again."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from bxmesh.agent.v1 import message_pb2, queue_pb2
from bxmesh.server.agent.deliveries import MessageTypes
from bxmesh.server.errors import MeshError, invalid_argument, resource_exhausted
from bxmesh.server.mutations import Mutation
from bxmesh.server.streams import WorkQueue
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.mailbox_scripts import POST_AGAIN
from bxmesh.server.streams.mailboxes import REPLAYED, Mailboxes
from bxmesh.server.streams.scripts import READ_PART
from bxmesh.work.v1 import work_pb2

__all__ = ["replay_messages"]

_DEFAULT_LIMIT = 1000
_AT_ONCE = 16
_MOST_PART_BYTES = 4 << 20
_MUTATION_MS = 3_600_000
_GONE, _DONE, _REPEATED, _ENOUGH, _FULL = 2, 1, 0, -1, -2


class _Position(NamedTuple):
    """Where a message stood in its mailbox. Entries are unique for each priority only."""

    milliseconds: int
    number: int
    priority: int = 0

    def name(self, *, exact: bool = False) -> str:
        entry = f"{self.milliseconds}-{self.number}"
        return f"{entry}:{self.priority}" if exact else entry


class _Kept(NamedTuple):
    position: _Position
    inbox: str
    history_id: bytes


async def replay_messages(
    mailboxes: Mailboxes, request: queue_pb2.ReplayMessagesRequest, mutation: Mutation
) -> queue_pb2.ReplayMessagesResponse:
    """Puts what a mailbox's history keeps back into the mailbox, in the order of arrival.

    Raises MeshError OUT_OF_RANGE (HISTORY_TRIMMED) when something since the start is not kept any
    more, RESOURCE_EXHAUSTED when the mailbox is full.
    """
    agent_id, start = request.agent_id, _start(request)
    response = queue_pb2.ReplayMessagesResponse()
    if (first := await mutation.answered(response)) is not None:
        return first
    kept, everything = await _kept(mailboxes, request, start)
    lost = await _lost(mailboxes, agent_id)
    if lost is not None and lost >= start[:2]:
        raise _trimmed(agent_id, lost, everything)
    limit = request.limit or _DEFAULT_LIMIT
    chosen, results = kept[:limit], list[int]()
    while len(results) < len(chosen) and not {_ENOUGH, _FULL} & set(results):
        batch = chosen[len(results) : len(results) + _AT_ONCE]
        entries = await _entries(mailboxes, agent_id, batch)
        # Calls that are made at once are carried out in their order.
        results += await asyncio.gather(
            *(
                _post_again(mailboxes, kept, entry, mutation.name, limit)
                for kept, entry in zip(batch, entries, strict=True)
            )
        )
    response.replayed = results.count(_DONE) + results.count(_REPEATED)
    stopped = next((i for i, each in enumerate(results) if each < 0), len(chosen))
    if stopped < len(kept):
        if not response.replayed:
            raise resource_exhausted(
                f"The mailbox of {agent_id} is full. Try again later.",
                retry_after=1.0,
                reason="MAILBOX_FULL",
                subject=f"agent:{agent_id}",
            )
        following, before = kept[stopped].position, kept[stopped - 1].position
        response.next_entry_id = following.name(exact=following[:2] == before[:2])
    return await mutation.settle(response)


def _start(request: queue_pb2.ReplayMessagesRequest) -> _Position:
    if request.HasField("start_time"):
        return _Position(_milliseconds(request.start_time), 0)
    match = re.fullmatch(r"(\d{1,19})-(\d{1,19})(?::([1-4]))?", request.start_entry_id, re.ASCII)
    if not match:
        raise invalid_argument("start_entry_id", "is not the entry_id of a delivery")
    return _Position(int(match[1]), int(match[2]), int(match[3] or 0))


def _milliseconds(time: Any) -> int:
    return int(time.seconds * 1000 - (-time.nanos // 1_000_000))


async def _kept(
    mailboxes: Mailboxes, request: queue_pb2.ReplayMessagesRequest, start: _Position
) -> tuple[list[_Kept], list[_Position]]:
    """What fits, in order; and where everything stood that is kept."""
    agent_id, types = request.agent_id, MessageTypes(tuple(request.message_types))
    end = _milliseconds(request.end_time) if request.HasField("end_time") else None
    fitting: list[_Kept] = []
    everything: list[_Position] = []
    after, done = "-", 0
    while not done:
        with redis_errors():
            done, rows = await mailboxes.queue.scripts.call(
                READ_PART,
                [mailboxes.keys.history(agent_id)],
                ["XRANGE", after, "+", 200, _MOST_PART_BYTES],
            )
        for history_id, fields in rows:
            after = f"({history_id.decode()}"
            values = dict(zip(fields[0::2], fields[1::2], strict=True))
            inbox = values.get(b"from", b"").decode(errors="replace")
            match = re.fullmatch(rb"(\d{1,19})-(\d{1,19})", values.get(b"id", b""))
            message_type = _type_of(values.get(b"entry", b""))
            if match is None or message_type is None or mailboxes.keys.agent_of(inbox) != agent_id:
                continue
            position = _Position(int(match[1]), int(match[2]), int(inbox[-1]))
            everything.append(position)
            if position < start or (end is not None and position.milliseconds >= end):
                continue
            if message_type in types:
                fitting.append(_Kept(position, inbox, history_id))
    return sorted(fitting), everything


def _type_of(data: bytes) -> str | None:
    envelope = message_pb2.Envelope()
    try:
        if work_pb2.WorkEntry.FromString(data).item.payload.Unpack(envelope):
            return envelope.message_type
    except DecodeError:
        pass
    return None


async def _lost(mailboxes: Mailboxes, agent_id: str) -> tuple[int, int] | None:
    """The last entry that was acknowledged and is not kept; None when all are."""
    pipeline = mailboxes.queue.redis.pipeline(transaction=False)
    pipeline.exists(mailboxes.keys.history(agent_id))
    pipeline.hmget(mailboxes.keys.figures(agent_id), ["trimmed", "kept", "acknowledged"])
    with redis_errors():
        exists, (trimmed, kept, acknowledged) = await pipeline.execute()
    if not mailboxes.options.history and acknowledged is not None:
        return (1 << 63, 0)
    last = trimmed if exists else kept or trimmed
    match = re.fullmatch(rb"(\d{1,19})-(\d{1,19})", last or b"")
    return (int(match[1]), int(match[2])) if match else None


def _trimmed(agent_id: str, lost: tuple[int, int], kept: Sequence[_Position]) -> MeshError:
    whole = [position for position in kept if position[:2] > lost]
    metadata = {"agent_id": agent_id}
    if whole:
        metadata["oldest_entry_id"] = min(whole).name()
    since = f" Begin at {metadata['oldest_entry_id']}." if whole else ""
    return MeshError(
        grpc.StatusCode.OUT_OF_RANGE,
        "HISTORY_TRIMMED",
        f"Not all messages of {agent_id} since then are kept any more.{since}",
        metadata=metadata,
    )


async def _entries(
    mailboxes: Mailboxes, agent_id: str, batch: Sequence[_Kept]
) -> list[bytes | None]:
    """New entries for messages of a history; None for one that was thrown away a moment ago."""
    pipeline = mailboxes.queue.redis.pipeline(transaction=False)
    for kept in batch:
        pipeline.xrange(mailboxes.keys.history(agent_id), kept.history_id, kept.history_id)
    with redis_errors():
        found = await pipeline.execute()
    queue = mailboxes.queue
    return [_fresh(queue, rows[0][1][b"entry"]) if rows else None for rows in found]


def _fresh(queue: WorkQueue, data: bytes) -> bytes | None:
    entry = work_pb2.WorkEntry.FromString(data)
    if not queue.options.seals.holds(queue.options.name, entry):
        return None
    item = entry.item
    item.item_id = f"{REPLAYED}{uuid.uuid4().hex}"
    item.request_id = ""
    item.ClearField("deadline")
    return queue.entry_of(item)


async def _post_again(
    mailboxes: Mailboxes, kept: _Kept, entry: bytes | None, mutation: str, limit: int
) -> int:
    if entry is None:
        return _GONE
    keys = mailboxes.keys
    with redis_errors():
        return int(
            await mailboxes.queue.scripts.call(
                POST_AGAIN,
                [kept.inbox, keys.mutation(mutation) if mutation else kept.inbox],
                [
                    entry,
                    kept.position.name(exact=True),
                    _MUTATION_MS if mutation else 0,
                    limit,
                    mailboxes.options.capacity,
                ],
            )
        )
