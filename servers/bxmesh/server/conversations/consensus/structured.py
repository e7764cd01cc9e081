"""Objects, field by field.

Numbers by their median; booleans, texts and what is one of an enumeration by majority; objects by their
fields; arrays whose length the schema fixes by their items; other arrays as wholes, since nothing says
which of their items belong together. A field that need not be there is there when half have it.
What comes out fits the schema, whatever that says of fields together: where it would not, the
middle numbers that were given stand in for medians, and after that the answer that agrees with most fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeGuard

from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.server.conversations.consensus.answers import Answer
from bxmesh.server.conversations.consensus.decision import Decision
from bxmesh.server.conversations.consensus.grouping import by_key
from bxmesh.server.conversations.consensus.normalisation import (
    data_key,
    plain_value,
    text_key,
    words_of,
)
from bxmesh.server.conversations.consensus.numeric import median, plain_number
from bxmesh.server.conversations.consensus.polls import Poll
from bxmesh.server.conversations.consensus.ties import TieBreaker
from bxmesh.server.conversations.consensus.voices import (
    AbstentionError,
    Reader,
    Table,
    Voice,
    as_text,
    clean_text,
    usable_value,
)
from bxmesh.server.errors import invalid_argument
from bxmesh.server.json_schemas import SchemaError, find_misfit
from bxmesh.server.json_values import Json, NotJsonError, json_fields

__all__ = ["reader_for", "structured"]

_DEEPEST = 8
# What anybody says of any part, in any turn; what would need more is taken as a whole.
_MOST_SAID = 20_000
_MOST_REFERENCES = 8
_LONGEST_TEXT = 1 << 20


def reader_for(schema: Schema) -> Reader:
    """Returns what reads answers that fit a JSON Schema, as data or as a text of JSON.

    It raises MeshError, INVALID_ARGUMENT, when the schema cannot be used.
    """

    def read(answer: Answer, position: int) -> Voice:
        value = usable_value(answer)
        problem = _misfit(value, schema)
        if value is None or (problem and isinstance(value, str)):
            value = _parsed(value or clean_text(answer))
            problem = _misfit(value, schema)
        if problem:
            raise AbstentionError(f"its answer does not fit the schema: {problem}")
        return Voice(answer, position, data_key(value), value, clean_text(answer))

    return read


async def structured(table: Table, schema: Schema, breaker: TieBreaker) -> Decision:
    """Returns the answer field by field. The share is the mean of the fields' shares."""
    whole = Poll(table, by_key(table.voices))
    combiner = _Combiner(json_fields(schema.json_schema), breaker)
    part = await combiner.combine(table, combiner.root, "", 0)
    for value in (part.best, part.given):
        if part.leaves and not _misfit(value, schema):
            return _joined(table, value, part.leaves, whole, breaker)
    agreed = _agreements(table, part.leaves)
    most = max(agreed.values())
    nearest = min(
        (
            whole.by_group[whole.groups[voice.key]]
            for voice in table.voices
            if agreed[voice.position] == most
        ),
        key=lambda candidate: (-round(candidate.confidence, 9), breaker.age(candidate)),
    )
    return whole.decision(nearest, breaker)


@dataclass(frozen=True)
class _Part:
    """A part of the answer, put together."""

    best: Json
    given: Json
    """The same of numbers that were given."""
    leaves: list[Decision]


