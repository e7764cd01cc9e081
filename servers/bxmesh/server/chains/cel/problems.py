"""What can be wrong with an expression, and what its evaluation may cost."""

from __future__ import annotations

__all__ = ["Budget", "EvaluationError", "OverBudgetError", "SourceError", "quoted"]

_MOST_WORK = 500_000
_MOST_QUOTED = 60


class SourceError(Exception):
    """The source is no expression, or one that is refused."""


class EvaluationError(Exception):
    """The expression has no value for these inputs."""


class OverBudgetError(EvaluationError):
    """The evaluation asks for more work than it gets; unlike others `||` and `&&` never absorb it."""


class Budget:
    """The work that an evaluation may still do: about one unit for each part that is evaluated."""

    def __init__(self) -> None:
        self._left = _MOST_WORK

    def spend(self, work: int) -> None:
        """Raises OverBudgetError when that much is not left."""
        self._left -= work
        if self._left < 0:
            raise OverBudgetError(f"it takes more than {_MOST_WORK:,} steps")


def quoted(text: str) -> str:
    """Returns others' text for a message, cut when it is long."""
    return repr(text if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]}…")
