"""Mailboxes: what waits for an agent, in the order of its priority, until the agent has answered it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from redis.asyncio import Redis

from bxmesh.server.errors import MeshError, resource_exhausted
from bxmesh.server.security.quotas import Allowance
from bxmesh.server.streams import mailbox_scripts as scripts
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.entries import HeldEntry
from bxmesh.server.streams.keys import GROUP, QueueKeys
from bxmesh.server.streams.maintenance import Maintenance
from bxmesh.server.streams.metrics import WorkerMetrics
from bxmesh.server.streams.queue import (
    QueueOptions,
    Ticket,
    WorkQueue,
    request_milliseconds,
    ticket_of,
)
from bxmesh.server.streams.scripts import RENEW
from bxmesh.server.streams.seals import UNSEALED, Seals
from bxmesh.server.streams.settlement import Settlement, letter_facts
from bxmesh.work.v1 import work_pb2

QUEUE = "agents"
MESSAGE = "message"
TASK = "task"
REPLAYED = "replayed:"
"""What the item ids of messages that come out of a history begin with."""
LOW, MEDIUM, HIGH, CRITICAL = 1, 2, 3, 4

_PAGE = 200
_MOST_PAGES = 20


@dataclass(frozen=True, slots=True)
class MailboxOptions:
    """How mailboxes behave. Times are in seconds."""

    capacity: int = 10_000
    """What may wait or be held in one mailbox; beyond that posting answers RESOURCE_EXHAUSTED."""
    most_mailboxes: int = 100_000
    """Mailboxes with anything in them; agents that are not known get no further one."""
    lease: float = 30.0
    """How long a delivery may go unanswered and unextended."""
    max_attempts: int = 5
    """Tries before a message becomes a dead letter."""
    retry_base: float = 0.5
    """The first retry waits a random time up to this, each further one up to twice as long."""
    retry_cap: float = 60.0
    """No retry waits longer, unless the agent asks for it."""
    outcome_lifetime: float = 3600.0
    """How long a message id that its sender chose is remembered after the message has been handled."""
    history: int = 1000
    """Acknowledged messages that are kept for replay, the latest of each mailbox."""
    history_lifetime: float = 86400.0
    """How long they are kept after the last of them."""
    seals: Seals = UNSEALED
    """What entries are sealed with; those without a good seal are refused."""

    def queue(self) -> QueueOptions:
        """The options of the queue that all mailboxes are in."""
        return QueueOptions(
            QUEUE,
            seals=self.seals,
            max_depth=self.capacity,
            lease=self.lease,
            max_attempts=self.max_attempts,
            retry_base=self.retry_base,
            retry_cap=self.retry_cap,
            outcome_lifetime=self.outcome_lifetime,
        )


@dataclass(frozen=True, slots=True)
class SharedAllowance:
    """How many messages may wait in all the mailboxes of an owner together."""

    allowance: Allowance
    agents: Callable[[], Awaitable[Collection[str]]]
    """Returns whose mailboxes those are."""


class Mailboxes:
    """All mailboxes: posting, taking, holding and settling. Methods raise MeshError UNAVAILABLE
    without Redis."""

    def __init__(self, redis: Redis, options: MailboxOptions | None = None) -> None:
        self.options = options or MailboxOptions()
        self.queue = WorkQueue(redis, self.options.queue())
        self.metrics = WorkerMetrics(QUEUE)
        self.maintenance = MailboxMaintenance(self.queue)

    @property
    def keys(self) -> QueueKeys:
        """The keys of the queue that all mailboxes are in."""
        return self.queue.keys

    async def put(
        self,
        agent_id: str,
        kind: str,
        payload: Message,
        *,
        priority: int = MEDIUM,
        item_id: str = "",
        request_id: str = "",
        reply_to: str = "",
        deadline: float | None = None,
        max_attempts: int | None = None,
        identity: str = "",
        shared: SharedAllowance | None = None,
    ) -> Ticket:
        """Posts an item; it is durable when this returns.

        Takes what `WorkQueue.enqueue` takes. Raises MeshError RESOURCE_EXHAUSTED (MAILBOX_FULL,
        QUOTA_EXCEEDED), DEADLINE_EXCEEDED when it is too late already.

        What is posted at once, through whichever servers, does not exceed a shared allowance. What
        comes in otherwise, such as replays and deliveries of tasks, and what has left, counts a
        quarter of a second later.
        """
        item = self.queue.new_item(
            kind,
            payload,
            item_id=item_id,
            request_id=request_id,
            reply_to=reply_to,
            deadline=deadline,
            max_attempts=max_attempts,
            identity=identity,
        )
        with self.queue.sending(item):
            return await self._put(agent_id, priority, item, shared)

    async def _put(
        self, agent_id: str, priority: int, item: work_pb2.WorkItem, shared: SharedAllowance | None
    ) -> Ticket:
        most = shared.allowance.most if shared else 0
        owner = shared.allowance.identity_id if shared else ""
        answer = await self._post(agent_id, priority, item, owner, most)
        if shared and answer == [-3, -1]:
            agents = {agent_id, *await shared.agents()}
            answer = await self._post(agent_id, priority, item, owner, most, agents)
        if answer[0] == -1:
            raise resource_exhausted(
                f"The mailbox of {agent_id} is full: {answer[1]} items wait. Try again later.",
                retry_after=1.0,
                reason="MAILBOX_FULL",
                subject=f"agent:{agent_id}",
            )
        if answer[0] == -2:
            raise resource_exhausted(
                f"There are {answer[1]} mailboxes already.",
                retry_after=60.0,
                reason="TOO_MANY_MAILBOXES",
                subject="mailboxes",
            )
        if shared and answer[0] == -3:
            raise shared.allowance.refusal(answer[1])
        return ticket_of(answer, item.request_id)

    async def _post(
        self,
        agent_id: str,
        priority: int,
        item: work_pb2.WorkItem,
        owner: str,
        most: int,
        agents: Collection[str] = (),
    ) -> Any:
        keys, inbox = self.keys, self.keys.inbox(agent_id, priority)
        with redis_errors():
            return await self.queue.scripts.call(
                scripts.POST,
                [
                    inbox,
                    keys.request(item.request_id) if item.request_id else inbox,
                    keys.waiting(owner) if owner else inbox,
                ],
                [
                    self.queue.entry_of(item),
                    item.item_id,
                    request_milliseconds(item),
                    self.options.capacity,
                    self.options.most_mailboxes,
                    most,
                    *agents,
                ],
            )

    async def hold_back(
        self,
        agent_id: str,
        kind: str,
        payload: Message,
        error: MeshError,
        *,
        priority: int = MEDIUM,
        request_id: str = "",
        identity: str = "",
    ) -> Ticket:
        """Makes an item a dead letter that was never delivered; a replay posts it.

        Raises MeshError RESOURCE_EXHAUSTED (TOO_MANY_DEAD_LETTERS).
        """
        queue, keys = self.queue, self.keys
        item = queue.new_item(kind, payload, request_id=request_id, identity=identity)
        inbox = keys.inbox(agent_id, priority)
        with queue.sending(item):
            letter = work_pb2.DeadLetter(
                entry=queue.entry_of(item), origin_stream=inbox, trace_context=item.trace_context
            )
            letter.error.CopyFrom(error.to_status())
            letter.last_time.GetCurrentTime()
            letter.first_time.CopyFrom(letter.last_time)
            with redis_errors():
                answer = await queue.scripts.call(
                    scripts.HOLD_BACK,
                    [
                        inbox,
                        keys.request(request_id) if request_id else inbox,
                        keys.dead,
                        keys.journal,
                        keys.dead_of(agent_id),
                    ],
                    [
                        letter.SerializeToString(),
                        item.item_id,
                        request_milliseconds(item),
                        queue.options.max_dead_letters,
                        int(queue.options.dead_letter_lifetime * 1000),
                        letter_facts(item, 0, error),
                        self.options.capacity,
                    ],
                )
        if answer[0] == -1:
            raise resource_exhausted(
                f"{answer[1]} dead letters of {agent_id} wait already. Have them replayed or purged.",
                retry_after=60.0,
                reason="TOO_MANY_DEAD_LETTERS",
                subject=f"agent:{agent_id}",
            )
        return ticket_of(answer, request_id)

    async def attach(
        self, agent_id: str, connection_id: str, lease_id: str, channel: str
    ) -> list[HeldEntry]:
        """Enters a connection; returns what it holds from before.

        What connections under another lease of the registry hold is given back: their process has
        been replaced.
        """
        keys = self.keys
        inboxes = keys.inboxes(agent_id)
        with redis_errors():
            await self.queue.scripts.call(
                scripts.ATTACH,
                [keys.connections(agent_id), keys.attached(agent_id), *inboxes],
                [GROUP, connection_id, lease_id, channel],
            )
            pages = await self.queue.scripts.call(scripts.HELD, inboxes, [GROUP, connection_id])
        deliveries = [count for _, _, counts in pages for count in counts]
        held = _entries(self.queue, [page[:2] for page in pages])
        for each, count in zip(held, deliveries, strict=True):
            each.attempt += count - 1
        return [each for each in held if each.data]

    async def detach(self, agent_id: str, connection_id: str, channel: str, *, last: bool) -> None:
        """Forgets a connection, unless it holds something; `last` of the agent on this server."""
        keys = self.keys
        with redis_errors():
            await self.queue.scripts.call(
                scripts.DETACH,
                [keys.connections(agent_id), keys.attached(agent_id), *keys.inboxes(agent_id)],
                [GROUP, connection_id, channel if last else ""],
            )

    async def take(
        self, agent_id: str, connection_id: str, most: int, channel: str
    ) -> list[HeldEntry]:
        """Takes what waits, by priority, at most so many, for a connection.

        When that is all there is, the channel is told of the next arrival (topic `inbox:<agent>`).
        """
        keys = self.keys
        with redis_errors():
            pages = await self.queue.scripts.call(
                scripts.TAKE,
                [
                    keys.wanted(topic(agent_id)),
                    keys.leased,
                    keys.figures(agent_id),
                    *keys.inboxes(agent_id),
                ],
                [GROUP, connection_id, most, channel, int(self.options.lease * 1000)],
            )
        return _entries(self.queue, pages)

    async def extend(self, connection_id: str, held: Sequence[HeldEntry]) -> set[str]:
        """Renews leases; returns the items at which to work on makes no sense."""
        by_stream: dict[str, list[HeldEntry]] = {}
        for each in held:
            by_stream.setdefault(each.stream, []).append(each)
        lost: set[str] = set()
        for stream, group in by_stream.items():
            with redis_errors():
                over = await self.queue.scripts.call(
                    RENEW,
                    [stream, *(self.keys.outcome(each.item.item_id) for each in group)],
                    [GROUP, connection_id, *(each.entry_id for each in group)],
                )
            lost.update(each.item.item_id for each in group if each.entry_id in over)
        return lost

    async def hand_over(self, held: HeldEntry, connection_id: str, other_id: str) -> bool:
        """Gives what a connection holds to another of the same agent; False when it was lost."""
        with redis_errors():
            return bool(
                await self.queue.scripts.call(
                    scripts.HAND_OVER,
                    [held.stream],
                    [GROUP, connection_id, held.entry_id, other_id],
                )
            )

    def settlement(self, connection_id: str) -> Settlement:
        """How a connection settles what it holds."""
        return Settlement(self.queue, connection_id, self.metrics, self.maintenance.expect)

    async def acknowledge(
        self, settlement: Settlement, held: HeldEntry, answer: Any = None
    ) -> bool:
        """Ends an item, with an answer (an Any) for whoever waits; False when the lease was lost."""
        item = held.item
        # What is replayed out of the history is there already.
        kept = item.kind == MESSAGE and not item.item_id.startswith(REPLAYED)
        return await settlement.acknowledge(
            held,
            answer,
            history=self.options.history if kept else 0,
            history_seconds=self.options.history_lifetime,
        )

    async def count(self, agent_id: str, what: str, more: int = 1) -> None:
        """Adds to a figure of an agent: redelivered or expired."""
        with redis_errors():
            await self.queue.redis.hincrby(self.keys.figures(agent_id), what, more)

    async def tell(self, agent_id: str, notice: work_pb2.Notice) -> int:
        """Tells a server that the agent is connected to, at most once; returns how many heard it."""
        with redis_errors():
            return int(
                await self.queue.scripts.call(
                    scripts.TELL, [self.keys.attached(agent_id)], [notice.SerializeToString()]
                )
            )


class MailboxMaintenance(Maintenance):
    """Keeps all mailboxes in order: due retries, deliveries that nobody extends, old dead letters."""

    def __init__(self, queue: WorkQueue) -> None:
        super().__init__(queue, "")
        self._cursor: bytes | str = "0"

    async def reclaim(self) -> None:
        """Gives what was held for too long without a word back to its mailbox."""
        lease = int(self._queue.options.lease * 1000)
        while (
            await self._queue.scripts.call(
                scripts.RECLAIM, [self._queue.keys.leased], [GROUP, lease, _PAGE]
            )
            >= _PAGE
        ):
            pass

    async def tidy(self) -> None:
        """Throws away old dead letters, and some of the mailboxes that nobody uses any more."""
        keys = self._queue.keys
        oldest = int((time.time() - self._queue.options.dead_letter_lifetime) * 1000)
        await self._queue.redis.xtrim(keys.dead, minid=max(0, oldest))
        for _ in range(_MOST_PAGES):
            self._cursor = await self._queue.scripts.call(
                scripts.FORGET_MAILBOXES, [keys.mailboxes], [keys.root, self._cursor, _PAGE]
            )
            if self._cursor == b"0":
                break


def topic(agent_id: str) -> str:
    """What changes when something arrives in a mailbox."""
    return f"inbox:{agent_id}"


def _entries(queue: WorkQueue, pages: Sequence[Any]) -> list[HeldEntry]:
    return [
        queue.read(stream.decode(), entry_id, _fields(fields))
        for stream, entries in pages
        for entry_id, fields in entries
    ]


def _fields(fields: Sequence[bytes] | None) -> Mapping[bytes, bytes]:
    return dict(zip(fields[0::2], fields[1::2], strict=True)) if fields else {}