class _Combiner:
    def __init__(self, schema: Mapping[str, Any], breaker: TieBreaker) -> None:
        self.root = schema
        self._breaker = breaker
        self._left = _MOST_SAID

    async def combine(self, table: Table, schema: Any, path: str, depth: int) -> _Part:
        schema = self._resolved(schema)
        values = [voice.value for voice in table.voices]
        if depth == _DEEPEST or "enum" in schema or "const" in schema:
            return await self._vote(table, path, data_key)
        if all(isinstance(value, dict) for value in values):
            names = sorted({name for voice in table.voices for name in _names(voice)})
            if self._affords(len(names), table):
                return await self._object(table, names, schema, path, depth)
        length = _fixed_length(schema)
        arrays = length and all(isinstance(value, list) for value in values)
        if arrays and self._affords(length, table):
            return await self._items(table, length, schema, path, depth)
        if all(map(_is_number, values)):
            return self._median(table, schema)
        if all(isinstance(value, str) for value in values):
            return await self._vote(table, path, _written)
        return await self._vote(table, path, data_key)

    def _affords(self, parts: int, table: Table) -> bool:
        said = parts * (len(table.now) + sum(map(len, table.earlier)))
        if said > self._left:
            return False
        self._left -= said
        return True

    async def _object(
        self, table: Table, names: list[str], schema: Mapping[str, Any], path: str, depth: int
    ) -> _Part:
        best, given, leaves = {}, {}, []
        required = schema.get("required", ())
        for name in names:
            with_it = _column(table, partial(_field, name))
            if 2 * len(with_it.now) < len(table.now) and name not in required:
                leaves.append(_absent(table, with_it))
                continue
            place = f"{path}.{name}" if path else name
            inner = await self.combine(with_it, _field_schema(schema, name), place, depth + 1)
            best[name], given[name] = inner.best, inner.given
            leaves += _of_all(inner.leaves, with_it, table)
        return _Part(best, given, leaves)

    async def _items(
        self, table: Table, length: int, schema: Mapping[str, Any], path: str, depth: int
    ) -> _Part:
        best, given, leaves = [], [], []
        for index in range(length):
            column = _column(table, partial(_item, index))
            prefix = schema.get("prefixItems", [])
            item = prefix[index] if index < len(prefix) else schema.get("items", {})
            inner = await self.combine(column, item, f"{path}[{index}]", depth + 1)
            best.append(inner.best)
            given.append(inner.given)
            leaves += inner.leaves
        return _Part(best, given, leaves)

    async def _vote(self, table: Table, path: str, key: Callable[[Json], str]) -> _Part:
        keyed = _keyed(table, key)
        poll = Poll(keyed, by_key(keyed.voices))
        winner = await poll.winner(self._breaker, path)
        decision = poll.decision(winner, self._breaker)
        return _Part(decision.answer, decision.answer, [decision])

    def _median(self, table: Table, schema: Mapping[str, Any]) -> _Part:
        table = _keyed(table, repr)
        decision = median(table)
        numbers = sorted(voice.number for voice in table.voices)
        given = plain_number(numbers[(len(numbers) - 1) // 2])
        whole = schema.get("type") == "integer"
        return _Part(given if whole else decision.answer, given, [decision])

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        for _ in range(_MOST_REFERENCES):
            if not isinstance(schema, dict):
                return {}
            if "$ref" not in schema:
                return schema
            schema = _pointed_at(self.root, str(schema["$ref"]))
        return {}


_MISSING = object()


def _column(table: Table, pick: Callable[[Voice], Any]) -> Table:
    """Returns a part of what each says, of those that have it."""

    def part(turn: Mapping[int, Voice]) -> dict[int, Voice]:
        picked = {position: pick(voice) for position, voice in turn.items()}
        return {
            position: turn[position]._replace(value=value)
            for position, value in picked.items()
            if value is not _MISSING
        }

    return replace(table, now=part(table.now), earlier=[part(turn) for turn in table.earlier])


def _keyed(table: Table, key: Callable[[Json], str]) -> Table:
    def keyed(turn: Mapping[int, Voice]) -> dict[int, Voice]:
        return {
            # The text is about the whole.
            position: voice._replace(
                key=key(voice.value),
                text="",
                number=float(voice.value) if _is_number(voice.value) else math.nan,
            )
            for position, voice in turn.items()
        }

    return replace(table, now=keyed(table.now), earlier=[keyed(turn) for turn in table.earlier])


def _absent(table: Table, with_it: Table) -> Decision:
    """The decision that a field is not there."""
    lacking = [voice for at, voice in table.now.items() if at not in with_it.now]
    return Decision(
        answer=None,
        text="",
        share=len(lacking) / len(table.now),
        sureness=math.fsum(voice.answer.sureness for voice in lacking) / len(lacking),
        supporters=frozenset(voice.position for voice in lacking),
        agreement=[
            1 - len(part) / len(turn) if turn else None
            for part, turn in zip(with_it.earlier, table.earlier, strict=True)
        ],
    )


def _of_all(leaves: list[Decision], part: Table, table: Table) -> list[Decision]:
    """Returns decisions of those who have a part with the shares that they have of all."""

    def scaled(share: float | None, some: Mapping[int, Voice], every: Mapping[int, Voice]) -> Any:
        return (share or 0.0) * len(some) / len(every) if every else None

    return [
        replace(
            leaf,
            share=scaled(leaf.share, part.now, table.now),
            agreement=[
                scaled(*turn)
                for turn in zip(leaf.agreement, part.earlier, table.earlier, strict=True)
            ],
        )
        for leaf in leaves
    ]


def _joined(
    table: Table, value: Json, leaves: list[Decision], whole: Poll, breaker: TieBreaker
) -> Decision:
    shares = math.fsum(leaf.share for leaf in leaves)
    sure = math.fsum(leaf.share * leaf.sureness for leaf in leaves) / shares if shares else 0.0
    agreed = _agreements(table, leaves)
    return Decision(
        answer=value,
        text=as_text(value),
        share=min(1.0, shares / len(leaves)),
        sureness=min(1.0, sure),
        # Who agrees with half of it, at least.
        supporters=frozenset(at for at, count in agreed.items() if 2 * count >= len(leaves)),
        agreement=[_mean(turn) for turn in zip(*(leaf.agreement for leaf in leaves), strict=True)],
        groups=whole.candidates(breaker),
    )


def _agreements(table: Table, leaves: list[Decision]) -> dict[int, int]:
    """Returns with how many parts each agrees."""
    return {at: sum(at in leaf.supporters for leaf in leaves) for at in table.now}


def _mean(shares: tuple[float | None, ...]) -> float | None:
    known = [share for share in shares if share is not None]
    return math.fsum(known) / len(known) if known else None


def _written(value: Json) -> str:
    text = as_text(value)
    return text_key(text, words_of(text))


def _names(voice: Voice) -> Iterable[str]:
    return voice.value if isinstance(voice.value, dict) else ()


def _field(name: str, voice: Voice) -> Any:
    return voice.value.get(name, _MISSING) if isinstance(voice.value, dict) else _MISSING


def _item(index: int, voice: Voice) -> Any:
    if isinstance(voice.value, list) and index < len(voice.value):
        return voice.value[index]
    return _MISSING


def _is_number(value: Json) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fixed_length(schema: Mapping[str, Any]) -> int:
    """Returns the one length that a schema lets arrays have; 0 where there are others."""
    least, most = schema.get("minItems"), schema.get("maxItems")
    return int(least) if least is not None and least == most else 0


def _field_schema(schema: Mapping[str, Any], name: str) -> Any:
    properties = schema.get("properties", {})
    return properties[name] if name in properties else schema.get("additionalProperties", {})


def _pointed_at(root: Any, reference: str) -> Any:
    if not reference.startswith("#"):
        return {}
    found = root
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name, {}) if isinstance(found, dict) else {}
    return found


def _misfit(value: Json, schema: Schema) -> str:
    try:
        misfit = find_misfit(value, schema, len(as_text(value)))
    except SchemaError as error:
        raise invalid_argument(
            "consensus.answer_schema", f"cannot be used: {error}", reason="INVALID_SCHEMA"
        ) from error
    return "" if misfit is None else f"{misfit.path or 'it'}: {misfit.problem}"


def _parsed(text: str) -> Json:
    """Reads a text that is JSON, alone or in a block between fences."""
    if "```" in text:
        block = text.split("```", 2)[1]
        first, _, rest = block.partition("\n")
        text = rest if first.strip().isalpha() else block
    if len(text) > _LONGEST_TEXT:
        raise AbstentionError("its answer is too long")
    try:
        return plain_value(json.loads(text))
    except (ValueError, RecursionError, NotJsonError):
        raise AbstentionError("its answer is no JSON") from None
