"""Numbers: their median, how far they spread, and who is far off."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bxmesh.server.conversations.consensus.answers import Answer
from bxmesh.server.conversations.consensus.decision import Decision, mean_sureness
from bxmesh.server.conversations.consensus.normalisation import LONGEST_TEXT, words_of
from bxmesh.server.conversations.consensus.numbers import canonical_number, is_unit
from bxmesh.server.conversations.consensus.voices import (
    AbstentionError,
    Table,
    Voice,
    as_text,
    clean_text,
    usable_value,
)

__all__ = ["in_one_unit", "median", "plain_number", "read_number"]

_CLOSE = 0.05
# Below, quartiles say nothing about who is far off.
_FEWEST_FOR_OUTLIERS = 4
_FENCES = 1.5

# Words between a marker and its number.
_FARTHEST = 6
_MARKERS = frozenset(("answer", "result", "estimate", "value", "total", "=", "≈"))
_BETWEEN = frozenset(
    (
        "is",
        "was",
        "are",
        "be",
        "=",
        "≈",
        "~",
        "about",
        "approximately",
        "roughly",
        "around",
        "of",
        "final",
    )
)
_UNCERTAIN = frozenset(("±", "+/-"))
_ALTERNATIVE = frozenset(("to", "or", "and", "-", "through", "versus", "vs"))
_APART = str.maketrans({symbol: f" {symbol} " for symbol in "=≈~±"})
_MONEY = "$€£¥"


def read_number(answer: Answer, position: int) -> Voice:
    """Returns the number that is answered, as data or in words, and its unit.

    In words it is the one that follows "answer", "result", "=" and the like last, or else the only one.
    An uncertainty after ± is no further number. More than one that might be meant are none.
    """
    value = usable_value(answer)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _voice(answer, position, as_text(value))
    number, unit = _find(value if isinstance(value, str) else clean_text(answer))
    return _voice(answer, position, number, unit)


def in_one_unit(table: Table) -> tuple[Table, str, list[Voice]]:
    """Returns the numbers that can be compared, their unit, and the voices of now that are left out.

    The unit is that of most, and of the first participant among as many. A number without a unit is
    taken to be in it.
    """
    counts = Counter(voice.unit for voice in table.voices if voice.unit)
    unit = counts.most_common(1)[0][0] if counts else ""
    fitting = replace(
        table,
        now=_fitting(table.now, unit),
        earlier=[_fitting(turn, unit) for turn in table.earlier],
    )
    return fitting, unit, [voice for voice in table.voices if voice.position not in fitting.now]


def median(table: Table, unit: str = "") -> Decision:
    """Returns the median of the numbers, without groups.

    Behind it are those within 5 % of the median of their magnitudes; so numbers that all differ widely
    have nobody behind their median. Far off is who is that, and beyond the quartiles by more than one and a
    half times their distance, among four or more.
    """
    voices = table.voices
    numbers = sorted(voice.number for voice in voices)
    middle = _middle(numbers)
    tolerance = _CLOSE * _middle(sorted(map(abs, numbers)))
    close = [voice for voice in voices if abs(voice.number - middle) <= tolerance]
    lower, upper = _quantile(numbers, 0.25), _quantile(numbers, 0.75)
    reach = _FENCES * (upper - lower)
    off = [
        voice.position
        for voice in voices
        if len(voices) >= _FEWEST_FOR_OUTLIERS
        and abs(voice.number - middle) > tolerance
        and not lower - reach <= voice.number <= upper + reach
    ]
    return Decision(
        answer=plain_number(middle),
        text=_in_words(middle, unit),
        share=len(close) / len(voices),
        sureness=mean_sureness((voice, 1) for voice in close) if close else 0.0,
        supporters=frozenset(voice.position for voice in close),
        agreement=[_agreement(turn, middle, tolerance) for turn in table.earlier],
        spread=upper / 2 - lower / 2,
        outliers=frozenset(off),
    )


def plain_number(number: float) -> int | float:
    """Returns a number as JSON has it: whole ones are integers."""
    return int(number) if number.is_integer() and abs(number) <= 2**53 else number


def _voice(answer: Answer, position: int, number: str, unit: str = "") -> Voice:
    read = float(number)
    if not math.isfinite(read):
        raise AbstentionError("its number is too large")
    key, value = f"number {read + 0.0}", plain_number(read)
    return Voice(answer, position, key, value, clean_text(answer), number=read, unit=unit)


def _find(text: str) -> tuple[str, str]:
    whole = len(text) <= LONGEST_TEXT
    if not whole:
        text = text[-LONGEST_TEXT // 2 :]
    words = words_of(text.translate(_APART)) or ()
    found = [
        (index, word)
        for index, word in enumerate(words)
        if canonical_number(word) is not None and not (index and words[index - 1] in _UNCERTAIN)
    ]
    marked = [(index, word) for index, word in found if _is_marked(words, index)]
    candidates = marked[-1:] or (found if whole else [])
    numbers = {(word, _unit_after(words, index)) for index, word in candidates}
    if len(numbers) != 1 or any(_has_alternative(words, index) for index, _ in candidates):
        raise AbstentionError(
            "its answer is not one number" if found else "its answer is no number"
        )
    return numbers.pop()


def _is_marked(words: Sequence[str], index: int) -> bool:
    for word in reversed(words[max(0, index - _FARTHEST) : index]):
        if word.rstrip(":") in _MARKERS:
            return True
        if word not in _BETWEEN:
            return False
    return False


def _unit_after(words: Sequence[str], index: int) -> str:
    following = words[index + 1] if index + 1 < len(words) else ""
    return following if is_unit(following) or (following and following in _MONEY) else ""


def _has_alternative(words: Sequence[str], index: int) -> bool:
    rest = words[index + (2 if _unit_after(words, index) else 1) :]
    return len(rest) > 1 and rest[0] in _ALTERNATIVE and canonical_number(rest[1]) is not None


def _fitting(voices: Mapping[int, Voice], unit: str) -> dict[int, Voice]:
    return {at: voice for at, voice in voices.items() if voice.unit in ("", unit)}


def _middle(numbers: Sequence[float]) -> float:
    low, high = statistics.median_low(numbers), statistics.median_high(numbers)
    # Halved first, for the sum may be too large; what halving loses is put back.
    return min(high, max(low, low / 2 + high / 2))


def _quantile(numbers: Sequence[float], part: float) -> float:
    """Interpolates linearly, as NumPy does, without differences, which may be too large."""
    place = part * (len(numbers) - 1)
    index = math.floor(place)
    low, high = numbers[index], numbers[min(index + 1, len(numbers) - 1)]
    return min(high, max(low, low * (1 - (place - index)) + high * (place - index)))


def _agreement(turn: Mapping[int, Voice], middle: float, tolerance: float) -> float | None:
    if not turn:
        return None
    close = sum(abs(voice.number - middle) <= tolerance for voice in turn.values())
    return close / len(turn)


def _in_words(number: float, unit: str) -> str:
    written = as_text(plain_number(number))
    if unit and unit in _MONEY:
        return f"{unit}{written}"
    return f"{written} {unit}".rstrip()
