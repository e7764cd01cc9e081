"""Agents: what people write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, Unpack, get_args, get_origin

from google.rpc import status_pb2
from typing_extensions import TypeVar

from bxmesh.client.agents.capabilities import Capability
from bxmesh.client.agents.failures import Unhandled
from bxmesh.client.agents.handlers import Handlers
from bxmesh.client.agents.member import Member
from bxmesh.client.agents.messages import ERROR_REPORT, Message
from bxmesh.client.agents.runtime import Runtime
from bxmesh.client.agents.signals import stopped_by_signals
from bxmesh.client.agents.stats import AgentStats
from bxmesh.client.errors import from_status
from bxmesh.client.names import invalid

if TYPE_CHECKING:
    from bxmesh.client.mesh import AsyncMesh, MeshOptions

__all__ = ["Agent"]

S = TypeVar("S", default=Any)

_MOST_AT_ONCE = 10_000

_log = logging.getLogger(__name__)


class Agent(Member, Generic[S]):
    """A member of the mesh that handles messages and tasks.

    Subclass it, mark methods with `@on` and `@task`, and `asyncio.run(MyAgent("name").run())`. The
    same code takes direct messages, at most once, and durable ones, at least once. `Agent[MyState]`,
    or the attribute `state_model`, says what its state is: a pydantic model.

    Handlers run on the event loop: work that keeps a processor busy belongs into
    `asyncio.to_thread` or a process, or heartbeats and leases stop meanwhile.
    """

    agent_type: str = ""
    """What kind of agent it is; the name of the class."""
    version: str = ""
    """The version of its software."""
    capabilities: Iterable[str | Capability] = ()
    """What it can do for others; the types of tasks that it handles need not be named."""
    concurrency: int = 10
    """How many messages and tasks it handles at a time."""
    definition_id: str = ""
    """The definition that it runs; empty for an agent that brings its own code."""
    lease_seconds: int = 0
    """How long it stays registered without a heartbeat, 1 to 3600 s; 0 for the server's default."""
    drain_seconds: float = 30.0
    """How long what was begun may take when it is stopped; the rest comes again, elsewhere."""
    state_model: type[S] | None = None
    """What its state is, a pydantic model or dict; None for an agent that keeps none."""

    _handlers: ClassVar[Handlers] = Handlers(object)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._handlers = Handlers(cls)
        for base in getattr(cls, "__orig_bases__", ()):
            if get_origin(base) is Agent and not isinstance(get_args(base)[0], TypeVar):
                (state,) = get_args(base)
                cls.state_model = None if state is type(None) else state

    def __init__(
        self,
        agent_id: str,
        *,
        capabilities: Iterable[str | Capability] | None = None,
        agent_type: str | None = None,
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
        concurrency: int | None = None,
        lease_seconds: int | None = None,
        drain_seconds: float | None = None,
    ) -> None:
        """Takes the agent's name, and what differs from the attributes of its class."""
        self.agent_id = agent_id
        self.metadata = dict(metadata or {})
        if capabilities is not None:
            self.capabilities = tuple(capabilities)
        self.agent_type = agent_type or self.agent_type or type(self).__name__
        self.version = self.version if version is None else version
        self.concurrency = self.concurrency if concurrency is None else concurrency
        self.lease_seconds = self.lease_seconds if lease_seconds is None else lease_seconds
        self.drain_seconds = self.drain_seconds if drain_seconds is None else drain_seconds
        if not 1 <= self.concurrency <= _MOST_AT_ONCE:
            raise invalid("concurrency", f"1 to {_MOST_AT_ONCE} at a time, not {self.concurrency}")
        self._runtime: Runtime | None = None
        self._last_stats = AgentStats()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.agent_id!r})"

    # For subclasses

    async def on_start(self) -> None:
        """Called when the agent is registered, before anything is delivered."""

    async def on_stop(self) -> None:
        """Called when all is handled and nothing more comes, before the agent leaves the mesh."""

    async def on_message(self, message: Message) -> None:
        """Called for messages without a handler. As it is, they become dead letters.

        Error reports are logged instead.
        """
        if message.type == ERROR_REPORT:
            error = from_status(message.read(status_pb2.Status))
            _log.warning("%s could not handle a message: %s", message.sender, error)
            return
        raise Unhandled(f"messages of the type {message.type}", self.agent_id)

    def get_metadata(self) -> Mapping[str, str]:
        """Returns facts for filters and people, which every heartbeat tells."""
        return {}

    # Running

    async def run(self, mesh: AsyncMesh | None = None, **connection: Unpack[MeshOptions]) -> None:
        """Runs the agent until it is stopped, by `stop` or by SIGTERM or SIGINT.

        Connects as `AsyncMesh(**connection)` does unless it is given a mesh. When it is stopped it
        finishes what was begun, takes nothing new, and leaves. It comes back by itself when the
        mesh is away for a while. Raises BxmeshError for what no repetition cures.
        """
        # The mesh has agents, and agents have a mesh: one of the two must wait.
        from bxmesh.client.mesh import AsyncMesh

        async with nullcontext(mesh) if mesh else AsyncMesh(**connection) as mesh:
            with self._begun(mesh) as runtime, stopped_by_signals(runtime.stop):
                await runtime.run()

    @asynccontextmanager
    async def running(self, mesh: AsyncMesh) -> AsyncIterator[Self]:
        """Runs the agent for the time of a block, which begins when it is attached.

        At the end of the block it finishes what was begun. Raises what `run` raises.
        """
        with self._begun(mesh) as runtime:
            running = asyncio.create_task(runtime.run())
            attached = asyncio.create_task(runtime.attached.wait())
            try:
                await asyncio.wait((running, attached), return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    running.result()
                yield self
            finally:
                attached.cancel()
                runtime.stop()
                await running

    def stop(self) -> None:
        """Asks a running agent to finish what was begun and leave."""
        if self._runtime is not None:
            self._runtime.stop()

    @contextmanager
    def _begun(self, mesh: AsyncMesh) -> Iterator[Runtime]:
        if self._runtime is not None:
            raise invalid("agent", f"{self.agent_id} is running already")
        self._runtime = runtime = Runtime(self, mesh, self._handlers)
        try:
            yield runtime
        finally:
            self._runtime = None
            self._last_stats = runtime.stats

    @property
    def _running(self) -> Runtime:
        if self._runtime is None:
            raise invalid("agent", f"{self.agent_id} is not running")
        return self._runtime

    # What it can do

    @property
    def mesh(self) -> AsyncMesh:
        """The mesh that the agent is in. Raises InvalidInput before it runs."""
        return self._running.mesh

    @property
    def state(self) -> S:
        """The agent's state as this process knows it; change it by `update_state`."""
        state: S = self._running.own_state.value
        return state

    async def update_state(
        self, change: Callable[[S], S | None] | None = None, /, **fields: Any
    ) -> S:
        """Changes the agent's state, in the mesh and here, and returns it.

        Fields are set as they are given; when another has changed the state since it was read,
        that is read and FailedPrecondition (code ABORTED) is raised. A function changes the state
        it is given, or returns a new one, and is called again on the new state when another was
        faster. Raises InvalidInput for what does not fit the model.
        """
        state = self._running.own_state
        changed: S = await (state.set(fields) if change is None else state.change(change))
        return changed

    def get_stats(self) -> AgentStats:
        """Returns what the agent has done since it started, in its last run when it has ended."""
        stats = self._last_stats if self._runtime is None else self._runtime.stats
        return stats.copy()
