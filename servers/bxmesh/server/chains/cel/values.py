"""What values are, and what any operation needs to know of them.

A value is None, bool, int, float, str, list or dict with texts as keys; nothing else comes in.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from bxmesh.server.chains.cel.problems import Budget, EvaluationError, quoted

__all__ = ["at", "boolean", "in_range", "is_number", "kind", "negative", "read"]

_INT = range(-(2**63), 2**63)
_CHARACTERS_PER_STEP = 32
_KINDS = {
    type(None): "null",
    bool: "bool",
    int: "int",
    float: "double",
    str: "string",
    list: "list",
    dict: "map",
}


def kind(value: Any) -> str:
    """Returns the name of a value's type."""
    return _KINDS[type(value)]


def boolean(value: Any) -> bool:
    """Returns the value if it is one of the two."""
    if not isinstance(value, bool):
        raise EvaluationError(f"a bool is needed, not {kind(value)}")
    return value


def is_number(value: Any) -> TypeGuard[int | float]:
    """Says whether it is an int or a double; a bool is none."""
    return type(value) in (int, float)


def in_range(value: int) -> int:
    """Returns the value if 64 bits hold it."""
    if value not in _INT:
        raise EvaluationError("an integer has more than 64 bits")
    return value


def negative(value: Any) -> int | float:
    """Returns -value."""
    if not is_number(value):
        raise EvaluationError(f"cannot negate {kind(value)}")
    return in_range(-value) if isinstance(value, int) else -value


def at(container: Any, key: Any) -> Any:
    """Returns what a list has at an index, or a map under a key."""
    match container:
        case dict() if isinstance(key, str):
            if key not in container:
                raise EvaluationError(f"there is no key {quoted(key)}")
            return container[key]
        case list() if is_number(key):
            if not 0 <= key < len(container) or key != int(key):
                raise EvaluationError(f"index {key} is not in a list of {len(container)}")
            return container[int(key)]
    if isinstance(key, str):
        raise EvaluationError(f"{kind(container)} has no key {quoted(key)}")
    raise EvaluationError(f"{kind(container)} cannot be indexed by {kind(key)}")


def read(budget: Budget, *texts: str) -> None:
    """Pays for a look at each character."""
    budget.spend(sum(map(len, texts)) // _CHARACTERS_PER_STEP)
