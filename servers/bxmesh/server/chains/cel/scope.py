"""What an expression sees, and what JSON can say of its result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bxmesh.server.chains.cel.problems import Budget, EvaluationError, quoted

__all__ = ["Scope"]

# A protobuf value is read to a depth of 100 messages; a map in a run takes three for each level.
_DEEPEST = 30
_DEEPEST_INPUT = 100
_MOST_OUTPUT = 4 << 20
_BYTES_PER_VALUE = 8


class Scope:
    """The chain's input, and the outputs of the steps that have one.

    Each is read when an expression first asks for it. The expressions that share a scope share its
    budget and what they may give.
    """

    def __init__(self, input: Any, outputs: Mapping[str, Any]) -> None:
        """Takes values as JSON has them."""
        self._input = input
        self._outputs = outputs
        self._read: dict[str | None, Any] = {}
        self._left = _MOST_OUTPUT
        self.budget = Budget()

    def has(self, step: str) -> bool:
        """Says whether a step has an output."""
        return step in self._outputs

    def output(self, step: str) -> Any:
        """Returns what a step answered."""
        if step not in self._outputs:
            raise EvaluationError(f"step {quoted(step)} has no output")
        return self._value(step, self._outputs[step])

    def input(self) -> Any:
        """Returns what the chain was given."""
        return self._value(None, self._input)

    def _value(self, root: str | None, value: Any) -> Any:
        if root not in self._read:
            self._read[root] = _with_doubles(value, _DEEPEST_INPUT)
        return self._read[root]

    def written(self, value: Any, levels: int) -> Any:
        """Returns a copy of a result that shares no parts, to stand so many levels deep; raises
        EvaluationError for what is too large, too deep, or has numbers that JSON cannot have."""
        if levels > _DEEPEST:
            raise EvaluationError(f"the result is more than {_DEEPEST} levels deep")
        self._give(value if isinstance(value, str) else "")
        match value:
            case float() if not math.isfinite(value):
                raise EvaluationError(f"the result has {value}, which JSON does not have")
            case list():
                return [self.written(each, levels + 1) for each in value]
            case dict():
                copied = {}
                for key, each in value.items():
                    self._give(key)
                    copied[key] = self.written(each, levels + 1)
                return copied
        return value

    def _give(self, text: str) -> None:
        self._left -= _BYTES_PER_VALUE + len(text)
        if self._left < 0:
            raise EvaluationError(f"the result is larger than {_MOST_OUTPUT >> 20} MiB")


def _with_doubles(value: Any, depth: int) -> Any:
    """Numbers in JSON are doubles, also where Python reads an int."""
    if depth < 0:
        raise EvaluationError("values are too deep")
    match value:
        case bool() | None | str() | float():
            return value
        case int():
            return float(value)
        case list() | tuple():
            return [_with_doubles(each, depth - 1) for each in value]
        case dict():
            return {str(key): _with_doubles(each, depth - 1) for key, each in value.items()}
    raise EvaluationError("there are values that JSON does not have")
