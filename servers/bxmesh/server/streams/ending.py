"""Ending tasks for good."""

from __future__ import annotations

import asyncio
from typing import Any

_PATIENCE_SECONDS = 0.5


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks and waits for their end; their errors stay with them."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        # More than once: redis-py may swallow a cancellation while it connects.
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_PATIENCE_SECONDS)
