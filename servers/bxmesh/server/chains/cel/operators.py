"""What operators do; each is paid from the budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from bxmesh.server.chains.cel.problems import Budget, EvaluationError
from bxmesh.server.chains.cel.values import in_range, is_number, kind, read

__all__ = ["OPERATORS"]


def _equal(budget: Budget, left: Any, right: Any) -> bool:
    # Not recursive, and paid: values may share parts, and then have many more than they occupy.
    waiting = [(left, right)]
    while waiting:
        left, right = waiting.pop()
        budget.spend(1)
        if is_number(left) and is_number(right):
            same = left == right
        elif type(left) is not type(right):
            return False
        elif isinstance(left, list):
            budget.spend(len(left))
            same = len(left) == len(right)
            waiting += zip(left, right, strict=False)
        elif isinstance(left, dict):
            budget.spend(len(left))
            same = left.keys() == right.keys()
            if same:
                waiting += [(value, right[key]) for key, value in left.items()]
        else:
            if isinstance(left, str):
                read(budget, left)
            same = left == right
        if not same:
            return False
    return True


def _unequal(budget: Budget, left: Any, right: Any) -> bool:
    return not _equal(budget, left, right)


def _comparison(name: str, holds: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    def compare(budget: Budget, left: Any, right: Any) -> bool:
        if not (is_number(left) and is_number(right)):
            if type(left) is not type(right) or not isinstance(left, str | bool):
                raise EvaluationError(f"cannot do {kind(left)} {name} {kind(right)}")
            if isinstance(left, str):
                read(budget, left)
        return holds(left, right)

    return compare


def _contained(budget: Budget, item: Any, container: Any) -> bool:
    match container:
        case dict():
            return isinstance(item, str) and item in container
        case list():
            return any(_equal(budget, item, each) for each in container)
    raise EvaluationError(f"cannot do {kind(item)} in {kind(container)}")


def _plus(budget: Budget, left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        read(budget, left, right)
        return left + right
    if isinstance(left, list) and isinstance(right, list):
        budget.spend(len(left) + len(right))
        return left + right
    return _sum(budget, left, right)


def _arithmetic(name: str, of_ints: Callable[[int, int], int], of_doubles: Any) -> Any:
    """An operator on numbers; of an int and a double it is that on doubles."""

    def calculate(budget: Budget, left: Any, right: Any) -> int | float:
        if not (is_number(left) and is_number(right)):
            raise EvaluationError(f"cannot do {kind(left)} {name} {kind(right)}")
        try:
            if isinstance(left, int) and isinstance(right, int):
                return in_range(of_ints(left, right))
            result: float = of_doubles(float(left), float(right))
        except (ArithmeticError, ValueError):
            raise EvaluationError(f"{left} {name} {right} has no result") from None
        return result

    return calculate


def _quotient(left: int, right: int) -> int:
    """Rounds towards zero, unlike Python."""
    result = abs(left) // abs(right)
    return result if (left < 0) == (right < 0) else -result


_sum = _arithmetic("+", lambda a, b: a + b, lambda a, b: a + b)

OPERATORS: dict[str, Callable[[Budget, Any, Any], Any]] = {
    "==": _equal,
    "!=": _unequal,
    "<": _comparison("<", lambda a, b: a < b),
    "<=": _comparison("<=", lambda a, b: a <= b),
    ">": _comparison(">", lambda a, b: a > b),
    ">=": _comparison(">=", lambda a, b: a >= b),
    "in": _contained,
    "+": _plus,
    "-": _arithmetic("-", lambda a, b: a - b, lambda a, b: a - b),
    "*": _arithmetic("*", lambda a, b: a * b, lambda a, b: a * b),
    "/": _arithmetic("/", _quotient, lambda a, b: a / b),
    "%": _arithmetic("%", lambda a, b: a - b * _quotient(a, b), math.fmod),
}
