"""Answers made ready: what each says in the form that a method compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bxmesh.server.conversations.consensus.answers import Answer
from bxmesh.server.conversations.consensus.normalisation import (
    data_key,
    plain_value,
    text_key,
    words_of,
)
from bxmesh.server.json_values import Json, NotJsonError

__all__ = [
    "AbstentionError",
    "Reader",
    "Table",
    "Voice",
    "as_text",
    "clean_text",
    "read_any",
    "seat",
    "usable_value",
]


_DATA = "json "


class AbstentionError(Exception):
    """An answer that says nothing which the method can use, and why."""


class Voice(NamedTuple):
    """What one participant says."""

    answer: Answer
    position: int
    """Where the participant stands among the conversation's."""
    key: str
    """Equal exactly for what is the same."""
    value: Json
    """The answer as data, or its text."""
    text: str = ""
    """The answer in words; empty where it is data alone."""
    words: tuple[str, ...] | None = None
    """The text in its normal form, where meaning may be looked at."""
    number: float = math.nan
    """For numeric methods."""
    unit: str = ""
    """The number's unit, as written."""

    @property
    def written(self) -> str:
        """The value as text."""
        if not isinstance(self.value, str) and self.key.startswith(_DATA):
            # A large value is written once.
            return self.key[len(_DATA) :]
        return as_text(self.value)


@dataclass(frozen=True)
class Table:
    """Who says what, by position: now, and in each earlier turn."""

    now: Mapping[int, Voice]
    earlier: Sequence[Mapping[int, Voice]] = ()
    skipped: int = 0
    """How many turns were before those."""

    @property
    def voices(self) -> list[Voice]:
        """Those of now, in the order of the participants."""
        return list(self.now.values())


Reader = Callable[[Answer, int], Voice]


def seat(
    answers: Sequence[Answer], participants: Sequence[str], read: Reader
) -> tuple[dict[int, Voice], dict[str, str]]:
    """Returns what was said by position in order, and who said nothing usable and why.

    Raises ValueError for two answers of one participant, and for one of somebody else.
    """
    positions = {name: index for index, name in enumerate(participants)}
    voices: dict[int, Voice] = {}
    silent = dict.fromkeys(participants, "did not answer")
    seen: set[str] = set()
    for answer in answers:
        name = answer.participant_id
        if name not in positions or name in seen:
            raise ValueError(f"{name!r} is no participant, or answers twice")
        seen.add(name)
        try:
            voices[positions[name]] = read(answer, positions[name])
            del silent[name]
        except AbstentionError as error:
            silent[name] = str(error)
    return dict(sorted(voices.items())), silent


def read_any(answer: Answer, position: int) -> Voice:
    """Returns what an answer says; texts, numbers and booleans are compared as they are written."""
    value, text = usable_value(answer), clean_text(answer)
    if value is None:
        value = text
    if value == "":
        raise AbstentionError("its answer is empty")
    if isinstance(value, dict | list):
        return Voice(answer, position, data_key(value), value, text)
    written = as_text(value)
    words = words_of(written)
    key = text_key(written, words)
    return Voice(answer, position, key, value, text, words if isinstance(value, str) else None)


def usable_value(answer: Answer) -> Json:
    """Returns the data of an answer in its normal form; None for none, and for what is no JSON."""
    try:
        value = plain_value(answer.value)
    except NotJsonError:
        return None
    return (value.strip() or None) if isinstance(value, str) else value


def clean_text(answer: Answer) -> str:
    """Returns the text of an answer, without lone surrogates: nothing could take these."""
    return answer.text.strip().encode("utf-8", "replace").decode()


def as_text(value: Json) -> str:
    """Returns a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else data_key(value).removeprefix(_DATA)
