"""How long a retry waits by a RetryPolicy."""

from __future__ import annotations

import random

from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy

__all__ = ["retry_delay"]

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 60.0
_MOST_DOUBLINGS = 30


def retry_delay(policy: RetryPolicy, attempt: int) -> float:
    """Returns a random time in seconds before the attempt after `attempt`, with full jitter."""
    first = policy.initial_backoff.ToNanoseconds() / 1e9 or _FIRST_SECONDS
    most = policy.max_backoff.ToNanoseconds() / 1e9 or _LONGEST_SECONDS
    return random.uniform(0, min(most, first * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS)))
