"""Minions: agents that are made of tools, and say what they are at."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from bxmesh.agent.v1.message_pb2 import Payload
from bxmesh.client.agents import payloads
from bxmesh.client.agents.agent import Agent
from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.agents.failures import Unhandled
from bxmesh.client.agents.handlers import task
from bxmesh.client.agents.minion_context import ToolContext
from bxmesh.client.agents.minion_state import MARK, MinionRecord, MinionState
from bxmesh.client.agents.minion_tools import Tool, marked, tool_of
from bxmesh.client.agents.task_context import TaskContext
from bxmesh.client.errors import BxmeshError

__all__ = ["Minion"]

# However many tasks there are, the state is not written more often.
_CLOSEST_SECONDS = 0.5

_log = logging.getLogger(__name__)

ToolSource = Callable[..., Any] | str
"""A function, "function@version" of the mesh, or a capability that others offer."""


class Minion(Agent[MinionState]):
    """An agent made of tools, each of which does the tasks of a capability.

    A tool is a function, whose annotations say what tasks take and give, and which runs in a thread
    unless it is a coroutine; `"name@version"`, a function that the mesh keeps; or the capability of
    another agent, to which the task is delegated. They are given by capability, or marked with
    `@tool`, as methods of a subclass too. Its state tells supervisors what it is at.
    """

    def __init__(
        self,
        agent_id: str,
        tools: Mapping[str, ToolSource] | Iterable[Callable[..., Any]] = (),
        *,
        agent_type: str | None = None,
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
        concurrency: int | None = None,
        lease_seconds: int | None = None,
        drain_seconds: float | None = None,
    ) -> None:
        """Takes its name, its tools, and what differs from the attributes of its class."""
        super().__init__(
            agent_id,
            agent_type=agent_type,
            version=version,
            metadata={**(metadata or {}), **MARK},
            concurrency=concurrency,
            lease_seconds=lease_seconds,
            drain_seconds=drain_seconds,
        )
        self._tools = {name: tool_of(name, source) for name, source in self._sources(tools).items()}
        self.capabilities = tuple(tool.capability for tool in self._tools.values())
        self._telling: list[asyncio.Task[None]] = []

    def _sources(
        self, tools: Mapping[str, ToolSource] | Iterable[Callable[..., Any]]
    ) -> dict[str, ToolSource]:
        found: dict[str, ToolSource] = {}
        for base in reversed(type(self).__mro__):
            for name, attribute in vars(base).items():
                if capability := marked(attribute):
                    found[capability] = getattr(self, name)
        if isinstance(tools, Mapping):
            return {**found, **tools}
        for function in tools:
            if not (capability := marked(function)):
                raise TypeError(f"{function!r} is not marked with @tool: give it by capability")
            found[capability] = function
        return found

    # At work

    @task("*")
    async def _work(self, context: TaskContext) -> Payload:
        tool = self._tools.get(context.type)
        if tool is None:
            raise Unhandled(f"tasks of the type {context.type}", self.agent_id)
        with self._record.doing(context.task):
            # What cannot be sent is a failure of the tool.
            return payloads.encode(await self._done(tool, context))

    async def _done(self, tool: Tool, context: TaskContext) -> object:
        told = ToolContext(
            self.mesh,
            context,
            threads=self._threads,
            progressed=lambda percent: self._record.progressed(context.id, percent),
        )
        try:
            return await tool.do(told)
        except asyncio.CancelledError:
            # Threads are not cancelled; they may ask.
            told.cancel_requested = True
            raise

    # Its state

    async def on_start(self) -> None:
        """Begins to tell its state; a subclass that overrides it calls it."""
        self._threads = ThreadPoolExecutor(self.concurrency, thread_name_prefix=self.agent_id)
        self._record = MinionRecord(self.state, self.version, self.concurrency)
        # What a former life was at is not true any more.
        await self._tell()
        self._telling = [
            asyncio.create_task(self._keep_telling()),
            asyncio.create_task(self._drain()),
        ]

    async def on_stop(self) -> None:
        """Tells its state a last time; a subclass that overrides it calls it."""
        for one in self._telling:
            one.cancel()
        await asyncio.wait(self._telling)
        with suppress(BxmeshError):
            await self._tell()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _tell(self) -> None:
        await self.update_state(lambda _: self._record.state())

    async def _keep_telling(self) -> None:
        backoff = Backoff(who=f"the state of {self.agent_id}")
        while True:
            await self._record.changed.wait()
            try:
                await self._tell()
                backoff.reset()
            except BxmeshError as error:
                self._record.changed.set()
                await backoff.wait(error)
            await asyncio.sleep(_CLOSEST_SECONDS)

    async def _drain(self) -> None:
        await self._running.stopping.wait()
        self._record.draining = True
        self._record.changed.set()
