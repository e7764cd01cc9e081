"""A measured figure and its goal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """One line of the table."""

    what: str
    value: float
    unit: str = "×"
    at_most: float | None = None
    at_least: float | None = None
    details: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    @property
    def text(self) -> str:
        return (
            f"{self.value:,.2f}{self.unit}"
            if self.unit == "×"
            else f"{self.value:,.0f} {self.unit}"
        )

    @property
    def goal_text(self) -> str:
        bound = self.at_most if self.at_most is not None else self.at_least
        if bound is None:
            return ""
        sign = "≤" if self.at_most is not None else "≥"
        return f"{sign} {bound:g}{'' if self.unit != '×' else '×'}"


def p50(call: Callable[[], object], times: int) -> float:
    """The median time of a call, in seconds."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


async def p50_async(call: Callable[[], Awaitable[object]], times: int) -> float:
    """The median time of an asynchronous call, in seconds."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def milliseconds(*seconds: float) -> str:
    """Times for people."""
    return " / ".join(f"{1000 * each:.2f}" for each in seconds) + " ms"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
