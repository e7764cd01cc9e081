"""International bank account numbers (ISO 13616)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import re2

from .finding import Span

__all__ = ["find_ibans"]

_CANDIDATE: Any = re2.compile(rb"\b[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}")
# How long the numbers of each country are.
_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}


def find_ibans(text: bytes) -> Iterator[Span | None]:
    """Yields where account numbers are whose length and check digits are right."""
    position = 0
    while (match := _CANDIDATE.search(text, position)) is not None:
        start, end = match.span()
        account = text[start:end]
        length = _LENGTHS.get(account[:2].decode())
        whole = length and re.match(
            rb"(?:[ -]?[A-Z0-9]){%d}(?![A-Za-z0-9])" % length, text[start : start + 2 * length + 1]
        )
        if whole and _is_right(whole[0]):
            position = start + whole.end()
            yield start, position
        else:
            # The next may begin within.
            position = start + 4
            yield None


def _is_right(account: bytes) -> bool:
    digits = account.translate(None, b" -").decode()
    return int("".join(str(int(digit, 36)) for digit in digits[4:] + digits[:4])) % 97 == 1
