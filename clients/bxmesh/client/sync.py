"""The mesh without asyncio: the same surface, run on an event loop in a thread of its own."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, overload

from numpy.typing import ArrayLike

from bxmesh.client.agents.calls.blocking import BlockingAgentCalls
from bxmesh.client.blocking import Blocking, Loop, blocking, iterating
from bxmesh.client.bundles import AsyncBundles
from bxmesh.client.chains import AsyncChains
from bxmesh.client.connection import Timeouts
from bxmesh.client.conversations import AsyncConversations
from bxmesh.client.definitions import AsyncDefinitions
from bxmesh.client.functions import AsyncFunctions
from bxmesh.client.jobs import AsyncJobs
from bxmesh.client.layouts import Atom37Map
from bxmesh.client.mesh import AsyncMesh
from bxmesh.client.security import AsyncSecurity
from bxmesh.client.sessions import AsyncSession
from bxmesh.client.signatures import SignatureMode
from bxmesh.client.steps import Step
from bxmesh.client.values import XrayValue

__all__ = ["Bundles", "Definitions", "Functions", "Mesh", "Security", "Session"]

P = ParamSpec("P")


def _opening(
    method: Callable[Concatenate[Any, P], AsyncSession],
) -> Callable[Concatenate[Any, P], Session]:
    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Session:
        return Session(self._loop, method(self._target, *args, **kwargs))

    return call


class Bundles(Blocking[AsyncBundles]):
    """The bundles on the mesh; see AsyncBundles."""

    upload = blocking(AsyncBundles.upload)
    get = blocking(AsyncBundles.get)
    list = iterating(AsyncBundles.list)
    delete = blocking(AsyncBundles.delete)
    share = blocking(AsyncBundles.share)

    @overload
    def download(self, bundle_id: str, path: None = None) -> bytes: ...

    @overload
    def download(self, bundle_id: str, path: str | Path) -> Path: ...

    def download(self, bundle_id: str, path: str | Path | None = None) -> bytes | Path:
        """Returns the content of a bundle, or writes it to a file and returns its path."""
        if path is None:
            return self._loop.run(self._target.download(bundle_id))
        return self._loop.run(self._target.download(bundle_id, path))


class Jobs(Blocking[AsyncJobs]):
    """Jobs on the mesh; see AsyncJobs."""

    create = blocking(AsyncJobs.create)
    get = blocking(AsyncJobs.get)
    list = iterating(AsyncJobs.list)
    cancel = blocking(AsyncJobs.cancel)
    watch = iterating(AsyncJobs.watch)
    wait = blocking(AsyncJobs.wait)
    result = blocking(AsyncJobs.result)


class Functions(Blocking[AsyncFunctions]):
    """Stored functions on the mesh; see AsyncFunctions."""

    create = blocking(AsyncFunctions.create)
    validate = blocking(AsyncFunctions.validate)
    get = blocking(AsyncFunctions.get)
    list = iterating(AsyncFunctions.list)
    versions = iterating(AsyncFunctions.versions)
    alias = blocking(AsyncFunctions.alias)
    delete = blocking(AsyncFunctions.delete)
    call = blocking(AsyncFunctions.call)
    execute = blocking(AsyncFunctions.execute)
    stream = iterating(AsyncFunctions.stream)
    execution = blocking(AsyncFunctions.execution)
    wait_for_execution = blocking(AsyncFunctions.wait_for_execution)
    executions = iterating(AsyncFunctions.executions)
    cancel = blocking(AsyncFunctions.cancel)
    stats = blocking(AsyncFunctions.stats)


class Definitions(Blocking[AsyncDefinitions]):
    """Definitions of agents on the mesh; see AsyncDefinitions."""

    create = blocking(AsyncDefinitions.create)
    update = blocking(AsyncDefinitions.update)
    activate = blocking(AsyncDefinitions.activate)
    drain = blocking(AsyncDefinitions.drain)
    stop = blocking(AsyncDefinitions.stop)
    get = blocking(AsyncDefinitions.get)
    list = iterating(AsyncDefinitions.list)
    versions = iterating(AsyncDefinitions.versions)
    delete = blocking(AsyncDefinitions.delete)
    watch = iterating(AsyncDefinitions.watch)


class Chains(Blocking[AsyncChains]):
    """Runs of chains on the mesh; see AsyncChains."""

    start = blocking(AsyncChains.start)
    run = blocking(AsyncChains.run)
    get = blocking(AsyncChains.get)
    list = iterating(AsyncChains.list)
    cancel = blocking(AsyncChains.cancel)
    watch = iterating(AsyncChains.watch)
    wait = blocking(AsyncChains.wait)


class Conversations(Blocking[AsyncConversations]):
    """Conversations on the mesh; see AsyncConversations."""

    hold = blocking(AsyncConversations.hold)
    start = blocking(AsyncConversations.start)
    stream = iterating(AsyncConversations.stream)
    follow = iterating(AsyncConversations.follow)
    wait = blocking(AsyncConversations.wait)
    send = blocking(AsyncConversations.send)
    cancel = blocking(AsyncConversations.cancel)
    get = blocking(AsyncConversations.get)
    list = iterating(AsyncConversations.list)
    search = iterating(AsyncConversations.search)
    export = iterating(AsyncConversations.export)
    delete = blocking(AsyncConversations.delete)
    purge = blocking(AsyncConversations.purge)
    stats = blocking(AsyncConversations.stats)


class Security(Blocking[AsyncSecurity]):
    """The security service, in the messages of its contract; see AsyncSecurity."""

    call = blocking(AsyncSecurity.call)
    stream = iterating(AsyncSecurity.stream)


class Session(Blocking[AsyncSession]):
    """A session on the mesh; `with` opens and closes it. See AsyncSession."""

    step = blocking(AsyncSession.step)
    close = blocking(AsyncSession.close)

    def __enter__(self) -> Self:
        self._loop.run(self._target.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, coordinates: ArrayLike, *, refresh_scales: bool = False) -> Future[Step]:
        """Sends a step and returns the future of its answer; waits while the window is full."""
        answer = self._loop.run(self._target.submit(coordinates, refresh_scales=refresh_scales))

        async def wait() -> Step:
            return await answer

        return self._loop.start(wait())

    def begin(self, coordinates: ArrayLike, *, refresh_scales: bool = False) -> Future[Step]:
        """Begins a step and returns the future of its answer at once, even when the window is full.

        The coordinates must not change until the future is done.
        """
        return self._loop.start(self._target.step(coordinates, refresh_scales=refresh_scales))

    @property
    def session_id(self) -> str:
        """The session's name."""
        return self._target.session_id

    @property
    def worker_id(self) -> str:
        """The worker that serves it."""
        return self._target.worker_id

    @property
    def atoms(self) -> int:
        """Atoms, N."""
        return self._target.atoms

    @property
    def engine(self) -> str:
        """The engine that evaluates geometry."""
        return self._target.engine

    @property
    def xray(self) -> XrayValue | None:
        """The X-ray agreement at the start, where the target has it."""
        return self._target.xray

    @property
    def atom37(self) -> Atom37Map | None:
        """What of the layout atom37 is in the model; None in a session without it."""
        return self._target.atom37

    @property
    def trace_id(self) -> str:
        """The trace of the session, 32 hexadecimal digits."""
        return self._target.trace_id


