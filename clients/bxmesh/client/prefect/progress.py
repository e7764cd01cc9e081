"""How far a task is, as an artifact of Prefect."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Self

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from bxmesh.client.errors import BxmeshError

__all__ = ["Progress", "attempt"]

_SECONDS = 1.0

_log = logging.getLogger(__name__)


def attempt(artifact: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns what making an artifact returns; None, with a warning, when Prefect cannot be reached.

    A calculation is not lost because nobody could be told of it.
    """
    try:
        return artifact(*args, **kwargs)
    except Exception as error:
        _log.warning("an artifact could not be written: %s", error)
        return None


class Progress:
    """A progress artifact for the time of a block, changed once a second at most."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._id: Any = None
        # In a thread of its own, so that a slow API of Prefect does not hold up the calculation.
        self._updates = ThreadPoolExecutor(1, thread_name_prefix="bxmesh-progress")
        self._context = copy_context()
        self._last: Future[Any] | None = None
        self._told = 0.0
        self._percent = 0.0

    def __enter__(self) -> Self:
        self._id = attempt(create_progress_artifact, 0.0, description=self._what)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._percent = 100.0
            self._update("done")
        else:
            said = error.reason if isinstance(error, BxmeshError) else type(error).__name__
            self._update(f"failed: {said}")
        self._updates.shutdown()

    def tell(self, fraction: float, said: str) -> None:
        """Shows the part that is done, 0 to 1, and what is under way."""
        self._percent = min(100.0, 100.0 * fraction)
        if self._last is not None and not self._last.done():
            return
        if time.monotonic() - self._told > _SECONDS:
            self._told = time.monotonic()
            self._update(said)

    def _update(self, said: str) -> None:
        if self._id is not None:
            self._last = self._updates.submit(
                self._context.run,
                attempt,
                update_progress_artifact,
                self._id,
                self._percent,
                description=f"{self._what}: {said}",
            )
