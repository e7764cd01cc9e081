"""What happens in Redis, whoever does it: agents come and go, tasks change, letters die.

The servers that keep a log read these streams as one group, so that each fact is a line of one of
them.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from bxmesh.agent.v1 import task_pb2
from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.server.activity.events import AgentEvent, ErrorEvent, Event, TaskEvent, known_reason
from bxmesh.server.live_agent_scripts import EVENTS
from bxmesh.server.streams.connection import is_missing_group
from bxmesh.server.streams.keys import QueueKeys

__all__ = ["Feed", "journal", "registry"]

_log = logging.getLogger(__name__)

_GROUP = "activity"
# Nothing is acknowledged, so that nobody needs a name of its own.
_CONSUMER = "server"
_PAGE = 500
# What happened while no server kept a log is written for so long afterwards.
_CATCH_UP_SECONDS = 3600.0
_RENEW_SECONDS = 60.0
_MOST_CAPABILITIES = 32

Read = Callable[[str, Mapping[bytes, bytes]], Event | None]
"""Makes an event of an entry by its id and fields. Raises KeyError, ValueError or DecodeError for
one that nobody of the mesh has written."""


class Feed:
    """A stream, and what its entries say. Methods raise what Redis raises."""

    def __init__(
        self,
        redis: Redis,
        stream: str,
        read: Read,
        record: Callable[[Event], None],
        *,
        expires: bool,
    ) -> None:
        """`expires` makes the stream vanish when nobody has read it for an hour."""
        self._redis = redis
        self._stream = stream
        self._read = read
        self._record = record
        self._expires = expires
        self._next_renewal = 0.0

    async def join(self) -> None:
        """Makes the group, from now on, unless it is there."""
        await self._join("$")

    async def _join(self, after: str) -> None:
        try:
            await self._redis.xgroup_create(self._stream, _GROUP, id=after, mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._next_renewal = 0.0
        await self._renew()

    async def catch_up(self) -> None:
        """Records what is new."""
        await self._renew()
        while True:
            entries = await self._page()
            for entry_id, fields in entries:
                self._take(entry_id, fields)
            if len(entries) < _PAGE:
                return

    async def _page(self) -> list[tuple[bytes, Mapping[bytes, bytes]]]:
        try:
            answer: Any = await self._redis.xreadgroup(
                _GROUP, _CONSUMER, {self._stream: ">"}, count=_PAGE, noack=True
            )
        except ResponseError as error:
            if not is_missing_group(error):
                raise
            # Redis has lost the stream with it: what is there now has been written since.
            await self._join("0")
            return await self._page()
        # RESP3 answers with a mapping of lists of pages, RESP2 with a list of pairs.
        if isinstance(answer, dict):
            return [entry for pages in answer.values() for entry in pages[0]]
        return [entry for _, entries in answer or () for entry in entries]

    def _take(self, entry_id: bytes, fields: Mapping[bytes, bytes]) -> None:
        try:
            event = self._read(entry_id.decode(), fields)
        except (KeyError, ValueError, DecodeError) as error:
            _log.info("an entry of %s cannot be read: %s", self._stream, error)
            return
        if event is not None and event.time > time.time() - _CATCH_UP_SECONDS:
            self._record(event)

    async def _renew(self) -> None:
        now = time.monotonic()
        if self._expires and now >= self._next_renewal:
            await self._redis.pexpire(self._stream, int(_CATCH_UP_SECONDS * 1000))
            self._next_renewal = now + _RENEW_SECONDS


def registry(redis: Redis, record: Callable[[Event], None]) -> Feed:
    """Agents that come and go."""
    return Feed(redis, EVENTS, _agent, record, expires=False)


def journal(redis: Redis, queue: str, record: Callable[[Event], None]) -> Feed:
    """What a queue's scripts tell: changes of tasks, dead letters."""

    def read(entry_id: str, fields: Mapping[bytes, bytes]) -> Event:
        if b"task" in fields:
            return _task(fields)
        return _dead_letter(queue, entry_id, fields)

    return Feed(redis, QueueKeys(queue).journal, read, record, expires=True)


def _agent(entry_id: str, fields: Mapping[bytes, bytes]) -> AgentEvent | None:
    kind = fields[b"kind"].decode()
    if kind == "change":
        return None
    agent = Agent.FromString(fields[b"record"])
    joined = kind == "join"
    return AgentEvent(
        time=int(fields[b"time"]) / 1000,
        event="registered" if joined else "left",
        agent_id=agent.agent_id,
        agent_type=agent.agent_type,
        version=agent.version,
        identity=agent.identity,
        capabilities=tuple(each.name for each in agent.capabilities[:_MOST_CAPABILITIES])
        if joined
        else None,
        cause="" if joined else kind,
        revision=int(entry_id.partition("-")[0]),
    )


def _task(fields: Mapping[bytes, bytes]) -> TaskEvent:
    state = task_pb2.TaskState.Name(task_pb2.TaskState.ValueType(int(fields[b"state"])))
    changed = int(fields[b"time"])
    reason = fields[b"reason"].decode()
    return TaskEvent(
        time=changed / 1e6,
        event=state.removeprefix("TASK_STATE_").lower(),
        task_id=fields[b"task"].decode(),
        task_type=fields[b"type"].decode(),
        owner=fields[b"owner"].decode(),
        parent_task_id=fields[b"parent"].decode(),
        priority=int(fields[b"priority"]),
        agent_id=fields[b"agent"].decode(),
        attempt=int(fields[b"attempt"]),
        revision=int(fields[b"revision"]),
        seconds=(changed - int(fields[b"created"])) / 1e6,
        reason=known_reason(reason) if reason else "",
    )


def _dead_letter(queue: str, entry_id: str, fields: Mapping[bytes, bytes]) -> ErrorEvent:
    facts = json.loads(fields[b"facts"])
    return ErrorEvent(
        time=int(entry_id.partition("-")[0]) / 1000,
        event="dead_letter",
        queue=queue,
        letter_id=fields[b"letter"].decode(),
        agent_id=QueueKeys(queue).agent_of(fields[b"from"].decode()),
        item_id=str(facts["item_id"]),
        item_kind=str(facts["kind"]),
        attempts=int(facts["attempts"]),
        code=str(facts["code"]),
        reason=known_reason(str(facts["reason"])),
    )
