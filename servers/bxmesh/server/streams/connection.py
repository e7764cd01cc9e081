"""Connections to Redis or Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bxmesh.server.errors import unavailable

CONNECTION_ERRORS = (RedisConnectionError, RedisTimeoutError, OSError)
REDIS_ERRORS = (*CONNECTION_ERRORS, ResponseError)


def connect(url: str) -> Redis:
    """A client for a server by URL: redis://, rediss:// (TLS) or unix://PATH.

    No command is sent twice: when the connection is lost nobody knows whether it was carried out,
    so the caller sees the connection error and decides. The next command connects anew.
    """
    client: Redis = Redis.from_url(
        url,
        socket_timeout=10,
        socket_connect_timeout=5,
        health_check_interval=30,
        retry=Retry(NoBackoff(), retries=0),
    )
    return client


def is_missing_group(error: ResponseError) -> bool:
    """Whether a stream or its group is gone, as after FLUSHALL."""
    return str(error).startswith(("NOGROUP", "UNBLOCKED"))


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turns Redis being away, or refusing, into a MeshError UNAVAILABLE."""
    try:
        yield
    except CONNECTION_ERRORS as error:
        raise unavailable(
            "Redis cannot be reached. Try again in a moment.",
            retry_after=1.0,
            reason="REDIS_UNAVAILABLE",
        ) from error
    except ResponseError as error:
        # Out of memory, still loading, read-only.
        raise unavailable(
            f"Redis refuses to work: {str(error).splitlines()[0][:120]}",
            retry_after=5.0,
            reason="REDIS_REFUSED",
        ) from error
