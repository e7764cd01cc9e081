"""What differs between two policies, by path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format

from bxmesh.security.v1.policy_pb2 import Policy, PolicyChange

__all__ = ["policy_difference"]

_PLAIN_NAME = re.compile(r"[\w. -]*[^\W\d][\w. -]*")
"""What is no number, and ends no path."""


def policy_difference(before: Policy, after: Policy) -> list[PolicyChange]:
    """Returns the differences in the order of their paths; lists of what has names go by them."""
    one, two = dict(_leaves("", _plain(before))), dict(_leaves("", _plain(after)))
    return [
        PolicyChange(path=path, before=one.get(path, ""), after=two.get(path, ""))
        for path in sorted(one.keys() | two.keys())
        if one.get(path) != two.get(path)
    ]


def _plain(policy: Policy) -> dict[str, Any]:
    plain: dict[str, Any] = json_format.MessageToDict(policy, preserving_proto_field_name=True)
    return plain


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, inner in enumerate(value):
            yield from _leaves(f"{path}[{_label(inner, index)}]", inner)
    else:
        yield path, json.dumps(value)


def _label(item: dict[str, Any], index: int) -> str:
    name = item.get("name")
    if name is None:
        return str(index)
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)
