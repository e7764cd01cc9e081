"""Running the handlers of an agent within their limits."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from bxmesh.client.agents.failures import HandlerCancelled, HandlerTimeout
from bxmesh.client.agents.handlers import Handler, Handlers
from bxmesh.client.agents.stats import AgentStats

__all__ = ["Invoker"]


class Invoker:
    """Calls handlers of one agent: so many at once, for so long, and counts them."""

    def __init__(self, agent: object, handlers: Handlers, stats: AgentStats) -> None:
        self._agent = agent
        self._stats = stats
        self._slots = {
            handler: asyncio.Semaphore(handler.concurrency)
            for handler in handlers
            if handler.concurrency is not None
        }

    async def call(
        self, handler: Handler, name: str, deadline: float | None, subject: object, *payload: object
    ) -> Any:
        """Returns what a handler returns. The deadline of the work is in seconds since 1970.

        Raises HandlerTimeout when the handler's timeout or the deadline has passed.
        """
        slot: AbstractAsyncContextManager[Any] = self._slots.get(handler) or nullcontext()
        async with slot:
            seconds = handler.timeout
            if deadline is not None:
                left = max(deadline - time.time(), 0.0)
                seconds = left if seconds is None else min(seconds, left)
            began = time.monotonic()
            ok = False
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    result = await handler.function(self._agent, subject, *payload)
                ok = True
                return result
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # It comes out of the handler and is not meant for it: a failure like any other.
                raise HandlerCancelled(name) from error
            except TimeoutError as error:
                if limit.expired():
                    raise HandlerTimeout(name, seconds or 0.0) from error
                raise
            finally:
                self._stats.took(handler.pattern, time.monotonic() - began, ok=ok)
