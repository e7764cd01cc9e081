"""What commands around functions share: limits, and text that others wrote."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from bxmesh.client.functions import FunctionLimits

__all__ = ["harmless", "limiting", "size"]

_SIZE = re.compile(r"(\d+)([KMG]?)(?:iB)?")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NAMES = ("timeout", "memory", "recursion", "output")

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    # Older clicks know no argument of it.
    _Type = click.ParamType


class _Size(_Type):
    """Bytes, or a number with K, M or G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the bytes."""
        if match := _SIZE.fullmatch(value):
            return int(match[1]) * _UNITS[match[2]]
        self.fail(f"{value!r} is no size such as 1000, 64M or 1GiB", param, ctx)


def limiting(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that bound an execution; the command gets them as `limits`."""

    @click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds.")
    @click.option("--memory", type=_Size(), help="Bytes for its values, such as 64M.")
    @click.option("--recursion", type=click.IntRange(min=1), help="Calls within calls.")
    @click.option("--output", type=_Size(), help="Bytes that it prints and returns together.")
    @wraps(command)
    def call(*arguments: Any, **options: Any) -> None:
        given = {name: options.pop(name) for name in _NAMES}
        limits = FunctionLimits(**given) if any(given.values()) else None
        command(*arguments, limits=limits, **options)

    return call


def size(count: int) -> str:
    """Returns a number of bytes for people."""
    for unit in ("G", "M", "K"):
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:.3g} {unit}iB"
    return f"{count} B"


def harmless(text: str) -> str:
    """Shows control characters, with which others' words could steer a terminal, as escapes."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode()
        for each in text
    )
