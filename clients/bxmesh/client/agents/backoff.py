"""The waits between attempts to come back to a mesh that is away."""

from __future__ import annotations

import asyncio
import logging
import random
import time

from bxmesh.client.errors import BxmeshError

__all__ = ["Backoff"]

_log = logging.getLogger(__name__)

_FIRST_SECONDS = 0.1
_LONGEST_SECONDS = 3.0
_UNTOLD_SECONDS = 1.0


class Backoff:
    """Full jitter over exponential bounds, for so many seconds without success; None: for ever.

    Where it is said who waits, a warning tells of an absence that is more than a moment.
    """

    def __init__(self, patience: float | None = None, who: str = "") -> None:
        self._patience = patience
        self._who = who
        self._told = False
        self._failures = 0
        self._since = 0.0

    def reset(self) -> None:
        """Notes a success."""
        self._failures = 0
        if self._told:
            _log.warning("%s has the mesh again", self._who)
            self._told = False

    async def wait(self, error: BxmeshError) -> None:
        """Waits after a failure; raises its error when patience is at its end."""
        now = time.monotonic()
        if self._failures == 0:
            self._since = now
        elif self._patience is not None and now - self._since > self._patience:
            raise error
        if self._who and not self._told and now - self._since >= _UNTOLD_SECONDS:
            self._told = True
            _log.warning("%s waits for the mesh: %s", self._who, error)
        bound = min(_FIRST_SECONDS * 2.0 ** min(self._failures, 16), _LONGEST_SECONDS)
        self._failures += 1
        await asyncio.sleep(max(random.uniform(0, bound), error.retry_after or 0.0))
