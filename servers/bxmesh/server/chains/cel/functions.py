"""What functions and methods do; each is paid from the budget."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import re2

from bxmesh.server.chains.cel.problems import Budget, EvaluationError, quoted
from bxmesh.server.chains.cel.values import in_range, kind, read

__all__ = ["FUNCTIONS", "METHODS"]

_LONGEST_PATTERN = 256
_PATTERN_BYTES = 1 << 18
_INSTRUCTIONS_PER_STEP = 256
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_DOUBLE = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?")
_PATTERN_OPTIONS: Any = re2.Options()
_PATTERN_OPTIONS.max_mem = _PATTERN_BYTES
_PATTERN_OPTIONS.log_errors = False


def _size(budget: Budget, value: Any) -> int:
    if not isinstance(value, str | list | dict):
        raise EvaluationError(f"{kind(value)} has no size")
    return len(value)


def _int(budget: Budget, value: Any) -> int:
    match value:
        case int() if not isinstance(value, bool):
            return value
        case float() if math.isfinite(value):
            return in_range(int(value))
        case str() if _INTEGER.fullmatch(value):
            return in_range(int(value))
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
        read(budget, text, part)
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
