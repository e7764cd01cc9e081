"""What one server hears from the others: that something has changed, direct messages, and cancellations.

One subscription per process. What is heard may be lost with the connection to Redis: whoever waits
for a bell then looks for itself, as each bell rings when the connection is made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from google.protobuf.message import DecodeError
from redis.asyncio import Redis

from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.keys import QueueKeys, server_channel
from bxmesh.server.streams.listening import listen
from bxmesh.server.streams.mailbox_scripts import WANT
from bxmesh.work.v1 import work_pb2

_log = logging.getLogger(__name__)

_WISH_SECONDS = 300.0


class Bell:
    """Rings when a topic changes. Look first whether there is news, then wait."""

    def __init__(self, bells: Bells, topic: str) -> None:
        self._bells = bells
        self._topic = topic
        self._rung = asyncio.Event()

    async def want(self, keys: QueueKeys) -> None:
        """Asks to be told of the next change; then look how things stand. Raises what Redis raises."""
        self._rung.clear()
        await self._bells.want(keys, self._topic)

    def clear(self) -> None:
        """Forgets that it rang; for those whose looking asks to be told by itself."""
        self._rung.clear()

    def ring(self) -> None:
        """Wakes whoever waits."""
        self._rung.set()

    async def wait(self, seconds: float | None = None) -> bool:
        """Returns True when it rings, False after the time."""
        if seconds is None:
            await self._rung.wait()
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()
                return True
        return False


class Bells:
    """The bells of one process; use it as an async context manager."""

    def __init__(self, redis: Redis, cancellations: str = "") -> None:
        """`cancellations` is the channel of a queue on which items are named that nobody waits for."""
        self._cancellations = cancellations
        self.channel = server_channel(uuid.uuid4().hex[:12])
        self.on_direct: Callable[[work_pb2.DirectMessage], None] = lambda message: None
        self.on_cancel: Callable[[work_pb2.Cancellation], None] = lambda cancellation: None
        self.on_withdrawal: Callable[[str], None] = lambda item_id: None
        self._redis = redis
        self._scripts = ScriptBatcher(redis)
        self._bells: defaultdict[str, set[Bell]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Bells:
        channels = tuple(filter(None, (self.channel, self._cancellations)))
        self._listener = asyncio.create_task(
            listen(self._redis, channels, self._hear, self._ring_all)
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._listener is not None
        await end_tasks(self._listener)

    @contextlib.asynccontextmanager
    async def watch(self, topic: str) -> AsyncIterator[Bell]:
        """A bell for a topic, for as long as the block lasts."""
        bell = Bell(self, topic)
        self._bells[topic].add(bell)
        try:
            yield bell
        finally:
            group = self._bells[topic]
            group.discard(bell)
            if not group:
                del self._bells[topic]

    async def want(self, keys: QueueKeys, topic: str) -> None:
        """Asks, within a queue's keys, to be told once when a topic changes."""
        await self._scripts.call(
            WANT, [keys.wanted(topic)], [self.channel, int(_WISH_SECONDS * 1000)]
        )

    def _ring_all(self) -> None:
        for group in self._bells.values():
            for bell in group:
                bell.ring()

    def _hear(self, channel: str, data: bytes) -> None:
        if channel == self._cancellations:
            self.on_withdrawal(data.decode(errors="replace"))
            return
        try:
            notice = work_pb2.Notice.FromString(data)
        except DecodeError:
            _log.warning("an unreadable notice was dropped")
            return
        match notice.WhichOneof("notice"):
            case "topic":
                for bell in self._bells.get(notice.topic, ()):
                    bell.ring()
            case "direct":
                self.on_direct(notice.direct)
            case "cancel":
                self.on_cancel(notice.cancel)
