"""Tasks as a server offers them: assigned, given out, looked after."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType

from google.protobuf.message import DecodeError
from redis.asyncio import Redis

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.server.errors import MeshError, failed_precondition, invalid_argument
from bxmesh.server.live_agents import LiveAgents, no_such_agent
from bxmesh.server.security.circuit_breakers import ALL_CLOSED, CircuitBreakers
from bxmesh.server.security.quotas import Allowance
from bxmesh.server.streams.bells import Bells
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.tasks import errors
from bxmesh.server.tasks.circuits import targets
from bxmesh.server.tasks.demand import Demand, candidate, in_order
from bxmesh.server.tasks.options import TaskOptions
from bxmesh.server.tasks.records import Record
from bxmesh.server.tasks.roster import Roster
from bxmesh.server.tasks.scheduler import MOST_UNMET, Scheduler
from bxmesh.server.tasks.schemas import accepting
from bxmesh.server.tasks.store import NewTask, Parent, TaskStore
from bxmesh.server.tasks.sweeper import Sweeper
from bxmesh.work.v1 import work_pb2


class Tasks:
    """The tasks of the mesh; an async context manager, within which they are given out and looked
    after."""

    def __init__(
        self,
        redis: Redis,
        agents: LiveAgents,
        bells: Bells,
        options: TaskOptions | None = None,
        circuits: CircuitBreakers = ALL_CLOSED,
    ) -> None:
        self.store = TaskStore(redis, options, circuits)
        self.bells = bells
        self.roster = Roster(agents)
        self.scheduler = Scheduler(self.store, self.roster, bells)
        self.sweeper = Sweeper(self.store, self.roster, self.scheduler)
        circuits.on_change(self.scheduler.wake)
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Tasks:
        self._keepers = [
            asyncio.create_task(self.scheduler.run()),
            asyncio.create_task(self.sweeper.follow_agents()),
            asyncio.create_task(self.sweeper.follow_clock()),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await end_tasks(*self._keepers)

    async def deliverable(self, task_id: str, attempt: int, agent_id: str) -> pb.Task | None:
        """Returns the task if this attempt at it is still this agent's; None for a stale delivery."""
        return await self.store.deliverable(task_id, attempt, agent_id)

    async def dropped(self, item: work_pb2.WorkItem, agent_id: str, error: MeshError) -> None:
        """Says that a delivery has become a dead letter, so that nobody is at its attempt."""
        delivery = work_pb2.TaskDelivery()
        try:
            if item.payload.Unpack(delivery):
                await self.store.fail(
                    delivery.task_id, delivery.attempt, agent_id, error.to_status()
                )
        except DecodeError:
            return
        except MeshError as problem:
            # It was another's already, or is forgotten.
            if problem.reason not in ("LEASE_LOST", "TASK_NOT_FOUND"):
                raise

    async def assign(
        self,
        spec: pb.TaskSpec,
        owner: str,
        *,
        on_behalf_of: str = "",
        team: str = "",
        parent: Parent | None = None,
        wait_for_agent: bool = False,
        trace_context: Mapping[str, str] | None = None,
        request_id: str = "",
        allowance: Allowance | None = None,
    ) -> Record:
        """Enters a task, and gives it to an agent if one is free.

        Raises MeshError INVALID_ARGUMENT when nobody is named or the parameters do not fit,
        FAILED_PRECONDITION when nobody offers what it needs or for its line of parents, and what
        `TaskStore.create` raises.
        """
        if not spec.required_capabilities and not spec.agent_id:
            raise invalid_argument(
                "spec.required_capabilities", "must name a capability unless agent_id is set"
            )
        if parent is not None and parent.depth >= self.store.options.max_depth:
            raise errors.too_deep(self.store.options.max_depth)
        line = parent.line if parent else ()
        if spec.agent_id in line:
            raise errors.cycle(spec.agent_id)
        demand = Demand(
            tuple(sorted(spec.required_capabilities)), spec.agent_id, tuple(sorted(set(line)))
        )
        offering = demand.offered_by(self.roster)
        if not offering:
            # Somebody may have come a moment ago.
            with redis_errors():
                await self.roster.refresh()
            offering = demand.offered_by(self.roster)
        if not offering and not wait_for_agent:
            raise self._unmet(demand)
        if not offering and demand.name not in self.scheduler.unmet:
            self.scheduler.unmet.append(demand.name)
        fitting = await accepting(spec.parameters, offering, demand.capabilities)
        circuits = self.store.circuits
        await circuits.look()
        # A trial of an open circuit is up to the scheduler.
        fitting = [agent for agent in fitting if circuits.closed(*targets(demand, agent))]
        return await self.store.create(
            NewTask(
                spec,
                owner,
                demand,
                on_behalf_of,
                team=team,
                depth=parent.depth + 1 if parent else 0,
                line=line,
                trace_context=trace_context or {},
                request_id=request_id,
                allowance=allowance,
            ),
            [
                candidate(agent, demand.capabilities, self.store.options.timeout)
                for agent in in_order(fitting, spec.sticky_key)
            ],
            self.scheduler.unmet[-MOST_UNMET:],
        )

    def _unmet(self, demand: Demand) -> MeshError:
        if demand.agent_id and demand.agent_id not in self.roster.agents:
            return no_such_agent(demand.agent_id)
        without_line = Demand(demand.capabilities, demand.agent_id)
        others: list[Agent] = without_line.offered_by(self.roster)
        if others:
            return errors.cycle(", ".join(sorted(agent.agent_id for agent in others)[:8]))
        missing = demand.missing(self.roster)
        names = ", ".join(missing)
        if demand.agent_id:
            message = (
                f"{demand.agent_id} does not offer {names}."
                if names
                else f"{demand.agent_id} takes nothing new."
            )
        elif len(missing) > 1 and not self.roster.missing(demand.capabilities):
            message = f"No live agent offers all of {names}."
        else:
            message = f"No live agent offers {names}."
        return failed_precondition(
            f"{message} Start one that does, or ask to wait for it.",
            reason="CAPABILITY_MISSING",
            subject=demand.agent_id or "agents",
            missing_capabilities=",".join(missing),
        )
