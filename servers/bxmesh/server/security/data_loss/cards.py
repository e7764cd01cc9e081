"""Payment card numbers: 13 to 19 digits of a known issuer, with the check digit of Luhn.

All windows of digits are checked at once, as arrays: a megabyte of digits costs no more than a
megabyte of anything else.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import re2

from .finding import Span, is_fraction

__all__ = ["find_cards"]

_LENGTHS = range(13, 20)
_WORTH_A_LOOK = re2.compile(rb"[0-9](?:[ .-]?[0-9]){12}")
# First digits, from and to, and how long the numbers are.
_ISSUERS = (
    ("2200", "2204", (16, 17, 18, 19)),  # Mir
    ("2221", "2720", (16,)),  # Mastercard
    ("300", "305", (14, 16, 17, 18, 19)),  # Diners Club
    ("3095", "3095", (14, 16, 17, 18, 19)),
    ("34", "34", (15,)),  # American Express
    ("3528", "3589", (16, 17, 18, 19)),  # JCB
    ("36", "36", (14, 15, 16, 17, 18, 19)),
    ("37", "37", (15,)),
    ("38", "39", (14, 16, 17, 18, 19)),
    ("4", "4", (13, 16, 19)),  # Visa
    ("5018", "5018", (13, 14, 15, 16, 17, 18, 19)),  # Maestro
    ("5019", "5019", (16,)),  # Dankort
    ("5020", "5020", (13, 14, 15, 16, 17, 18, 19)),
    ("5038", "5038", (13, 14, 15, 16, 17, 18, 19)),
    ("508", "508", (16,)),  # RuPay
    ("51", "55", (16,)),
    ("5893", "5893", (13, 14, 15, 16, 17, 18, 19)),
    ("6011", "6011", (16, 17, 18, 19)),  # Discover
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("6304", "6304", (13, 14, 15, 16, 17, 18, 19)),
    ("637", "639", (16,)),  # InstaPayment
    ("644", "649", (16, 17, 18, 19)),
    ("65", "65", (16, 17, 18, 19)),
    ("6759", "6763", (13, 14, 15, 16, 17, 18, 19)),
    ("81", "82", (16, 17, 18, 19)),
    ("9792", "9792", (16,)),  # Troy
)
# How the digits are grouped on cards, beyond groups of one size with a shorter last one.
_LAYOUTS = frozenset({(4, 6, 5), (4, 6, 4)})
_DOUBLED = np.array([0, 2, 4, 6, 8, 1, 3, 5, 7, 9], np.int32)
_SEPARATORS = tuple(map(ord, " .-"))
_DOT = ord(".")


def _by_prefix() -> npt.NDArray[np.int32]:
    """For the first four digits, a bit for every length that such numbers may have."""
    table = np.zeros(10_000, np.int32)
    for first, last, lengths in _ISSUERS:
        bits = sum(1 << length for length in lengths)
        table[int(first.ljust(4, "0")) : int(last.ljust(4, "9")) + 1] |= bits
    return table


_LENGTHS_BY_PREFIX = _by_prefix()
_IN_WORD = np.array(
    [chr(code).isalnum() or code == ord("_") for code in range(128)] + [False] * 128
)


def find_cards(text: bytes) -> Iterator[Span | None]:
    """Yields where card numbers are, in order; None for what only looked like one."""
    if _WORTH_A_LOOK.search(text) is None:
        return
    data = np.frombuffer(text, np.uint8)
    places = np.flatnonzero((data >= ord("0")) & (data <= ord("9"))).astype(np.int32)
    digits = (data[places] - ord("0")).astype(np.int32)
    windows = _windows(data, places, digits)
    end = 0
    for first, last in windows:
        start = int(places[first])
        if start < end:
            continue
        if not _is_grouped_well(text, [int(place) for place in places[first : last + 1]]):
            yield None
            continue
        end = int(places[last]) + 1
        yield start, end


def _windows(
    data: npt.NDArray[np.uint8], places: npt.NDArray[np.int32], digits: npt.NDArray[np.int32]
) -> list[tuple[int, int]]:
    """The first and last digit of each number that fits an issuer and its check digit; of those
    that begin at one digit the longest first."""
    count = len(places)
    gaps = np.diff(places)
    between = data[places[:-1] + 1]
    adjacent = gaps == 1
    linked = adjacent | ((gaps == 2) & np.isin(between, _SEPARATORS))
    around = np.concatenate(([0], data, [0]))
    starts = np.flatnonzero(np.concatenate(([True], ~adjacent)) & ~_IN_WORD[around[places]])
    ends = np.concatenate((~adjacent, [True])) & ~_IN_WORD[around[places + 2]]
    breaks = np.concatenate(([0], np.cumsum(~linked)))
    doubled = _DOUBLED[digits]
    even = np.arange(count) % 2 == 0
    # Sums of the digits before each, where those at even, or odd, places count once.
    sums = [
        np.concatenate(([0], np.cumsum(np.where(once, digits, doubled)))) for once in (even, ~even)
    ]
    found: list[tuple[int, int]] = []
    for length in reversed(_LENGTHS):
        first = starts[starts + length <= count]
        last = first + length - 1
        keep = ends[last] & (breaks[first] == breaks[last])
        first, last = first[keep], last[keep]
        if not len(first):
            continue
        prefix = digits[first] * 1000 + digits[first + 1] * 100
        prefix += digits[first + 2] * 10 + digits[first + 3]
        keep = (_LENGTHS_BY_PREFIX[prefix] >> length) & 1 == 1
        first, last = first[keep], last[keep]
        total = np.where(
            last % 2 == 0, sums[0][last + 1] - sums[0][first], sums[1][last + 1] - sums[1][first]
        )
        keep = total % 10 == 0
        found += zip(first[keep].tolist(), last[keep].tolist(), strict=True)
    found.sort(key=lambda window: (window[0], -window[1]))
    return found


def _is_grouped_well(text: bytes, places: list[int]) -> bool:
    start, end = places[0], places[-1] + 1
    separators = {text[place + 1] for place in places[:-1]} & set(_SEPARATORS)
    if not separators:
        # The digits of a decimal fraction, or before it, are no card.
        return not (is_fraction(text, start) or _is_before_fraction(text, end))
    if len(separators) > 1:
        return False
    (separator,) = separators
    sizes = tuple(len(group) for group in text[start:end].split(bytes([separator])))
    if separator == _DOT:
        return set(sizes[:-1]) == {4} and sizes[-1] <= 4
    return sizes in _LAYOUTS or (len(set(sizes[:-1])) == 1 and sizes[-1] <= sizes[0])


def _is_before_fraction(text: bytes, end: int) -> bool:
    if text[end : end + 1] != b".":
        return False
    # Some write whole numbers with a zero behind the point.
    return text[end + 1 : end + 9].lstrip(b"0")[:1].isdigit()
