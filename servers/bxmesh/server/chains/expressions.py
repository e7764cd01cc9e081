"""CEL expressions in chains, with the errors that callers get."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bxmesh.server.chains.cel import (
    EvaluationError,
    Path,
    Program,
    Scope,
    SourceError,
    compile_program,
)
from bxmesh.server.errors import MeshError, failed_precondition, invalid_argument

__all__ = ["Expression", "Scope"]

# A program may be a thousand times its source.
_compiled = lru_cache(128)(compile_program)


@dataclass(frozen=True)
class Expression:
    """An expression over `input` and `steps.<step_id>.output`, and the field that it stands in.

    Compiling takes up to a tenth of a second, evaluating up to a second where they are hostile:
    a server does both in a thread.
    """

    source: str
    field: str
    _program: Program

    @classmethod
    def compile(cls, source: str, field: str) -> Expression:
        """Raises MeshError INVALID_ARGUMENT (EXPRESSION_INVALID) that names the field."""
        try:
            return cls(source, field, _compiled(source))
        except SourceError as error:
            raise invalid_argument(
                field, f"the expression {error}", reason="EXPRESSION_INVALID", path=field
            ) from None

    @property
    def steps(self) -> frozenset[str]:
        """The steps that it refers to."""
        return self._program.steps

    @property
    def path(self) -> Path | None:
        """What it picks, when it does nothing else."""
        return self._program.path

    def evaluate(self, scope: Scope, levels: int = 0) -> Any:
        """Returns the value, as JSON has it, to stand so many levels deep; raises MeshError
        FAILED_PRECONDITION (EXPRESSION_FAILED) when there is none, or none within the bounds."""
        try:
            return self._program.run(scope, levels)
        except EvaluationError as error:
            raise self._failed(str(error)) from None

    def holds(self, scope: Scope) -> bool:
        """Returns the value of a condition; anything but a bool is an error as in `evaluate`."""
        value = self.evaluate(scope)
        if not isinstance(value, bool):
            raise self._failed("a condition must give a bool")
        return value

    def _failed(self, problem: str) -> MeshError:
        return failed_precondition(
            f"{self.field}: the expression fails: {problem}",
            reason="EXPRESSION_FAILED",
            subject=self.field,
            path=self.field,
        )
