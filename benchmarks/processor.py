"""How much of a core processes take."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


async def processor_share(pid: int, seconds: float) -> float:
    """The part of one core that a process and its children take over a time."""
    pids = [pid, *_children(pid)]
    began, start = sum(map(_ticks, pids)), time.perf_counter()
    await asyncio.sleep(seconds)
    ticks = sum(map(_ticks, pids)) - began
    return ticks / _TICKS_PER_SECOND / (time.perf_counter() - start)


def processor_seconds(pid: int) -> float:
    """The seconds of a core that a process has taken so far."""
    return _ticks(pid) / _TICKS_PER_SECOND


def _children(pid: int) -> list[int]:
    # Each thread has children of its own.
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for each in lists for child in each.split()]


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
