"""A host runs the definitions of a mesh as agents."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext
from typing import Self

from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.agents.signals import stopped_by_signals
from bxmesh.client.definitions import DefinitionEvent
from bxmesh.client.host.any_model import AnyModelBehaviour
from bxmesh.client.host.behaviours import Behaviour, ChainBehaviour, RuleBehaviour
from bxmesh.client.host.figures import AgentFigures
from bxmesh.client.host.model import ModelBehaviour
from bxmesh.client.host.models import Models, ModelSource
from bxmesh.client.host.roll import PASSING, Roll
from bxmesh.client.host.seat import Seat, Surroundings
from bxmesh.client.mesh import AsyncMesh
from bxmesh.client.names import invalid
from bxmesh.registry.v1 import agent_definition_pb2 as pb

__all__ = ["Host"]

_log = logging.getLogger(__name__)

_TIMEOUT = 600.0
_SPREAD_SECONDS = 0.2
_SHARE_SECONDS = 1.0
_REGISTRATIONS_A_SECOND = 300
_FAREWELL_SECONDS = 30.0
_MARGIN_SECONDS = 10.0


class Host:
    """Runs every active definition, in as many agents as it says over all hosts together.

    Agents of a definition are named like it, then `name-2`, `name-3` and so on. A host takes the
    names that no live agent has, and those of a host that is lost when their leases end. A new
    version takes the place of an old one without losing what is under way.
    """

    def __init__(
        self,
        mesh: AsyncMesh,
        *,
        name: str = "",
        only: Iterable[str] = (),
        most: int | None = None,
        models: ModelSource | None = None,
        servers: Iterable[str] = (),
        lent: Mapping[str, str] | None = None,
        timeout: float = _TIMEOUT,
        lease_seconds: int = 0,
    ) -> None:
        """Takes a mesh, the host's name, and which definitions and how many agents it runs at most.

        `models` gives models of pydantic-ai for the names that definitions have for them, a mapping
        or a function; where it has none they are made. `servers` are the base URLs that definitions
        may name; all unless some are given. `lent` are models that any conversation may ask, the first
        where it names none, each with the base URL of its server, empty for its provider's. The
        timeout is that of definitions without one, in seconds.
        """
        if most is not None and most < 1:
            raise invalid("most", f"{most} agents would run nothing; 1 is the least")
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        """The host's name."""
        self._mesh = mesh
        self._only = frozenset(only)
        servers = frozenset(servers)
        self._lent = dict(lent or {})
        if servers:
            servers |= {url for url in self._lent.values() if url}
        self._models = Models(models, servers)
        self._roll = Roll(mesh)
        self._around = Surroundings(
            mesh,
            self.name,
            self._roll,
            nullcontext() if most is None else asyncio.Semaphore(most),
            self._defer,
            timeout,
            lease_seconds,
        )
        self._seats: dict[str, dict[str, Seat]] = {}
        self._leaving: set[Seat] = set()
        self._figures: dict[str, AgentFigures] = {}
        self._stopping = asyncio.Event()

    def __repr__(self) -> str:
        return f"Host({self.name!r})"

    async def run(self) -> None:
        """Runs until it is stopped, by `stop` or by SIGTERM or SIGINT.

        It comes back by itself when the mesh is away for a while. Raises BxmeshError for what no
        repetition cures.
        """
        with stopped_by_signals(self.stop):
            await self._run()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Runs for the time of a block; raises at its end what `run` raises."""
        running = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            self.stop()
            await running

    def stop(self) -> None:
        """Lets its agents end what they have begun and leave."""
        self._stopping.set()

    def figures(self) -> list[AgentFigures]:
        """Returns what each agent has done here, by name; those that have left too."""
        # Those without a version never ran here.
        return [figures.copy() for _, figures in sorted(self._figures.items()) if figures.version]

    def _all(self) -> Iterator[Seat]:
        for seats in self._seats.values():
            yield from seats.values()

    async def _run(self) -> None:
        ready = asyncio.Event()
        if self._lent:
            self._lend()
        followers = [
            asyncio.create_task(self._roll.follow(ready)),
            asyncio.create_task(self._follow(ready)),
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([*followers, stopping], return_when=asyncio.FIRST_COMPLETED)
            for follower in followers:
                if follower.done():
                    # It ends by itself only by a failure.
                    follower.result()
        finally:
            for task in (*followers, stopping):
                task.cancel()
            await asyncio.gather(*followers, stopping, return_exceptions=True)
            await self._leave()
            await self._models.close()

    async def _leave(self) -> None:
        for seat in self._all():
            seat.stop(_FAREWELL_SECONDS)
        tasks = {seat.task for seat in (*self._all(), *self._leaving)}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_FAREWELL_SECONDS + _MARGIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, ready: asyncio.Event) -> None:
        """Follows the definitions until it is cancelled."""
        await ready.wait()
        revision, backoff = 0, Backoff(None, "the list of definitions")
        while True:
            try:
                changes = self._mesh.definitions.watch(after_revision=revision)
                async with aclosing(changes):
                    async for event in changes:
                        backoff.reset()
                        self._take(event)
                        revision = event.revision
            except PASSING as error:
                await backoff.wait(error)

    def _take(self, event: DefinitionEvent) -> None:
        name, definition = event.definition_id, event.definition
        if not name or (self._only and name not in self._only):
            return
        state = "deleted" if definition is None else definition.state
        _log.info("%s is %s", name, state)
        if definition is not None and state == "active":
            self._seat(definition.message)
        else:
            for seat in self._seats.pop(name, {}).values():
                self._end(seat, drain=state == "draining")

    def _seat(self, definition: pb.AgentDefinition) -> None:
        name = definition.definition_id
        seats = self._seats.setdefault(name, {})
        behaviour = next((seat.behaviour for seat in seats.values()), None)
        if behaviour is None or behaviour.definition.version != definition.version:
            behaviour = self._behaviour(definition)
        wanted = [
            name if i == 1 else f"{name}-{i}" for i in range(1, (definition.replicas or 1) + 1)
        ]
        for agent_id in seats.keys() - set(wanted):
            self._end(seats.pop(agent_id), drain=True)
        for agent_id in wanted:
            if seat := seats.get(agent_id):
                seat.take_up(behaviour)
            else:
                figures = self._figures.setdefault(agent_id, AgentFigures(agent_id, name))
                seats[agent_id] = Seat(self._around, figures, behaviour)

    def _lend(self) -> None:
        behaviour = AnyModelBehaviour(self._mesh, self.name, self._lent, self._models)
        name = behaviour.definition.definition_id
        figures = self._figures.setdefault(name, AgentFigures(name, name))
        # Definitions have other names: theirs are not seated before they are told of.
        self._seats[name] = {name: Seat(self._around, figures, behaviour)}

    def _end(self, seat: Seat, *, drain: bool) -> None:
        self._leaving.add(seat)
        seat.task.add_done_callback(lambda _: self._leaving.discard(seat))
        seat.drain() if drain else seat.stop()

    def _behaviour(self, definition: pb.AgentDefinition) -> Behaviour:
        if definition.model.model:
            return ModelBehaviour(self._mesh, definition, self._models)
        if definition.HasField("chain"):
            return ChainBehaviour(self._mesh, definition)
        return RuleBehaviour(self._mesh, definition)

    async def _defer(self, name: str) -> None:
        """Leaves what is free to hosts that have less of a definition, or were asked less at once."""
        clock = asyncio.get_running_loop().time
        spread = max(_SPREAD_SECONDS, len(self._seats) / _REGISTRATIONS_A_SECOND)
        turn = clock() + random.uniform(0.0, spread)
        # It may come to have more while it waits.
        while (wait := turn + _SHARE_SECONDS * self._share(name) - clock()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait)

    def _share(self, name: str) -> float:
        """How much of a definition runs here, from 0 to 1."""
        seats = self._seats.get(name, {})
        return sum(seat.agent is not None for seat in seats.values()) / max(len(seats), 1)
