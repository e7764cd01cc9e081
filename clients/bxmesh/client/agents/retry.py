"""How a failed step is tried again."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from bxmesh.client.agents.times import to_duration
from bxmesh.client.errors import BxmeshError
from bxmesh.registry.v1 import retry_policy_pb2 as pb

__all__ = ["RetryPolicy", "reason_of"]

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class RetryPolicy:
    """After a random time between 0 and initial × 2^failures, at most maximum, it is tried again."""

    max_attempts: int = 0
    """How often it is tried in all, 1 to 100; 0 for the server's default."""
    initial_backoff: float = 1.0
    """The first bound of the delay, in seconds."""
    max_backoff: float = 60.0
    """The longest delay, in seconds."""
    non_retryable: tuple[str | type[Exception], ...] = ()
    """What no repetition cures: reasons, or exception classes."""

    def retryable(self, error: BaseException) -> bool:
        """Returns whether a repetition may cure an error."""
        classes = tuple(one for one in self.non_retryable if isinstance(one, type))
        return not isinstance(error, classes) and reason_of(error) not in self.non_retryable

    def delay(self, failures: int) -> float:
        """Returns how long to wait after so many failures, at least 1, in seconds."""
        bound: float = self.initial_backoff * 2 ** min(failures - 1, 32)
        return random.uniform(0, min(bound, self.max_backoff))

    def to_message(self) -> pb.RetryPolicy:
        """Returns the policy as a message; a class stands as the reason its errors have."""
        reasons = [
            one if isinstance(one, str) else _upper_snake(one.__name__)
            for one in self.non_retryable
        ]
        return pb.RetryPolicy(
            max_attempts=self.max_attempts,
            initial_backoff=to_duration(self.initial_backoff),
            max_backoff=to_duration(self.max_backoff),
            non_retryable_reasons=reasons,
        )


def reason_of(error: BaseException) -> str:
    """Returns the kind of an error in UPPER_SNAKE: VALUE_ERROR for a ValueError."""
    return error.reason if isinstance(error, BxmeshError) else _upper_snake(type(error).__name__)


def _upper_snake(name: str) -> str:
    return _WORD_STARTS.sub("_", name).upper()
