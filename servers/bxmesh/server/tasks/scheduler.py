"""Gives what waits to agents that have become free. Any number of servers may do so at a time."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Sequence

from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.server.errors import MeshError
from bxmesh.server.streams.bells import Bells
from bxmesh.server.tasks.circuits import attempt_name, targets
from bxmesh.server.tasks.demand import Demand, candidate, in_order
from bxmesh.server.tasks.keys import SLOTS_TOPIC
from bxmesh.server.tasks.roster import Roster, holder, takes_work
from bxmesh.server.tasks.store import TaskStore, Waiting

_log = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 1.0
_PAUSE_SECONDS = 0.2
_FAULT_SECONDS = 1.0
_MOST_AT_ONCE = 256
MOST_UNMET = 64
_MOST_DEMANDS = 512
_MOST_LOOKED_AT = 2048


class Scheduler:
    """Looks whenever something waits and somebody could take it."""

    def __init__(self, store: TaskStore, roster: Roster, bells: Bells) -> None:
        self.unmet: list[str] = []
        """Demands that nobody met when it looked last, some of them when there are many, and those that
        came since."""
        self._store = store
        self._roster = roster
        self._bells = bells
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Says that the roster has changed."""
        self._news.set()

    async def run(self) -> None:
        """Gives out what waits until it is cancelled."""
        async with self._bells.watch(SLOTS_TOPIC) as bell:
            while True:
                bell.clear()
                self._news.clear()
                try:
                    more = await self.round()
                except MeshError as error:
                    _log.info("tasks wait: %s", error.message)
                    more = False
                    await asyncio.sleep(_PAUSE_SECONDS)
                except Exception:
                    # What Redis holds may be anything; others' tasks wait until it is mended.
                    _log.exception("tasks wait")
                    more = False
                    await asyncio.sleep(_FAULT_SECONDS)
                if not more:
                    waiting = [
                        asyncio.ensure_future(bell.wait(_LONGEST_WAIT_SECONDS)),
                        asyncio.ensure_future(self._news.wait()),
                    ]
                    try:
                        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for each in waiting:
                            each.cancel()

    async def round(self) -> bool:
        """Gives out as much as it can at once; returns whether more may follow at once."""
        demands, load = await self._store.overview(self._bells.channel)
        circuits = self._store.circuits
        if demands:
            await circuits.look()
        agents = {
            name: [
                agent
                for agent in demand.offered_by(self._roster)
                if circuits.may_try(*targets(demand, agent))
            ]
            for name, demand in demands.items()
        }
        self.unmet = [name for name, offering in agents.items() if not offering][:MOST_UNMET]
        free = {
            agent.agent_id: agent.max_concurrent_tasks - load.get(holder(agent), 0)
            for offering in agents.values()
            for agent in offering
            if takes_work(agent)
        }
        counts = {}
        for name, offering in agents.items():
            slots = sum(max(0, free.get(agent.agent_id, 0)) for agent in offering)
            if slots:
                counts[name] = min(slots, _MOST_AT_ONCE)
        if not counts:
            return False
        if len(counts) > _MOST_DEMANDS:
            counts = dict(random.sample(list(counts.items()), _MOST_DEMANDS))
        # Redis does nothing else while it reads them, so of many demands fewer tasks each.
        share = max(1, _MOST_LOOKED_AT // len(counts))
        waiting = await self._store.first(
            {name: min(count, share) for name, count in counts.items()}
        )
        chosen = []
        for task in heapq.nsmallest(_MOST_AT_ONCE, waiting, key=lambda task: task.score):
            agent = _choose(task, agents[task.demand], free)
            if agent is not None:
                free[agent.agent_id] -= 1
                chosen.append((task, agent))
        given = await asyncio.gather(
            *(self._give(task, demands[task.demand], agent) for task, agent in chosen)
        )
        return any(given)

    async def _give(self, task: Waiting, demand: Demand, agent: Agent) -> bool:
        to = candidate(agent, demand.capabilities, self._store.options.timeout)
        circuits, uses = self._store.circuits, targets(demand, agent)
        trial = attempt_name(task.task_id, task.attempts + 1)
        if not await circuits.allows(*uses, trial=trial, longest=to["timeout"] / 1e6):
            # It is known now to be open or on trial, and others may take the task.
            return True
        given = False
        try:
            given = await self._store.assign(task, [to])
        finally:
            if not given and not circuits.closed(*uses):
                await asyncio.gather(*(circuits.abandoned(target, trial) for target in uses))
        return given


def _choose(task: Waiting, offering: Sequence[Agent], free: dict[str, int]) -> Agent | None:
    able = [agent for agent in offering if free.get(agent.agent_id, 0) > 0]
    if not able:
        return None
    if task.sticky_key:
        return in_order(able, task.sticky_key)[0]
    return min(in_order(able, "")[:2], key=lambda agent: _load(agent, free))


def _load(agent: Agent, free: dict[str, int]) -> float:
    return max(agent.current_load, 1 - free[agent.agent_id] / max(1, agent.max_concurrent_tasks))
