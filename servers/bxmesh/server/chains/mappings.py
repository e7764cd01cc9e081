"""Objects put together from expressions: `a.b` from one, `a.c` from another."""

from __future__ import annotations

from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bxmesh.server.chains.expressions import Expression, Scope
from bxmesh.server.errors import invalid_argument

__all__ = ["Mapping"]

_DEEPEST = 16


@dataclass(frozen=True)
class Mapping:
    """The fields of an object, as paths, and what each is."""

    entries: tuple[tuple[tuple[str, ...], Expression], ...]

    @classmethod
    def of(cls, fields: MappingOf[str, str], field: str) -> Mapping:
        """Raises MeshError INVALID_ARGUMENT: MAPPING_INVALID for what is no path, MAPPING_CONFLICT
        for paths of which one leads through another, EXPRESSION_INVALID."""
        paths = sorted((tuple(name.split(".")), name) for name in fields)
        for parts, name in paths:
            if not all(parts) or len(parts) > _DEEPEST:
                raise invalid_argument(
                    f'{field}["{name}"]',
                    f"must be at most {_DEEPEST} names with dots between them",
                    reason="MAPPING_INVALID",
                )
        # Sorted, whatever leads through a path comes right after it.
        for (parts, name), (next_parts, next_name) in pairwise(paths):
            if next_parts[: len(parts)] == parts:
                raise invalid_argument(
                    f'{field}["{next_name}"]',
                    f'leads through "{name}", which is mapped too',
                    reason="MAPPING_CONFLICT",
                )
        return cls(
            tuple(
                (parts, Expression.compile(fields[name], f'{field}["{name}"]'))
                for parts, name in paths
            )
        )

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """The expressions of all fields."""
        return tuple(expression for _, expression in self.entries)

    def evaluate(self, scope: Scope) -> dict[str, Any]:
        """Returns the object; raises as Expression does."""
        result: dict[str, Any] = {}
        for parts, expression in self.entries:
            place = result
            for part in parts[:-1]:
                place = place.setdefault(part, {})
            place[parts[-1]] = expression.evaluate(scope, len(parts))
        return result
