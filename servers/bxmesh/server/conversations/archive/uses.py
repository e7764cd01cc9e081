"""How the last use of something went that may be away: what it is asked for anyway tells for free."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["Failure", "Uses"]

# Whoever gives up sooner may have had other reasons.
_PATIENCE_SECONDS = 5.0


class Failure(NamedTuple):
    """A use that failed."""

    seconds_ago: float
    """How long ago, in seconds."""
    why: str
    """Why, in one line."""


class Uses:
    """The uses of one thing."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._under_way: dict[int, float] = {}
        self._succeeded = -1.0
        self._failed = -1.0
        self._why = ""

    @contextmanager
    def one(self) -> Iterator[None]:
        """One use; what is raised within says that it failed."""
        number, begun = next(self._numbers), time.monotonic()
        self._under_way[number] = begun
        try:
            yield
        except asyncio.CancelledError:
            took = time.monotonic() - begun
            if took >= _PATIENCE_SECONDS:
                self._note(f"no answer within {took:.0f} s")
            raise
        except Exception as error:
            self._note(str(error) or type(error).__name__)
            raise
        else:
            self._why, self._succeeded = "", time.monotonic()
        finally:
            del self._under_way[number]

    @property
    def failure(self) -> Failure | None:
        """The last use, if it failed."""
        return Failure(time.monotonic() - self._failed, self._why) if self._why else None

    @property
    def success(self) -> float | None:
        """How many seconds ago a use went well; None when none did."""
        return time.monotonic() - self._succeeded if self._succeeded >= 0 else None

    @property
    def waiting(self) -> float:
        """How many seconds the oldest use that is under way has taken; 0 without any."""
        begun = min(self._under_way.values(), default=None)
        return 0.0 if begun is None else time.monotonic() - begun

    def _note(self, why: str) -> None:
        self._why, self._failed = why, time.monotonic()
