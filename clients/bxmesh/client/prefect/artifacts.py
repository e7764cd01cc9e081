"""What a task shows of itself, as artifacts of Prefect."""

from __future__ import annotations

import logging
import time
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, Self, TypeVar

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

from bxmesh.client.blocking import Loop
from bxmesh.client.errors import BxmeshError

__all__ = ["Artifacts"]

R = TypeVar("R")

_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Artifacts:
    """How far a task is, told once a second at most, and its reports, for the time of a block.

    They are written on a loop of their own, so that a slow Prefect holds up no calculation, and one
    that cannot be reached costs no result.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._id: Any = None
        self._last: Future[Any] | None = None
        self._told = 0.0
        self._percent = 0.0

    def __enter__(self) -> Self:
        self._loop = Loop()
        self._id = self.write(acreate_progress_artifact(0.0, description=self._what))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._percent, said = 100.0, "done"
        elif isinstance(error, BxmeshError):
            said = f"failed: {error.reason}"
        else:
            said = f"failed: {type(error).__name__}"
        if self._last is not None:
            wait([self._last])
        self.write(self._show(said))
        self._loop.close(_nothing)

    def tell(self, fraction: float, said: str) -> None:
        """Shows the part that is done, 0 to 1, and what is under way."""
        self._percent = min(100.0, 100.0 * fraction)
        busy = self._last is not None and not self._last.done()
        if not busy and time.monotonic() - self._told > _SECONDS:
            self._told = time.monotonic()
            self._last = self._loop.start(_attempt(self._show(said)))

    def write(self, artifact: Coroutine[Any, Any, R]) -> R | None:
        """Returns what writing an artifact returns; None, with a warning, when that fails."""
        return self._loop.run(_attempt(artifact))

    async def _show(self, said: str) -> None:
        if self._id is not None:
            described = f"{self._what}: {said}"
            await aupdate_progress_artifact(self._id, self._percent, description=described)


async def _attempt(artifact: Coroutine[Any, Any, R]) -> R | None:
    try:
        return await artifact
    except Exception as error:
        _log.warning("an artifact could not be written: %s", error)
        return None


async def _nothing() -> None:
    pass
