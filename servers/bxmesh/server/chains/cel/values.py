"""What operators and functions do with values.

A value is None, bool, int, float, str, list or dict with texts as keys; nothing else comes in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeGuard

import re2

from bxmesh.server.chains.cel.problems import Budget, EvaluationError, quoted

__all__ = ["FUNCTIONS", "METHODS", "OPERATORS", "at", "boolean", "kind", "negative"]

_INT = range(-(2**63), 2**63)
_CHARACTERS_PER_STEP = 32
_LONGEST_PATTERN = 256
_PATTERN_BYTES = 1 << 18
_INSTRUCTIONS_PER_STEP = 256
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_DOUBLE = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?")
_KINDS = {
    type(None): "null",
    bool: "bool",
    int: "int",
    float: "double",
    str: "string",
    list: "list",
    dict: "map",
}


_PATTERN_OPTIONS: Any = re2.Options()
_PATTERN_OPTIONS.max_mem = _PATTERN_BYTES
_PATTERN_OPTIONS.log_errors = False


def kind(value: Any) -> str:
    """Returns the name of a value's type."""
    return _KINDS[type(value)]


def boolean(value: Any) -> bool:
    """Returns the value if it is one of the two."""
    if not isinstance(value, bool):
        raise EvaluationError(f"a bool is needed, not {kind(value)}")
    return value


def _is_number(value: Any) -> TypeGuard[int | float]:
    return type(value) in (int, float)


def _in_range(value: int) -> int:
    if value not in _INT:
        raise EvaluationError("an integer has more than 64 bits")
    return value


def negative(value: Any) -> int | float:
    """Returns -value."""
    if not _is_number(value):
        raise EvaluationError(f"cannot negate {kind(value)}")
    return _in_range(-value) if isinstance(value, int) else -value


def at(container: Any, key: Any) -> Any:
    """Returns what a list has at an index, or a map under a key."""
    match container:
        case dict() if isinstance(key, str):
            if key not in container:
                raise EvaluationError(f"there is no key {quoted(key)}")
            return container[key]
        case list() if _is_number(key):
            if not 0 <= key < len(container) or key != int(key):
                raise EvaluationError(f"index {key} is not in a list of {len(container)}")
            return container[int(key)]
    if isinstance(key, str):
        raise EvaluationError(f"{kind(container)} has no key {quoted(key)}")
    raise EvaluationError(f"{kind(container)} cannot be indexed by {kind(key)}")


def _equal(budget: Budget, left: Any, right: Any) -> bool:
    # Not recursive, and paid: values may share parts, and then have many more than they occupy.
    waiting = [(left, right)]
    while waiting:
        left, right = waiting.pop()
        budget.spend(1)
        if _is_number(left) and _is_number(right):
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
                _read(budget, left)
            same = left == right
        if not same:
            return False
    return True


def _unequal(budget: Budget, left: Any, right: Any) -> bool:
    return not _equal(budget, left, right)


def _read(budget: Budget, *texts: str) -> None:
    budget.spend(sum(map(len, texts)) // _CHARACTERS_PER_STEP)


def _comparison(name: str, holds: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    def compare(budget: Budget, left: Any, right: Any) -> bool:
        if not (_is_number(left) and _is_number(right)):
            if type(left) is not type(right) or not isinstance(left, str | bool):
                raise EvaluationError(f"cannot do {kind(left)} {name} {kind(right)}")
            if isinstance(left, str):
                _read(budget, left)
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
        _read(budget, left, right)
        return left + right
    if isinstance(left, list) and isinstance(right, list):
        budget.spend(len(left) + len(right))
        return left + right
    return _sum(budget, left, right)


def _arithmetic(name: str, of_ints: Callable[[int, int], int], of_doubles: Any) -> Any:
    """An operator on numbers; of an int and a double it is that on doubles."""

    def calculate(budget: Budget, left: Any, right: Any) -> int | float:
        if not (_is_number(left) and _is_number(right)):
            raise EvaluationError(f"cannot do {kind(left)} {name} {kind(right)}")
        try:
            if isinstance(left, int) and isinstance(right, int):
                return _in_range(of_ints(left, right))
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


def _size(budget: Budget, value: Any) -> int:
    if not isinstance(value, str | list | dict):
        raise EvaluationError(f"{kind(value)} has no size")
    return len(value)


def _int(budget: Budget, value: Any) -> int:
    match value:
        case int() if not isinstance(value, bool):
            return value
        case float() if math.isfinite(value):
            return _in_range(int(value))
        case str() if _INTEGER.fullmatch(value):
            return _in_range(int(value))
    raise _inconvertible("int", value)


def _double(budget: Budget, value: Any) -> float:
    match value:
        case float() | int() if not isinstance(value, bool):
            return float(value)
        case str() if _DOUBLE.fullmatch(value):
            return float(value)
    raise _inconvertible("double", value)


def _string(budget: Budget, value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case int() | float():
            return str(value)
    raise _inconvertible("string", value)


def _bool(budget: Budget, value: Any) -> bool:
    match value:
        case bool():
            return value
        case "true":
            return True
        case "false":
            return False
    raise _inconvertible("bool", value)


def _inconvertible(to: str, value: Any) -> EvaluationError:
    what = quoted(value) if isinstance(value, str) else kind(value)
    return EvaluationError(f"{what} cannot become {to}")


def _on_texts(name: str, holds: Callable[[str, str], bool]) -> Callable[..., bool]:
    def check(budget: Budget, text: Any, part: Any) -> bool:
        if not (isinstance(text, str) and isinstance(part, str)):
            raise EvaluationError(f"{name} takes strings, not {kind(text)} and {kind(part)}")
        _read(budget, text, part)
        return holds(text, part)

    return check


def _matches(budget: Budget, text: Any, pattern: Any) -> bool:
    if not (isinstance(text, str) and isinstance(pattern, str)):
        raise EvaluationError(f"matches takes strings, not {kind(text)} and {kind(pattern)}")
    if len(pattern) > _LONGEST_PATTERN:
        raise EvaluationError(f"a pattern has more than {_LONGEST_PATTERN} characters")
    # Compiling costs by what repetitions unfold to, which the memory bounds.
    budget.spend(1000)
    try:
        compiled: Any = re2.compile(pattern, _PATTERN_OPTIONS)
    except re2.error:
        raise EvaluationError(f"{quoted(pattern)} is no pattern, or too large a one") from None
    # RE2 takes at worst a look at each instruction for each character.
    budget.spend(len(text) * (compiled.programsize + 1) // _INSTRUCTIONS_PER_STEP)
    found: bool = compiled.search(text) is not None
    return found


METHODS: dict[str, tuple[int, Callable[..., Any]]] = {
    "size": (0, _size),
    "contains": (1, _on_texts("contains", lambda text, part: part in text)),
    "startsWith": (1, _on_texts("startsWith", str.startswith)),
    "endsWith": (1, _on_texts("endsWith", str.endswith)),
    "matches": (1, _matches),
}
FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "size": (1, _size),
    "int": (1, _int),
    "double": (1, _double),
    "string": (1, _string),
    "bool": (1, _bool),
    "matches": (2, _matches),
}
