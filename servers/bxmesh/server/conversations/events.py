"""The working memory of conversations: one Redis stream of events for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.keys import PREFIX
from bxmesh.server.streams.seals import Seals
from bxmesh.work.v1 import work_pb2

__all__ = ["EventLog", "OvertakenError", "Story", "fold"]

_FIELD = b"event"
_QUEUE = "conversations"
# Long enough for whoever is attached to see the end; the archive has the rest.
_AFTER_END_MS = 3_600_000
_IDLE_MS = 7 * 86_400_000

# KEYS: stream
# ARGV: lifetime in ms, revision of the first, events…
_APPEND = """
for i = 3, #ARGV do
  redis.call('XADD', KEYS[1], '0-' .. (tonumber(ARGV[2]) + i - 3), 'event', ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""


class OvertakenError(Exception):
    """Somebody else has written on: the conversation was cancelled, or continues elsewhere."""


class EventLog:
    """Events by conversation. Methods raise MeshError UNAVAILABLE without Redis."""

    def __init__(self, redis: Redis, seals: Seals) -> None:
        self._redis = redis
        self._seals = seals
        self._append: Any = redis.register_script(_APPEND)

    async def append(self, events: Sequence[pb.ConversationEvent]) -> None:
        """Adds events, whose revisions follow one another. Raises OvertakenError when there is one
        of such a revision, and adds none then."""
        name = events[0].conversation_id
        life = _AFTER_END_MS if events[-1].HasField("ended") else _IDLE_MS
        arguments = [life, events[0].revision, *map(self._sealed, events)]
        with redis_errors():
            try:
                await self._append(keys=[_key(name)], args=arguments)
            except ResponseError as error:
                if "equal or smaller" not in str(error):
                    raise
                raise OvertakenError(name) from None

    async def after(
        self, name: str, revision: int, count: int = 200
    ) -> list[pb.ConversationEvent] | None:
        """Returns events after a revision, at most so many; None when nothing is kept."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.exists(_key(name))
                pipeline.xrange(_key(name), min=f"(0-{revision}", count=count)
                kept, found = await pipeline.execute()
        if not kept:
            return None
        return list(self._opened(name, found))

    async def last(self, name: str) -> pb.ConversationEvent | None:
        """Returns the latest event; None when nothing is kept."""
        with redis_errors():
            found: Any = await self._redis.xrevrange(_key(name), count=1)
        return next(iter(self._opened(name, found)), None)

    async def all(self, name: str) -> list[pb.ConversationEvent]:
        """Returns all events that are kept, the oldest first."""
        with redis_errors():
            found: Any = await self._redis.xrange(_key(name))
        return list(self._opened(name, found))

    async def drop(self, name: str, revisions: Iterable[int]) -> None:
        """Removes events that are contained in later ones."""
        if ids := [f"0-{revision}" for revision in revisions]:
            with redis_errors():
                await self._redis.xdel(_key(name), *ids)

    async def forget(self, names: Iterable[str]) -> None:
        """Removes all events of conversations."""
        if keys := [_key(name) for name in names]:
            with redis_errors():
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.unlink(key)
                    await pipeline.execute()

    def _sealed(self, event: pb.ConversationEvent) -> bytes:
        item = work_pb2.WorkItem(item_id=f"{event.conversation_id}:{event.revision}")
        item.payload.Pack(event)
        return self._seals.entry(_QUEUE, item).SerializeToString()

    def _opened(self, name: str, entries: Iterable[Any]) -> Iterable[pb.ConversationEvent]:
        for entry_id, fields in entries:
            entry, event = work_pb2.WorkEntry(), pb.ConversationEvent()
            try:
                entry.ParseFromString(fields[_FIELD])
                known = self._seals.holds(_QUEUE, entry) and entry.item.payload.Unpack(event)
            except (DecodeError, KeyError):
                known = False
            # Whoever can write to Redis says nothing in anybody's name.
            if known and entry_id == b"0-%d" % event.revision and event.conversation_id == name:
                yield event
            else:
                self._seals.on_forged(_key(name))


class Story(NamedTuple):
    """A round of a conversation as its events tell it."""

    conversation: pb.Conversation
    """Where it stands."""
    left: dict[str, str]
    """Who is left out, and why."""
    began: float
    """When the round began, in seconds since 1970."""


def fold(events: Iterable[pb.ConversationEvent]) -> Story | None:
    """Returns what events tell; None when they do not tell how it began."""
    story: Story | None = None
    for event in events:
        kind = event.WhichOneof("event")
        if kind in ("started", "ended"):
            conversation = pb.Conversation()
            conversation.CopyFrom(event.started if kind == "started" else event.ended)
            story = Story(conversation, {}, event.event_time.ToNanoseconds() / 1e9)
        elif story is None:
            continue
        elif kind == "answered":
            story.conversation.turns.append(event.answered)
        elif kind == "consensus":
            story.conversation.consensus.CopyFrom(event.consensus)
        elif kind == "left":
            story.left[event.left.participant_id] = event.left.reason.message
        story.conversation.revision = event.revision
        story.conversation.update_time.CopyFrom(event.event_time)
    return story


def _key(name: str) -> str:
    return f"{PREFIX}:{{conversation:{name}}}:events"
