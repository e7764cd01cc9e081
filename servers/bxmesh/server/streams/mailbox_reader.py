"""An agent inside the mesh: reads its own mailbox, without a connection in between."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from functools import partial

from bxmesh.server.errors import MeshError, deadline_exceeded, internal
from bxmesh.server.streams.bells import Bells
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.entries import HeldEntry
from bxmesh.server.streams.handling import remaining_seconds
from bxmesh.server.streams.mailboxes import Mailboxes, topic
from bxmesh.server.streams.queue import cancelled
from bxmesh.server.streams.settlement import worker_lost
from bxmesh.work.v1 import work_pb2

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.5
_LOOK_SECONDS = 60.0

HandleEntry = Callable[[HeldEntry], Awaitable[None]]
"""Does what an entry asks for; `over` is set on the entry when that has become pointless. Raises
MeshError when it cannot: the entry is then tried again or becomes a dead letter, by the error's code."""


class MailboxReader:
    """Takes what arrives for one agent, a few at a time; `run` returns after `stop`."""

    def __init__(
        self,
        mailboxes: Mailboxes,
        bells: Bells,
        agent_id: str,
        handle: HandleEntry,
        *,
        concurrency: int = 1,
    ) -> None:
        self.agent_id = agent_id
        self._mailboxes = mailboxes
        self._bells = bells
        self._handle = handle
        self._concurrency = concurrency
        # Another process of this name would be a restarted one, and gets what this one held.
        self._connection_id = uuid.uuid4().hex
        self._settlement = mailboxes.settlement(self._connection_id)
        self._held: dict[HeldEntry, asyncio.Task[None]] = {}
        self._stopping = asyncio.Event()
        bells.on_cancel = self._cancel

    @property
    def active(self) -> int:
        """How many entries it works on."""
        return len(self._held)

    def stop(self) -> None:
        """Takes nothing new; `run` returns when what was begun is done."""
        self._stopping.set()

    async def run(self) -> None:
        """Reads until it is stopped."""
        await self._attach()
        keeper = asyncio.create_task(self._renew())
        reader = asyncio.create_task(self._read())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({reader, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await end_tasks(reader)
            if self._held:
                await asyncio.wait(tuple(self._held.values()))
        finally:
            await end_tasks(stopping, reader, keeper, *self._held.values())
            try:
                await self._mailboxes.detach(
                    self.agent_id, self._connection_id, self._bells.channel, last=True
                )
            except MeshError as error:
                _log.info("the mailbox was not left: %s", error.message)

    async def _attach(self) -> None:
        while True:
            try:
                await self._mailboxes.attach(
                    self.agent_id, self._connection_id, self._connection_id, self._bells.channel
                )
                return
            except MeshError as error:
                _log.info("the mailbox waits: %s", error.message)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _read(self) -> None:
        async with self._bells.watch(topic(self.agent_id)) as bell:
            while True:
                free = self._concurrency - len(self._held)
                if free <= 0:
                    await asyncio.wait(
                        tuple(self._held.values()), return_when=asyncio.FIRST_COMPLETED
                    )
                    continue
                bell.clear()
                try:
                    entries = await self._mailboxes.take(
                        self.agent_id, self._connection_id, free, self._bells.channel
                    )
                except MeshError as error:
                    _log.info("the mailbox waits: %s", error.message)
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                for held in entries:
                    self._held[held] = asyncio.create_task(self._work(held))
                    self._held[held].add_done_callback(partial(self._done, held))
                if not entries:
                    await bell.wait(_LOOK_SECONDS)

    def _done(self, held: HeldEntry, task: asyncio.Task[None]) -> None:
        del self._held[held]
        if not task.cancelled() and (error := task.exception()):
            _log.error("entry %s is left to its lease", held.entry_id, exc_info=error)

    async def _work(self, held: HeldEntry) -> None:
        remaining = remaining_seconds(held.item)
        try:
            if held.problem is not None:
                raise held.problem
            if held.attempt > held.item.max_attempts:
                raise worker_lost(held)
            if remaining is not None and remaining <= 0:
                raise deadline_exceeded("The deadline passed while the work waited.")
            await self._handle(held)
        except MeshError as error:
            failure = cancelled() if held.over else error
            if held.problem is not None or held.attempt > held.item.max_attempts:
                await self._settlement.bury(held, failure)
            else:
                await self._settlement.settle(held, None, failure)
        except Exception:
            _log.exception("the handler of %s failed", held.item.kind)
            await self._settlement.settle(
                held, None, internal("The agent failed; its log says why.")
            )
        else:
            await self._mailboxes.acknowledge(self._settlement, held)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._mailboxes.options.lease / 3)
            try:
                lost = await self._mailboxes.extend(self._connection_id, tuple(self._held))
            except MeshError as error:
                _log.warning("leases were not renewed: %s", error.message)
                continue
            for held in self._held:
                if held.item.item_id in lost:
                    held.over = True

    def _cancel(self, cancellation: work_pb2.Cancellation) -> None:
        for held in self._held:
            if held.item.item_id == cancellation.item_id:
                held.over = True
