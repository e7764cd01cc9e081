"""What is asynchronous, without asyncio: run on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

__all__ = ["Blocking", "Loop", "blocking", "iterating"]

P = ParamSpec("P")
R = TypeVar("R")
Target = TypeVar("Target")


class Loop:
    """An event loop in a daemon thread. Waiting for it can be interrupted."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="bxmesh-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def start(self, coroutine: Coroutine[Any, Any, R]) -> Future[R]:
        """Runs a coroutine and returns its future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine and returns its result."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a last coroutine and ends the thread."""
        self.run(farewell())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class Blocking(Generic[Target]):
    """The blocking counterpart of an object that lives on the loop."""

    def __init__(self, loop: Loop, target: Target) -> None:
        self._loop = loop
        self._target = target


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """Returns the blocking counterpart of a coroutine method."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self._loop.run(method(self._target, *args, **kwargs))
        return result

    return call


def iterating(
    method: Callable[Concatenate[Any, P], AsyncIterator[R]],
) -> Callable[Concatenate[Any, P], Iterator[R]]:
    """Returns the blocking counterpart of an asynchronous generator method."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        items: Any = method(self._target, *args, **kwargs)

        async def following() -> tuple[R] | None:
            async for item in items:
                return (item,)
            return None

        try:
            while (item := self._loop.run(following())) is not None:
                yield item[0]
        finally:
            # The loop may be gone, and with it what would be closed.
            with suppress(RuntimeError):
                self._loop.run(items.aclose())

    return call
