"""Numbers in texts: how they are written, and their units."""

from __future__ import annotations

import re
from decimal import Context, InvalidOperation
from typing import NamedTuple

__all__ = ["Quantity", "canonical_number", "is_unit", "read_quantity"]

_LONGEST = 64
# No rounding: what differs stays different.
_CONTEXT = Context(prec=_LONGEST + 8, Emax=99_999, Emin=-99_999)

_GROUPS = r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?"
_TOKEN = re.compile(
    r"(?P<money>[$€£¥]?)(?P<sign>[+-]?)(?P<money_after>[$€£¥]?)"
    rf"(?P<digits>{_GROUPS}|\d+,\d+|\d+(?:\.\d*)?|\.\d+)"
    r"(?P<exponent>[eE][+-]?\d{1,4})?"
    # Crystallographers write the uncertainty of the last digits in parentheses.
    r"(?:\(\d{1,6}\))?"
    r"(?:-(?=\D))?(?P<unit>\D.*|)",
    re.ASCII | re.DOTALL,
)
_GROUPED = re.compile(_GROUPS, re.ASCII)

_PREFIXES = ("", "f", "p", "n", "u", "μ", "m", "c", "d", "k", "M", "G", "T")
_BASES = (
    *("m", "g", "s", "A", "K", "mol", "Pa", "J", "eV", "Hz", "V", "W", "N", "L", "l", "M"),
    *("Da", "cal", "bar", "B", "b", "rad", "C", "T", "F", "Ω"),
)
_SYMBOLS = ("%", "‰", "Å", "°", "°C", "°F", "h", "min", "d", "px", "bp", "σ", "ppm", "ppb")
_UNITS = frozenset(prefix + base for prefix in _PREFIXES for base in _BASES) | frozenset(_SYMBOLS)
_WORDS = re.compile(
    r"(?:nano|micro|milli|centi|kilo|mega|giga)?"
    r"(?:met(?:er|re)|gram|second|minute|hour|day|week|month|year|lit(?:er|re)|mole|dalton|joule|watt|"
    r"volt|ampere|pascal|calorie|byte|hertz)s?|"
    r"percent|degrees?|angstr[oö]ms?|ångströms?|kelvins?|celsius|fahrenheit|dollars?|euros?"
)
_POWER = re.compile(r"\^?[+-]?[1-6]$", re.ASCII)
_LONGEST_UNIT = 32


class Quantity(NamedTuple):
    """A number as one token of a text has it."""

    number: str
    """In its one canonical form."""
    unit: str
    """What is written to it, as it is written; empty for nothing."""


def read_quantity(token: str) -> Quantity | None:
    """Returns the number of a token, with its unit; None where the token is something else.

    `1.50`, `.5`, `1,234.5`, `1e3`, `-5kDa`, `$5`, `50%` and `1.523(4)` are numbers; a comma that cannot
    group thousands is a decimal one. `5CHX`, `2-fold`, `5/6` and `1-2` are something else.
    """
    if len(token) > _LONGEST:
        return None
    found = _TOKEN.fullmatch(token)
    if found is None:
        return None
    money = found["money"] + found["money_after"]
    unit = found["unit"]
    if unit and (money or not is_unit(unit)):
        return None
    digits = found["digits"]
    digits = digits.replace(",", "" if _GROUPED.fullmatch(digits) else ".")
    number = canonical_number(f"{found['sign']}{digits}{found['exponent'] or ''}")
    return None if number is None else Quantity(number, money or unit)


def canonical_number(text: str) -> str | None:
    """Returns the one form of a decimal number; None where it is none or not finite."""
    try:
        number = _CONTEXT.create_decimal(text)
        if not number.is_finite():
            return None
        return str(number.normalize(_CONTEXT)) if number else "0"
    except InvalidOperation:
        return None


def is_unit(token: str) -> bool:
    """Whether a token is a unit: a symbol or a word for one, or products and powers of such."""
    if not 0 < len(token) <= _LONGEST_UNIT:
        return False
    return all(_is_simple_unit(_POWER.sub("", part)) for part in re.split(r"[/·*]", token))


def _is_simple_unit(token: str) -> bool:
    return token in _UNITS or _WORDS.fullmatch(token.casefold()) is not None
