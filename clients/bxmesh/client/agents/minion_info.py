"""Minions as supervisors see them: what the registry knows of them, joined with their states."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from bxmesh.client.agents.calls import AgentCalls
from bxmesh.client.agents.live_agents import AgentFilter, AgentInfo, AgentTraits
from bxmesh.client.agents.minion_state import MARK, MinionState, MinionStatus
from bxmesh.client.agents.states import AgentState

__all__ = ["MinionEvent", "MinionInfo", "list_minions", "watch_minions"]

_READS_AT_ONCE = 32


@dataclass(frozen=True)
class MinionInfo:
    """A live minion."""

    agent: AgentInfo
    """What the registry knows of it."""
    state: MinionState
    """What it says that it is at, and what became of what it did."""
    update_time: datetime | None
    """When it said so; None before."""

    @property
    def agent_id(self) -> str:
        """The name."""
        return self.agent.agent_id

    @property
    def status(self) -> MinionStatus:
        """idle, working or draining."""
        return "draining" if self.agent.status == "draining" else self.state.status

    def said(self, state: AgentState) -> MinionInfo:
        """Returns the minion with a newer state."""
        try:
            read = MinionState.model_validate(state.value)
        except ValidationError:
            # Operators may write it too, and one unreadable state must not hide the others.
            read = MinionState()
        return replace(self, state=read, update_time=state.update_time)


@dataclass(frozen=True)
class MinionEvent:
    """One change of a minion."""

    kind: Literal["joined", "changed", "left"]
    """What happened."""
    minion: MinionInfo
    """The minion after the change; as it last stood when it left."""


def _filter(capabilities: Sequence[str], traits: AgentTraits) -> AgentFilter:
    metadata = {**traits.get("metadata", {}), **MARK}
    return {**traits, "capabilities": capabilities, "metadata": metadata}


async def list_minions(
    mesh: AgentCalls, capabilities: Sequence[str], traits: AgentTraits
) -> list[MinionInfo]:
    """Returns the live minions that fit, in the order of their names."""
    slots = asyncio.Semaphore(_READS_AT_ONCE)

    async def read(agent: AgentInfo) -> MinionInfo:
        async with slots:
            return _joined(agent).said(await mesh.state(agent.agent_id))

    agents = await mesh.agents(**_filter(capabilities, traits))
    return list(await asyncio.gather(*map(read, agents)))


async def watch_minions(
    mesh: AgentCalls, capabilities: Sequence[str], traits: AgentTraits
) -> AsyncGenerator[MinionEvent, None]:
    """Yields what happens to the minions that fit, beginning with the live ones as joined."""
    watch = _Watch(mesh)
    try:
        watch.start("", watch.follow_agents(_filter(capabilities, traits)))
        while True:
            yield await watch.next()
    finally:
        await watch.close()


class _Watch:
    """One watch of the registry, and one of the state of each minion."""

    def __init__(self, mesh: AgentCalls) -> None:
        self._mesh = mesh
        self._minions: dict[str, MinionInfo] = {}
        self._told: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # A name stands for its minion's latest change, so that a slow reader skips the others.
        self._queue: asyncio.Queue[MinionEvent | str | BaseException] = asyncio.Queue()
        self._changes: set[str] = set()

    def start(self, name: str, following: Coroutine[Any, Any, None]) -> None:
        """Follows the registry, or the state of the minion of that name."""
        self._tasks[name] = task = asyncio.create_task(following)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._queue.put_nowait(error)

    async def next(self) -> MinionEvent:
        """Returns the next event; raises what ended a watch."""
        while True:
            match await self._queue.get():
                case MinionEvent() as event:
                    return event
                case str() as name:
                    self._changes.discard(name)
                    if name in self._told:
                        return MinionEvent("changed", self._minions[name])
                case BaseException() as error:
                    raise error

    async def close(self) -> None:
        """Ends all watches."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    async def follow_agents(self, which: AgentFilter) -> None:
        """Tells who joins, changes and leaves."""
        async with aclosing(self._mesh.watch_agents(**which)) as events:
            async for event in events:
                name = event.agent.agent_id
                if event.kind == "left":
                    self._left(event.agent)
                elif name in self._minions:
                    self._change(replace(self._minions[name], agent=event.agent))
                else:
                    self._minions[name] = _joined(event.agent)
                    self.start(name, self._follow_state(name))

    async def _follow_state(self, name: str) -> None:
        async with aclosing(self._mesh.watch_state(name)) as states:
            async for state in states:
                self._change(self._minions[name].said(state))

    def _change(self, minion: MinionInfo) -> None:
        name = minion.agent_id
        self._minions[name] = minion
        if name not in self._told and minion.update_time is None:
            return
        if name not in self._told:
            self._told.add(name)
            self._queue.put_nowait(MinionEvent("joined", minion))
        elif name not in self._changes:
            self._changes.add(name)
            self._queue.put_nowait(name)

    def _left(self, agent: AgentInfo) -> None:
        name = agent.agent_id
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()
        minion = self._minions.pop(name, None)
        if minion is not None and name in self._told:
            self._told.discard(name)
            self._queue.put_nowait(MinionEvent("left", replace(minion, agent=agent)))


def _joined(agent: AgentInfo) -> MinionInfo:
    return MinionInfo(agent, MinionState(), None)
