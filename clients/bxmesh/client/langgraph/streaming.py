"""How far something is, on the stream `custom` of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langgraph.config import get_stream_writer

__all__ = ["stream_writer"]


def stream_writer() -> Callable[[Any], None]:
    """Returns what writes to the stream of the graph that runs; outside of one it does nothing."""
    try:
        return get_stream_writer()
    except (RuntimeError, KeyError):
        return lambda event: None
