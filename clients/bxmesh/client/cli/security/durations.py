"""Durations on the command line."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

__all__ = ["DURATION"]

_FORM = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    # Older clicks know no argument of it.
    _Type = click.ParamType


class _Duration(_Type):
    """A number and a unit: 30s, 15m, 12h, 90d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns a timedelta."""
        if isinstance(value, timedelta):
            return value
        match = _FORM.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is no duration such as 30s, 15m, 12h or 90d", param, ctx)
        try:
            return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
        except OverflowError:
            self.fail(f"{value} is too long", param, ctx)


DURATION = _Duration()
