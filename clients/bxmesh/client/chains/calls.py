"""Starting chains, following them, and what is kept of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from bxmesh.agent.v1 import chain_run_pb2 as pb
from bxmesh.agent.v1.chain_service_pb2_grpc import ChainServiceStub
from bxmesh.client.agents.calls.watching import watch
from bxmesh.client.chains.chain import Chain
from bxmesh.client.chains.runs import STATES, ChainChange, ChainRun, RunState
from bxmesh.client.connection import Connection
from bxmesh.client.functions.json_values import to_value
from bxmesh.client.trace import traced

__all__ = ["AsyncChains", "ChainSource"]

ChainSource: TypeAlias = Chain | Path | str
"""A chain, the path of a file that has one, or the name of an active definition with one."""


class AsyncChains:
    """Runs of chains. They go on without their callers and survive a restart of the mesh."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The generated stubs have no types for asyncio.
        self._stub: Any = ChainServiceStub(connection.channel)

    async def start(
        self,
        chain: ChainSource,
        input: object = None,
        *,
        on_behalf_of: str = "",
        parent_task_id: str = "",
        request_id: str = "",
    ) -> ChainRun:
        """Begins a run, which is durable then, with an input; an empty object.

        `on_behalf_of` names the identity for which it is done: it may do what both may. Raises
        InvalidInput, whose `field_violations` name the places, for a chain that cannot run or an
        input that does not fit. The same request id gives the same run.
        """
        request = pb.StartChainRequest(
            request_id=request_id or uuid4().hex,
            input=to_value({} if input is None else input, "input"),
            on_behalf_of=on_behalf_of,
            parent_task_id=parent_task_id,
        )
        if isinstance(chain, str):
            request.definition_id = chain
        else:
            chain = Chain.read(chain) if isinstance(chain, Path) else chain
            request.chain.CopyFrom(chain.to_message())
        response = await self._connection.unary(self._stub.StartChain, request)
        return ChainRun.from_message(response.run)

    async def run(
        self,
        chain: ChainSource,
        input: object = None,
        *,
        on_behalf_of: str = "",
        parent_task_id: str = "",
        request_id: str = "",
    ) -> Any:
        """Begins a run as `start` does and returns its output. Raises ChainFailed when it has none.

        Who stops waiting leaves it to go on.
        """
        with traced("run chain"):
            run = await self.start(
                chain,
                input,
                on_behalf_of=on_behalf_of,
                parent_task_id=parent_task_id,
                request_id=request_id,
            )
            return (await self.wait(run.run_id)).value

    async def get(self, run_id: str) -> ChainRun:
        """Returns a run as it stands. Raises NotFound for an unknown or forgotten one."""
        response = await self._connection.unary(
            self._stub.GetChain, pb.GetChainRequest(run_id=run_id)
        )
        return ChainRun.from_message(response.run)

    async def watch(
        self, run_id: str, *, after_revision: int = 0
    ) -> AsyncGenerator[ChainChange, None]:
        """Yields the changes of a run to its end, over lost connections too.

        Revision 0 begins with the run as it stands. Raises NotFound for an unknown run, Unavailable
        when the mesh stays away.
        """
        request = pb.WatchChainRequest(run_id=run_id, after_revision=after_revision)
        responses = watch(
            self._connection, self._stub.WatchChain, request, lambda response: response.revision
        )
        async with aclosing(responses):
            async for response in responses:
                yield ChainChange.from_message(response)

    async def wait(self, run_id: str) -> ChainRun:
        """Returns a run when it has ended, however it did."""
        async with aclosing(self.watch(run_id)) as changes:
            async for change in changes:
                if change.run is not None and change.run.done:
                    return change.run
        return await self.get(run_id)

    async def list(
        self, *, definition_id: str = "", states: Iterable[RunState] = (), page_size: int = 0
    ) -> AsyncIterator[ChainRun]:
        """Yields runs, newest first, without steps, inputs and outputs."""
        request = pb.ListChainsRequest(
            definition_id=definition_id,
            states=[STATES.number(state) for state in states],
            page_size=page_size,
        )
        async for response in self._connection.pages(self._stub.ListChains, request):
            for message in response.runs:
                yield ChainRun.from_message(message)

    async def cancel(self, run_id: str) -> ChainRun:
        """Cancels a run and the steps under way; one that has ended is left as it is."""
        request = pb.CancelChainRequest(request_id=uuid4().hex, run_id=run_id)
        response = await self._connection.unary(self._stub.CancelChain, request)
        return ChainRun.from_message(response.run)
