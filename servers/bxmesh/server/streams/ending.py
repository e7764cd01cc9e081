"""Ending tasks for good, and what has one of its own until it ends."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

__all__ = ["Background", "end_tasks"]

_PATIENCE_SECONDS = 0.5


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks and waits for their end; their errors stay with them."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        # More than once: redis-py may swallow a cancellation while it connects.
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_PATIENCE_SECONDS)


class Background(ABC):
    """An asynchronous context manager within which its `_run` runs."""

    _background: asyncio.Task[None] | None = None

    @abstractmethod
    async def _run(self) -> None:
        """Goes on until it is cancelled."""

    async def __aenter__(self) -> Self:
        self._background = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._background is not None:
            await end_tasks(self._background)
