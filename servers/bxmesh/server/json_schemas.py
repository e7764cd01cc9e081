"""JSON Schemas that anybody may have written: checked without leaving the process, in bounded
time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import attrs
import jsonschema
import re2
from google.protobuf import json_format
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry

from bxmesh.registry.v1.schema_pb2 import Schema

__all__ = ["Misfit", "SchemaError", "find_misfit", "require_usable"]

# Keywords that are looked at: so many, and so many more for each byte. A reference costs more.
_STEPS = 3_000
_MOST_STEPS = 300_000
# Looking whether a schema is one takes longer for each.
_SCHEMA_STEPS = 60_000
_REFERENCES = ("$ref", "$dynamicRef")
_STEPS_OF_REFERENCE = 5
# Keywords within keywords. Python's own end comes soon after, and what the checker is built on does
# not survive that.
_DEEPEST = 120
_MOST_UNIQUE = 1_000
_MOST_IN_PLACE = 200
_DEEPEST_IN_PLACE = 40
_PATTERN_BYTES = 1 << 20
_MOST_PATTERNS = 256
_MOST_SCHEMA_BYTES = 8 << 20
_MOST_SCHEMA_DEPTH = 64
_LONGEST_TEXT = 400


class SchemaError(ValueError):
    """A schema that cannot be used, and why."""


class Misfit(NamedTuple):
    """Where a value does not fit its schema."""

    path: str
    """`.name` and `[index]` from the whole value, empty for itself."""
    problem: str


class _TooMuchError(Exception):
    """A schema asks for more work than it gets."""


def find_misfit(value: Any, schema: Schema, size: int) -> Misfit | None:
    """Returns the first place where a value of about `size` bytes does not fit; None when it does.

    Raises SchemaError when the schema fails: it is no schema, refers to others, or asks for too much
    work. Regular expressions are RE2's; those that it does not know are not checked.
    """
    try:
        validator = _validators.get(schema.SerializeToString(deterministic=True))
        _steps.give(min(_MOST_STEPS, _STEPS + size))
        problem = next(validator.iter_errors(value), None)
    except Exception as error:
        # Whoever wrote the schema may have made any mistake; references elsewhere are one.
        raise SchemaError(type(error).__name__.lstrip("_")) from error
    if problem is None:
        return None
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem.absolute_path
    )
    return Misfit(_clip(path), _clip(problem.message))


def _clip(text: str) -> str:
    # They hold what was given, of any length.
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def require_usable(schema: Schema) -> None:
    """Raises SchemaError, which says why, for a JSON Schema that could not be checked in full."""
    try:
        content = json_format.MessageToDict(schema.json_schema)
    except ValueError:
        raise SchemaError("it has a number that JSON does not have") from None
    try:
        _check_schema(content)
    except jsonschema.ValidationError as error:
        path = ".".join(map(str, error.absolute_path))
        raise SchemaError(f"{path or 'it'}: {error.message}"[:200]) from None
    except Exception as error:
        raise SchemaError("it is too large to be checked") from error
    for keyword, text in _texts(content, 0):
        if keyword in _REFERENCES and not text.startswith("#"):
            raise SchemaError(f"it refers to another document, {text[:80]!r}")
        if keyword == "pattern" and _pattern(text) is None:
            raise SchemaError(f"RE2 does not know the regular expression {text[:80]!r}")


def _texts(content: Any, depth: int) -> Iterator[tuple[str, str]]:
    """Patterns and references, wherever they are."""
    if depth > _MOST_SCHEMA_DEPTH:
        raise SchemaError(f"it is nested deeper than {_MOST_SCHEMA_DEPTH} levels")
    if isinstance(content, list):
        for item in content:
            yield from _texts(item, depth + 1)
    elif isinstance(content, dict):
        for keyword, item in content.items():
            if keyword in ("enum", "const", "default", "examples"):
                continue
            if isinstance(item, str):
                yield keyword, item
            elif keyword == "patternProperties" and isinstance(item, dict):
                yield from (("pattern", pattern) for pattern in item)
            yield from _texts(item, depth + 1)


class _Steps(threading.local):
    left = 0
    depth = 0

    def give(self, steps: int) -> None:
        self.left = steps
        self.depth = 0


_steps = _Steps()


class _Validators:
    """Those that were made last, as many as there is room for."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Validator] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Validator:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        made = _validator(key)
        with self._lock:
            if key not in self._known:
                self._known[key] = made
                self._bytes += len(key)
            while self._bytes > _MOST_SCHEMA_BYTES:
                self._bytes -= len(self._known.popitem(last=False)[0])
        return made


