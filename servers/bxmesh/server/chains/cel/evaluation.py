"""What a compiled expression runs on, and how macros go over lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bxmesh.server.chains.cel.problems import Budget, EvaluationError, OverBudgetError
from bxmesh.server.chains.cel.scope import Scope
from bxmesh.server.chains.cel.values import boolean, kind

__all__ = ["MACROS", "Code", "Frame", "decided", "each"]


@dataclass(slots=True)
class Frame:
    """What is there while a part is evaluated: the scope, the budget, the variables of macros."""

    scope: Scope
    budget: Budget
    variables: dict[str, Any] = field(default_factory=dict)
    # The value of the innermost variable.
    item: Any = None


Code = Callable[[Frame], Any]

_COST_OF_ITEM = 5


def decided(wanted: bool, parts: Iterable[tuple[Code, Frame]]) -> bool:
    """Returns `wanted` if any part is that, even when others fail; so `||` and `&&` may be read in
    any order."""
    problem: EvaluationError | None = None
    for code, frame in parts:
        try:
            if boolean(code(frame)) is wanted:
                return wanted
        except OverBudgetError:
            raise
        except EvaluationError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return not wanted


def each(frame: Frame, container: Any, variable: str, cost: int) -> Iterator[Frame]:
    """Gives a frame for each item of a list or key of a map; each is paid with `cost`."""
    if not isinstance(container, list | dict):
        raise EvaluationError(f"{kind(container)} is neither list nor map")
    scope, budget, outer = frame.scope, frame.budget, frame.variables
    for item in container:
        budget.spend(cost + _COST_OF_ITEM)
        yield Frame(scope, budget, {**outer, variable: item}, item)


def _all(frames: Iterable[Frame], body: Code) -> bool:
    return decided(False, ((body, frame) for frame in frames))


def _exists(frames: Iterable[Frame], body: Code) -> bool:
    return decided(True, ((body, frame) for frame in frames))


def _exists_one(frames: Iterable[Frame], body: Code) -> bool:
    return sum(boolean(body(frame)) for frame in frames) == 1


def _filter(frames: Iterable[Frame], keeps: Code) -> list[Any]:
    return [frame.item for frame in frames if boolean(keeps(frame))]


def _map(frames: Iterable[Frame], result: Code) -> list[Any]:
    return [result(frame) for frame in frames]


def _map_some(frames: Iterable[Frame], keeps: Code, result: Code) -> list[Any]:
    return [result(frame) for frame in frames if boolean(keeps(frame))]


# By name and number of arguments: the variable and what is evaluated for each item.
MACROS: dict[tuple[str, int], Callable[..., Any]] = {
    ("all", 2): _all,
    ("exists", 2): _exists,
    ("exists_one", 2): _exists_one,
    ("filter", 2): _filter,
    ("map", 2): _map,
    ("map", 3): _map_some,
}
