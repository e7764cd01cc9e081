"""Looks after tasks whose agents are gone, whose time is over, or whose retry is due."""

from __future__ import annotations

import asyncio
import logging
import time

from bxmesh.server.errors import MeshError
from bxmesh.server.live_agent_scripts import EVENTS
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.tasks import errors
from bxmesh.server.tasks.keys import SPANS
from bxmesh.server.tasks.roster import Roster, holder
from bxmesh.server.tasks.scheduler import Scheduler
from bxmesh.server.tasks.store import TaskStore

_log = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 1.0
_PAUSE_SECONDS = 0.2
# What a server that died had begun to give to an agent that was gone is found so often.
_COMPARE_SECONDS = 10.0
_TRIM_SECONDS = 60.0
# Changes of the registry gather for so long before they are looked at, however many come.
_GATHER_SECONDS = 0.1
_GONE = "is gone"


class Sweeper:
    """Follows the registry and the clock. Any number of servers may do so at a time."""

    def __init__(self, store: TaskStore, roster: Roster, scheduler: Scheduler) -> None:
        self._store = store
        self._roster = roster
        self._scheduler = scheduler
        self._next_compare = 0.0
        self._next_trim = 0.0

    async def follow_agents(self) -> None:
        """Takes the tasks of agents that are gone from them, until it is cancelled."""
        seen = 0
        while True:
            try:
                await self.catch_up()
                # Others may have read on in the roster.
                if self._roster.revision != seen:
                    seen = self._roster.revision
                    self._scheduler.wake()
                await asyncio.sleep(_GATHER_SECONDS)
                await self._store.redis.xread(
                    {EVENTS: f"{seen}-0"}, count=1, block=int(_LONGEST_WAIT_SECONDS * 1000)
                )
            except (MeshError, *REDIS_ERRORS) as error:
                _log.info("tasks of lost agents are not looked after: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)
            except Exception:
                # What Redis holds may be anything.
                _log.exception("tasks of lost agents are not looked after")
                await asyncio.sleep(_LONGEST_WAIT_SECONDS)

    async def catch_up(self) -> None:
        """Looks once who is gone."""
        roster = self._roster
        await roster.refresh()
        while roster.departed:
            agent, why = roster.departed[0]
            count = await self._store.release(holder(agent), errors.agent_lost(agent.agent_id, why))
            roster.departed.pop(0)
            if count:
                _log.info("%s %s; %d tasks are put back", agent.agent_id, why, count)
        if roster.gap or time.monotonic() >= self._next_compare:
            roster.gap = False
            try:
                await self.compare()
            except BaseException:
                roster.gap = True
                raise
            self._next_compare = time.monotonic() + _COMPARE_SECONDS

    async def compare(self) -> None:
        """Takes tasks from everybody who has some and is not there any more."""
        # Whoever had a task before the roster is read is in it, unless it has left.
        holders = await self._store.holders()
        await self._roster.refresh()
        present = {holder(agent) for agent in self._roster.agents.values()}
        for name in holders:
            if name not in present:
                agent_id = name.rpartition("@")[0]
                await self._store.release(name, errors.agent_lost(agent_id, _GONE))

    async def follow_clock(self) -> None:
        """Ends what has run out of its time and lets retries go on, until it is cancelled."""
        while True:
            wait = _LONGEST_WAIT_SECONDS
            try:
                next_due = await self._store.look()
                wait = min(wait, next_due if next_due is not None else wait)
                await self._trim()
            except (MeshError, *REDIS_ERRORS) as error:
                _log.info("the time of tasks is not looked after: %s", error)
            except Exception:
                _log.exception("the time of tasks is not looked after")
            # Never without a pause: the clock of Redis has the last word.
            await asyncio.sleep(max(0.005, wait))

    async def _trim(self) -> None:
        if time.monotonic() < self._next_trim:
            return
        self._next_trim = time.monotonic() + _TRIM_SECONDS
        oldest = time.time() - self._store.options.span_lifetime
        await self._store.redis.xtrim(SPANS, minid=max(0, int(oldest * 1000)))