_validators = _Validators()


def _validator(key: bytes) -> Validator:
    schema = json_format.MessageToDict(Schema.FromString(key).json_schema)
    _check_schema(schema)
    validator: Validator = _Bounded(schema, registry=Registry())
    return validator


def _check_schema(schema: Any) -> None:
    """What `Validator.check_schema` does, which does it without bounds."""
    _steps.give(_SCHEMA_STEPS)
    for problem in _Bounded(_Bounded.META_SCHEMA).iter_errors(schema):
        raise problem


@lru_cache(_MOST_PATTERNS)
def _pattern(text: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _PATTERN_BYTES
    try:
        return re2.compile(text, options)
    except re2.error:
        return None


def _bounded(name: str, keyword: Any) -> Any:
    """A keyword that does no more than its share."""
    cost = _STEPS_OF_REFERENCE if name in _REFERENCES else 1

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        _steps.left -= cost
        if _steps.left < 0 or _steps.depth >= _DEEPEST:
            raise _TooMuchError
        if name == "uniqueItems" and isinstance(instance, list) and len(instance) > _MOST_UNIQUE:
            return
        _steps.depth += 1
        try:
            yield from keyword(validator, value, instance, schema) or ()
        finally:
            _steps.depth -= 1

    return check


# Python's regular expressions can take for ever, so those keywords that use them are our own.


def _matches(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    pattern = _pattern(value) if isinstance(instance, str) else None
    if pattern is not None and not pattern.search(instance):
        yield jsonschema.ValidationError(f"{instance[:80]!r} does not match {value!r}")


def _by_pattern(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, Mapping):
        return
    for text, part in value.items():
        pattern = _pattern(text)
        for name, item in instance.items():
            _steps.left -= 1
            if pattern is not None and pattern.search(name):
                yield from validator.descend(item, part, path=name, schema_path=text)


def _additional(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, Mapping):
        return
    known = schema.get("properties", {})
    patterns = [_pattern(text) for text in schema.get("patternProperties", {})]
    for name, item in instance.items():
        _steps.left -= 1
        # What a pattern that we do not know may mean is let pass.
        if name in known or any(each is None or each.search(name) for each in patterns):
            continue
        if value is False:
            yield jsonschema.ValidationError(f"{name!r} was unexpected")
        elif value is not True:
            yield from validator.descend(item, value, path=name)


def _unevaluated(name: str) -> Any:
    keyword: Any = jsonschema.Draft202012Validator.VALIDATORS[name]

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        # It looks for patterns and follows references by itself, which is neither RE2 nor bounded.
        parts = list(_in_place(validator, schema, 0, []))
        if not any("patternProperties" in part for part in parts):
            yield from keyword(validator, value, instance, schema) or ()

    return check


def _in_place(validator: Any, schema: Any, depth: int, seen: list[None]) -> Iterator[Any]:
    """Gives the schemas that the keywords on what is unevaluated look into, as often as they do."""
    if not isinstance(schema, dict):
        return
    seen.append(None)
    if len(seen) > _MOST_IN_PLACE or depth > _DEEPEST_IN_PLACE:
        raise _TooMuchError
    yield schema
    for keyword in _REFERENCES:
        if keyword in schema:
            found = validator._resolver.lookup(schema[keyword])
            inner = validator.evolve(schema=found.contents, _resolver=found.resolver)
            yield from _in_place(inner, found.contents, depth + 1, seen)
    parts = [schema[keyword] for keyword in ("if", "then", "else") if keyword in schema]
    for keyword in ("allOf", "anyOf", "oneOf"):
        parts += schema.get(keyword, ())
    parts += schema.get("dependentSchemas", {}).values()
    for part in parts:
        yield from _in_place(validator, part, depth + 1, seen)


_keywords: dict[str, Any] = dict(jsonschema.Draft202012Validator.VALIDATORS)
_keywords["pattern"] = _matches
_keywords["patternProperties"] = _by_pattern
_keywords["additionalProperties"] = _additional
for _name in ("unevaluatedItems", "unevaluatedProperties"):
    _keywords[_name] = _unevaluated(_name)

_extend: Any = extend
_Bounded: Any = _extend(
    jsonschema.Draft202012Validator,
    {name: _bounded(name, keyword) for name, keyword in _keywords.items()},
)


def _evolve(validator: Any, **changes: Any) -> Any:
    return attrs.evolve(validator, **changes)


# By itself it would take another class for whatever says `$schema`, and leave the bounds behind.
_Bounded.evolve = _evolve
