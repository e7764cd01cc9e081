"""Whether two JSON Schemas have no value in common.

Only what is certain is said. What is not understood, or would take too long, has one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Misfit", "Schema", "misfit", "picked"]

_DEEPEST = 40
_MOST_LOOKS = 5_000
_MOST_SHOWN = 60
_TYPES = frozenset(("null", "boolean", "number", "string", "array", "object"))


@dataclass(frozen=True)
class Misfit:
    """A place in a value, and what the two sides have there."""

    path: tuple[str, ...]
    produced: str
    taken: str


@dataclass(frozen=True)
class Schema:
    """A schema within the document that its references mean."""

    node: Any
    root: Any

    @classmethod
    def of(cls, document: Any) -> Schema:
        """Returns a document's own schema; None says nothing."""
        node = True if document is None else document
        return cls(node, node)

    def inner(self, node: Any) -> Schema:
        """Returns a part of it."""
        return node if isinstance(node, Schema) else Schema(node, self.root)

    def get(self, keyword: str) -> Any:
        """Returns what a keyword has; None where it cannot."""
        return self.node.get(keyword) if isinstance(self.node, dict) else None


class _TooMuchError(Exception):
    """The schemas ask for more work than they get."""


def misfit(produced: Schema, taken: Schema) -> Misfit | None:
    """Returns where no value of the one is of the other, None where there may be one."""
    try:
        return next(_Comparison().misfits(produced, taken, (), 0), None)
    except _TooMuchError:
        return None


def picked(schema: Schema, keys: Sequence[str]) -> Schema:
    """Returns the schema of what is under these keys."""
    comparison = _Comparison()
    try:
        for key in keys:
            schema = comparison.under(schema, key, 0)
    except _TooMuchError:
        return Schema.of(True)
    return schema


class _Comparison:
    def __init__(self) -> None:
        self._left = _MOST_LOOKS

    def _look(self, depth: int) -> None:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise _TooMuchError

    def parts(self, schema: Schema, depth: int) -> Iterator[Schema]:
        """Gives schemas that must all hold: the schema, what it refers to, and its `allOf`."""
        self._look(depth)
        yield schema
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield from self.parts(_referred(schema, reference), depth + 1)
        for each in _list(schema.get("allOf")):
            yield from self.parts(schema.inner(each), depth + 1)

    def misfits(
        self, produced: Schema, taken: Schema, path: tuple[str, ...], depth: int
    ) -> Iterator[Misfit]:
        """Gives what keeps the two apart: two parts that must hold, of which both cannot."""
        taken_parts = list(self.parts(taken, depth))
        for one in self.parts(produced, depth):
            for other in taken_parts:
                self._look(depth)
                yield from self._own(one, other, path, depth)
                for branches in _alternatives(one):
                    found = [self._first(b, other, path, depth) for b in branches]
                    if all(found):
                        yield from filter(None, found)
                for branches in _alternatives(other):
                    found = [self._first(one, b, path, depth) for b in branches]
                    if all(found):
                        yield from filter(None, found)

    def _first(
        self, produced: Schema, taken: Schema, path: tuple[str, ...], depth: int
    ) -> Misfit | None:
        return next(self.misfits(produced, taken, path, depth + 1), None)

    def _own(
        self, produced: Schema, taken: Schema, path: tuple[str, ...], depth: int
    ) -> Iterator[Misfit]:
        """By the keywords of the two alone."""
        common = _types(produced) & _types(taken)
        values, accepted = _values(produced), _values(taken)
        apart = not common
        if values is not None and accepted is not None:
            apart = values.keys().isdisjoint(accepted)
        if apart:
            yield Misfit(path, _described(produced), _described(taken))
        elif common == {"object"}:
            for name in (*_list(taken.get("required")), *_list(produced.get("required"))):
                ours, theirs = _property(produced, str(name)), _property(taken, str(name))
                yield from self.misfits(ours, theirs, (*path, str(name)), depth + 1)
        elif common == {"array"} and any(_has_items(each) for each in (produced, taken)):
            yield from self.misfits(_item(produced), _item(taken), (*path, "[]"), depth + 1)

    def under(self, schema: Schema, key: str, depth: int) -> Schema:
        """Returns the schema of a field of what it describes."""
        fields: list[Schema] = []
        for part in self.parts(schema, depth):
            can = "object" in _types(part)
            fields.append(_property(part, key) if can else Schema.of(False))
            for branches in _alternatives(part):
                inner = [self.under(branch, key, depth + 1) for branch in branches]
                fields.append(Schema.of({"anyOf": inner}))
        return Schema.of({"allOf": fields})


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _alternatives(schema: Schema) -> Iterator[list[Schema]]:
    for keyword in ("anyOf", "oneOf"):
        branches = _list(schema.get(keyword))
        if branches:
            yield [schema.inner(branch) for branch in branches]


def _referred(schema: Schema, reference: str) -> Schema:
    """Follows references within the document; others say nothing."""
    if reference != "#" and not reference.startswith("#/"):
        return Schema.of(True)
    node = schema.root
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        node = node.get(name, True) if isinstance(node, dict) else True
    return Schema(node, schema.root)


def _types(schema: Schema) -> frozenset[str]:
    if schema.node is False:
        return frozenset()
    declared = schema.get("type")
    names = {declared} if isinstance(declared, str) else set(map(str, _list(declared)))
    types = frozenset("number" if name == "integer" else name for name in names)
    if not types or not types <= _TYPES:
        types = _TYPES
    values = _values(schema)
    return types if values is None else types & frozenset(values.values())


def _values(schema: Schema) -> dict[str, str] | None:
    """Returns the values that it lists, as JSON, with their types; None when it lists none."""
    if not isinstance(schema.node, dict):
        return None
    if "const" in schema.node:
        listed = [schema.node["const"]]
    elif isinstance(schema.node.get("enum"), list):
        listed = schema.node["enum"]
    else:
        return None
    return {_canonical(value): _type(value) for value in listed}


def _canonical(value: Any) -> str:
    return json.dumps(_with_integers(value), sort_keys=True)


def _with_integers(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_with_integers(each) for each in value]
        case dict():
            return {key: _with_integers(each) for key, each in value.items()}
    return value


def _type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _property(schema: Schema, name: str) -> Schema:
    properties = schema.get("properties")
    if isinstance(properties, dict) and name in properties:
        return schema.inner(properties[name])
    if schema.get("patternProperties"):
        return Schema.of(True)
    others = schema.get("additionalProperties")
    return Schema.of(True) if others is None else schema.inner(others)


def _has_items(schema: Schema) -> bool:
    least = schema.get("minItems")
    return isinstance(least, int | float) and least > 0


def _item(schema: Schema) -> Schema:
    items = schema.get("items")
    if items is None or schema.get("prefixItems"):
        return Schema.of(True)
    return schema.inner(items)


def _described(schema: Schema) -> str:
    values = _values(schema)
    if values is not None:
        text = " or ".join(sorted(values))
    elif schema.node is False:
        text = "nothing"
    else:
        declared = schema.get("type")
        text = declared if isinstance(declared, str) else " or ".join(map(str, _list(declared)))
        text = text or "anything"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
