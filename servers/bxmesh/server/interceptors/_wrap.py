"""One way to stand around an RPC, whatever its kind and however its handler is written."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from ..errors import unimplemented

__all__ = ["Call", "Interceptor", "Proceed"]

Hook = Callable[[Any], None]
RequestHook = Callable[[Any], Awaitable[None] | None]
Decode = Callable[[bytes], Any]
Proceed = Callable[[], Awaitable[Any]]


class Call:
    """One RPC being served."""

    __slots__ = ("context", "metadata", "method", "on_request", "on_response", "streams")

    def __init__(
        self,
        details: grpc.HandlerCallDetails,
        context: grpc.aio.ServicerContext[Any, Any],
        streams: bool,
    ) -> None:
        self.method: str = details.method
        """The full method, as in /package.Service/Method."""
        self.metadata: tuple[tuple[str, str | bytes], ...] = details.invocation_metadata
        self.context = context
        self.streams = streams
        """Whether it has a stream of requests or of responses."""
        self.on_request: RequestHook | None = None
        """Called with each request message before the handler sees it, and awaited when it returns
        something to be awaited; may raise."""
        self.on_response: Hook | None = None
        """Called with each response message before it is sent; may raise."""


class Interceptor(grpc.aio.ServerInterceptor):
    """A server interceptor with one method for all four kinds of RPC.

    The handler, an async generator too, runs in the task and the context of `around`: what
    `around` sets in a context variable is set in the handler. A plain function, which would
    block the event loop, is no handler.
    """

    @abstractmethod
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Serves the call: `return await proceed()`, with whatever belongs before and after."""

    def decoder(self, decode: Decode) -> Decode:
        """Returns what decodes request messages, by default what does already."""
        return decode

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details) or _UNKNOWN_METHOD
        return _wrap(handler, self, handler_call_details)


class _WatchedContext:
    """A servicer context whose messages pass the hooks of a call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._context = call.context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        message = await self._context.read()
        if self._call.on_request is not None and message is not grpc.aio.EOF:
            checking = self._call.on_request(message)
            if checking is not None:
                await checking
        return message

    async def write(self, message: Any) -> None:
        if self._call.on_response is not None:
            self._call.on_response(message)
        await self._context.write(message)


class _Requests:
    """The request stream of a context, as an asynchronous iterator."""

    def __init__(self, context: _WatchedContext) -> None:
        self._context = context

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


def _wrap(
    handler: grpc.RpcMethodHandler[Any, Any],
    interceptor: Interceptor,
    details: grpc.HandlerCallDetails,
) -> grpc.RpcMethodHandler[Any, Any]:
    kind = ("stream" if handler.request_streaming else "unary") + (
        "_stream" if handler.response_streaming else "_unary"
    )
    behaviour = getattr(handler, kind)
    streams = bool(handler.request_streaming or handler.response_streaming)

    async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        call = Call(details, context, streams)

        async def proceed() -> Any:
            argument: Any = request
            watched: Any = call.context
            if call.on_request is not None or call.on_response is not None:
                if handler.request_streaming or handler.response_streaming:
                    watched = _WatchedContext(call)
                if handler.request_streaming:
                    argument = _Requests(watched)
                elif call.on_request is not None:
                    checking = call.on_request(request)
                    if checking is not None:
                        await checking
            result = behaviour(argument, watched)
            if inspect.isasyncgen(result):
                async with aclosing(result) as responses:
                    async for response in responses:
                        await watched.write(response)
                return None
            if not inspect.isawaitable(result):
                raise TypeError(f"the handler of {call.method} is a plain function")
            result = await result
            if call.on_response is not None and not handler.response_streaming:
                call.on_response(result)
            return result

        return await interceptor.around(call, proceed)

    make: Callable[..., grpc.RpcMethodHandler[Any, Any]]
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    decode = handler.request_deserializer
    return make(serve, decode and interceptor.decoder(decode), handler.response_serializer)


async def _unknown_method(
    requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
) -> None:
    raise unimplemented("This server has no such method.", reason="METHOD_UNKNOWN")


_UNKNOWN_METHOD: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
    _unknown_method
)
