"""A measured figure and its goal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

_IN_A_ROW = 10


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
            else f"{self.value:,.{0 if self.value >= 10 else 2}f} {self.unit}"
        )

    @property
    def goal_text(self) -> str:
        bound = self.at_most if self.at_most is not None else self.at_least
        if bound is None:
            return ""
        sign = "≤" if self.at_most is not None else "≥"
        return f"{sign} {bound:g}{'' if self.unit != '×' else '×'}"


async def p50_in_turn(
    mesh: Callable[[], Awaitable[object]], bare: Callable[[], object], times: int
) -> tuple[float, float]:
    """The median times of two calls, in seconds.

    They are measured in turn, a few calls each: the same machine may be half as fast a second later.
    """
    with_mesh, without = [], []
    for _ in range(0, times, _IN_A_ROW):
        for _ in range(_IN_A_ROW):
            without.append(_timed(bare))
        for _ in range(_IN_A_ROW):
            began = time.perf_counter()
            await mesh()
            with_mesh.append(time.perf_counter() - began)
    return statistics.median(with_mesh), statistics.median(without)


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def milliseconds(*seconds: float) -> str:
    """Times for people."""
    return " / ".join(f"{1000 * each:.2f}" for each in seconds) + " ms"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