class Mesh(BlockingAgentCalls[AsyncMesh]):
    """A connection to the mesh; see AsyncMesh. Works wherever, in a running event loop too."""

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: bool | None = None,
        root_certificates: bytes | str | Path | None = None,
        client_certificate: str | Path | None = None,
        client_key: str | Path | None = None,
        state_dir: str | Path | None = None,
        timeouts: Timeouts | None = None,
        retries: int = 4,
        signing_key: str | Path | None = None,
        signatures: SignatureMode = "accept",
    ) -> None:
        async def connect() -> AsyncMesh:
            return AsyncMesh(
                address,
                api_key=api_key,
                tls=tls,
                root_certificates=root_certificates,
                client_certificate=client_certificate,
                client_key=client_key,
                state_dir=state_dir,
                timeouts=timeouts,
                retries=retries,
                signing_key=signing_key,
                signatures=signatures,
            )

        loop = Loop()
        try:
            mesh = loop.run(connect())
        except BaseException:
            loop.close(_nothing)
            raise
        super().__init__(loop, mesh)
        self.bundles = Bundles(loop, mesh.bundles)
        """Bundles: upload, download, get, list, delete."""
        self.jobs = Jobs(loop, mesh.jobs)
        """Jobs: create, follow, cancel, and read what came out."""
        self.functions = Functions(loop, mesh.functions)
        """Stored functions: create, execute, and look at what became of it."""
        self.chains = Chains(loop, mesh.chains)
        """Chains: start, follow, cancel, and look at how they ran."""
        self.conversations = Conversations(loop, mesh.conversations)
        """Conversations: hold, follow, continue, and look for what was said."""
        self.definitions = Definitions(loop, mesh.definitions)
        """Definitions of agents: create, change, start and stop them."""
        self.security = Security(loop, mesh.security)
        """Identities, keys, policies, violations and the audit log."""
        self._closed = weakref.finalize(self, loop.close, mesh.close)

    create_model = blocking(AsyncMesh.create_model)
    gradients = blocking(AsyncMesh.gradients)
    minimize = blocking(AsyncMesh.minimize)
    structure_factors = blocking(AsyncMesh.structure_factors)
    map = blocking(AsyncMesh.map)
    real_space_gradients = blocking(AsyncMesh.real_space_gradients)
    validate = blocking(AsyncMesh.validate)
    restraints = blocking(AsyncMesh.restraints)
    analyze_data = blocking(AsyncMesh.analyze_data)
    batch = iterating(AsyncMesh.batch)
    session = _opening(AsyncMesh.session)
    health = blocking(AsyncMesh.health)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where the mesh is."""
        return self._target.address

    def close(self) -> None:
        """Closes the connection; calls under way are cancelled."""
        self._closed()


async def _nothing() -> None:
    pass
