"""Storing functions, executing them, and what is kept of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any, Unpack
from uuid import uuid4

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.agent.v1.function_service_pb2_grpc import FunctionServiceStub
from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.connection import Connection, translated
from bxmesh.client.errors import Unavailable
from bxmesh.client.functions.executions import (
    STATES,
    ExecuteOptions,
    Execution,
    ExecutionEvent,
    ExecutionState,
    FunctionStats,
    to_request,
)
from bxmesh.client.functions.source import Code
from bxmesh.client.functions.stored import Function, FunctionOptions, to_message

__all__ = ["AsyncFunctions"]

_FIRST_LOOK_SECONDS = 0.05
_LONGEST_LOOK_SECONDS = 2.0


class AsyncFunctions:
    """Stored functions and their executions."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The generated stubs have no types for asyncio.
        self._stub: Any = FunctionServiceStub(connection.channel)

    async def create(
        self,
        name: str,
        code: Code,
        *,
        aliases: Iterable[str] = (),
        request_id: str = "",
        **options: Unpack[FunctionOptions],
    ) -> Function:
        """Stores a function, or a new version of it: source text, the path of a file, or a Python
        function, whose annotations become schemas.

        The aliases, and `latest`, mean it from then on. The same content is the same version. Raises
        InvalidInput, whose `field_violations` name the places, for code that does not parse, import,
        type or run on its example as it says; FailedPrecondition for another content under the
        same version.
        """
        return await self._create(
            pb.CreateFunctionRequest(
                request_id=request_id or uuid4().hex,
                function=to_message(name, code, options),
                aliases=aliases,
            )
        )

    async def validate(self, name: str, code: Code, **options: Unpack[FunctionOptions]) -> Function:
        """Checks a function as `create` does, and stores nothing. Raises likewise."""
        return await self._create(
            pb.CreateFunctionRequest(function=to_message(name, code, options), validate_only=True)
        )

    async def _create(self, request: pb.CreateFunctionRequest) -> Function:
        # Its example may take a while.
        response = await self._connection.unary(
            self._stub.CreateFunction, request, self._connection.timeouts.calculation
        )
        return Function.from_message(response.function, existed=response.existed)

    async def get(self, name: str, version: str = "") -> Function:
        """Returns a function with its code: a version, digest or alias, by default the latest."""
        request = pb.GetFunctionRequest(name=name, version=version)
        response = await self._connection.unary(self._stub.GetFunction, request)
        return Function.from_message(response.function)

    async def list(
        self, *, labels: Mapping[str, str] | None = None, page_size: int = 0
    ) -> AsyncIterator[Function]:
        """Yields the latest version of each function by name, without its code."""
        request = pb.ListFunctionsRequest(labels=labels, page_size=page_size)
        async for function in self._listed(request):
            yield function

    async def versions(self, name: str, *, page_size: int = 0) -> AsyncIterator[Function]:
        """Yields all versions of a function, the highest first, without their code."""
        request = pb.ListFunctionsRequest(name=name, page_size=page_size)
        async for function in self._listed(request):
            yield function

    async def _listed(self, request: pb.ListFunctionsRequest) -> AsyncIterator[Function]:
        async for response in self._connection.pages(self._stub.ListFunctions, request):
            for message in response.functions:
                yield Function.from_message(message)

    async def alias(self, name: str, alias: str, version: str = "") -> Function:
        """Lets an alias mean a version, or removes it without one.

        Returns the version that it means, or meant. `latest` cannot be moved.
        """
        request = pb.UpdateFunctionAliasRequest(
            request_id=uuid4().hex, name=name, alias=alias, version=version
        )
        response = await self._connection.unary(self._stub.UpdateFunctionAlias, request)
        return Function.from_message(response.function)

    async def delete(self, name: str, version: str = "") -> None:
        """Deletes a version of a function, or all of it; its executions remain."""
        request = pb.DeleteFunctionRequest(request_id=uuid4().hex, name=name, version=version)
        await self._connection.unary(self._stub.DeleteFunction, request)

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Calls a function with keyword arguments and returns its value.

        Raises FunctionFailed when it has none, InvalidInput for arguments that do not fit.
        """
        execution = await self.execute(name, arguments)
        if not execution.done:
            execution = await self.wait_for_execution(execution.execution_id)
        return execution.value

    async def execute(
        self,
        name: str,
        arguments: object = None,
        *,
        detach: bool = False,
        request_id: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
        **options: Unpack[ExecuteOptions],
    ) -> Execution:
        """Calls a function with an object of arguments, and returns how that ended.

        A function that fails raises nothing here: its execution's `value` does. Cancelling the call
        cancels the execution, unless it is durable. `detach` returns at once; it needs a durable
        one. The same request id gives the same execution for an hour.
        """
        request = to_request(name, arguments, options, request_id or uuid4().hex, detach=detach)
        response = await self._connection.unary(
            self._stub.ExecuteFunction, request, timeout or self._connection.timeouts.calculation
        )
        return Execution.from_message(response.execution)

    async def stream(
        self,
        name: str,
        arguments: object = None,
        *,
        request_id: str = "",
        **options: Unpack[ExecuteOptions],
    ) -> AsyncGenerator[ExecutionEvent, None]:
        """Calls a function and yields what it prints and reports on its way, and its end at last.

        After a lost connection only the end comes, which has all that was printed.
        """
        call = to_request(name, arguments, options, request_id or uuid4().hex)
        request = pb.StreamFunctionRequest(call=call)
        backoff = Backoff(self._connection.timeouts.reconnect, "a function")
        while True:
            events = self._stub.StreamFunction(request, metadata=self._connection.metadata)
            try:
                with translated():
                    async for event in events:
                        yield ExecutionEvent.from_message(event)
                return
            except Unavailable as error:
                await backoff.wait(error)
            finally:
                events.cancel()

    async def execution(self, execution_id: str) -> Execution:
        """Returns an execution as it stands. Raises NotFound for an unknown or forgotten one."""
        request = pb.GetExecutionRequest(execution_id=execution_id)
        response = await self._connection.unary(self._stub.GetExecution, request)
        return Execution.from_message(response.execution)

    async def wait_for_execution(self, execution_id: str) -> Execution:
        """Returns an execution when it has ended, however it did."""
        seconds = _FIRST_LOOK_SECONDS
        while not (execution := await self.execution(execution_id)).done:
            await asyncio.sleep(seconds)
            seconds = min(1.5 * seconds, _LONGEST_LOOK_SECONDS)
        return execution

    async def executions(
        self,
        name: str = "",
        *,
        version: str = "",
        states: Iterable[ExecutionState] = (),
        page_size: int = 0,
    ) -> AsyncIterator[Execution]:
        """Yields executions, newest first, without what they printed."""
        request = pb.ListExecutionsRequest(
            function_name=name,
            function_version=version,
            states=[STATES.number(state) for state in states],
            page_size=page_size,
        )
        async for response in self._connection.pages(self._stub.ListExecutions, request):
            for message in response.executions:
                yield Execution.from_message(message)

    async def cancel(self, execution_id: str) -> Execution:
        """Cancels an execution; one that has ended is left as it is."""
        request = pb.CancelExecutionRequest(request_id=uuid4().hex, execution_id=execution_id)
        response = await self._connection.unary(self._stub.CancelExecution, request)
        return Execution.from_message(response.execution)

    async def stats(self, name: str, version: str = "") -> FunctionStats:
        """Returns figures of a function over the executions that are kept, of all versions or one."""
        request = pb.GetFunctionStatsRequest(name=name, version=version)
        response = await self._connection.unary(self._stub.GetFunctionStats, request)
        return FunctionStats.from_message(response)
