"""Watches: streams that come back where they broke off."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.connection import Connection, translated
from bxmesh.client.errors import InvalidInput, ResourceExhausted, Unavailable

__all__ = ["watch"]

R = TypeVar("R")


async def watch(
    connection: Connection,
    method: Callable[..., AsyncIterator[R]],
    request: Any,
    revision: Callable[[R], int],
) -> AsyncGenerator[R, None]:
    """Yields what a watch sends, to its end.

    A stream that breaks goes on after the last revision that was yielded, or begins again at 0
    when that is not kept any more. Raises Unavailable when the mesh stays away for longer than
    `Timeouts.reconnect`.
    """
    backoff = Backoff(connection.timeouts.reconnect, "a watch")
    while True:
        call: Any = method(request, metadata=connection.metadata)
        responses = aiter(call)
        try:
            while True:
                with translated():
                    response: R | None = await anext(responses, None)
                if response is None:
                    return
                backoff.reset()
                request.after_revision = revision(response)
                yield response
        except Unavailable as error:
            await backoff.wait(error)
        except ResourceExhausted as error:
            if error.reason != "SLOW_CONSUMER":
                raise
        except InvalidInput as error:
            if error.reason != "REVISION_COMPACTED" or not request.after_revision:
                raise
            request.after_revision = 0
        finally:
            call.cancel()
