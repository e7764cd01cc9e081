"""The waits between attempts to come back to a mesh that is away."""

from __future__ import annotations

import asyncio
import random
import time

from bxmesh.client.errors import BxmeshError

__all__ = ["Backoff"]

_FIRST_SECONDS = 0.1
_LONGEST_SECONDS = 3.0


class Backoff:
    """Full jitter over exponential bounds, for so many seconds without success; None: for ever."""

    def __init__(self, patience: float | None = None) -> None:
        self._patience = patience
        self._failures = 0
        self._since = 0.0

    def reset(self) -> None:
        """Notes a success."""
        self._failures = 0

    async def wait(self, error: BxmeshError) -> None:
        """Waits after a failure; raises its error when patience is at its end."""
        now = time.monotonic()
        if self._failures == 0:
            self._since = now
        elif self._patience is not None and now - self._since > self._patience:
            raise error
        bound = min(_FIRST_SECONDS * 2.0 ** min(self._failures, 16), _LONGEST_SECONDS)
        self._failures += 1
        await asyncio.sleep(max(random.uniform(0, bound), error.retry_after or 0.0))
