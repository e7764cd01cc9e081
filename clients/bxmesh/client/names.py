"""The contract's enumerations as the plain lower-case names that callers write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import grpc

from bxmesh.client.errors import InvalidInput

__all__ = ["EnumNames", "invalid"]

V = TypeVar("V", bound=int)
V_co = TypeVar("V_co", bound=int, covariant=True)


class _Enumeration(Protocol[V_co]):
    def items(self) -> Sequence[tuple[str, V_co]]: ...


class EnumNames(Generic[V]):
    """The names of an enumeration: TARGET_GEOMETRY is `geometry`."""

    def __init__(self, enumeration: _Enumeration[V], prefix: str) -> None:
        self._field = prefix.removesuffix("_").lower()
        self._numbers = {
            name.removeprefix(prefix).lower(): number for name, number in enumeration.items()
        }
        self._names: dict[int, str] = {number: name for name, number in self._numbers.items()}

    @property
    def choices(self) -> list[str]:
        """The names that a caller can write."""
        return [name for name in self._numbers if name != "unspecified"]

    def number(self, name: str | None) -> V:
        """Returns the number of a name; None is unspecified. InvalidInput for any other name."""
        if name is None:
            return self._numbers["unspecified"]
        if name not in self._numbers:
            choices = ", ".join(self.choices)
            raise invalid(self._field, f"{self._field} can be {choices}, not {name!r}")
        return self._numbers[name]

    def name(self, number: int) -> str:
        """Returns the name of a number, the number itself where a newer server sent it."""
        return self._names.get(number, str(number))


def invalid(field: str, message: str, reason: str = "INVALID_ARGUMENT") -> InvalidInput:
    """Returns the error for an argument that is wrong before anything is sent."""
    return InvalidInput(
        message,
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason=reason,
        field_violations=((field, message),),
    )
