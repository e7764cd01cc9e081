"""Policies as YAML: read as plain values alone, with errors that say where and what is known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from bxmesh.security.v1 import policy_pb2 as pb

__all__ = ["EXAMPLE", "policy_yaml", "read_policy"]

_MOST_BYTES = 512 * 1024

_TAG = "tag:yaml.org,2002:"
_MAP, _SEQ, _STR = f"{_TAG}map", f"{_TAG}seq", f"{_TAG}str"
_NULL, _BOOL, _INT, _FLOAT = f"{_TAG}null", f"{_TAG}bool", f"{_TAG}int", f"{_TAG}float"
_SCALARS: dict[str, Callable[[str], Any]] = {
    _STR: str,
    _NULL: lambda text: None,
    _BOOL: lambda text: text.lower() == "true",
    _INT: int,
    _FLOAT: float,
}

EXAMPLE = """\
# bxmesh security apply policy.yaml
# All that fit must be kept. What they count by: RATE_LIMIT_SCOPE_IDENTITY, RATE_LIMIT_SCOPE_METHOD,
# RATE_LIMIT_SCOPE_IP, RATE_LIMIT_SCOPE_IDENTITY_AND_METHOD.
rate_limits:
  - name: everybody
    scope: RATE_LIMIT_SCOPE_IDENTITY
    rate: 200      # calls a second in the long run
    burst: 400     # at once after a pause
  - name: sessions
    scope: RATE_LIMIT_SCOPE_IDENTITY_AND_METHOD
    methods: ["/bxmesh.geometry.v1.GeometryService/StreamGradients"]
    rate: 5
    burst: 20
# An address with so many violations within the window is refused for a while.
abuse_block:
  violations: 50
  window: 60s
  block_duration: 900s
# The first that fits decides; none means admitted. This machine is always admitted.
ip_rules:
  - network: 192.0.2.0/24
    allow: false
    reason: not ours
# The first that fits decides; none means allowed with message_send.
message_permissions:
  - sender: "*"
    recipient: "vault-*"
    message_type: "open.*"
    allow: false
# What identities and roles may hold at a time; none named means all. The smallest that fits counts.
quotas:
  - identities: [reader]
    max_open_streams: 100
  - max_bundle_bytes: 100000000000
    max_open_tasks: 10000
    max_queued_messages: 50000
# One piece of work of a geometry worker; the most special capability that fits counts. Memory is
# that of the worker.
execution_limits:
  - capability: geometry
    max_duration: 600s
    max_memory_bytes: 8000000000
# SIGNING_MODE_OFF, SIGNING_MODE_ACCEPT (the default) or SIGNING_MODE_REQUIRE.
signing_mode: SIGNING_MODE_ACCEPT
# Who fails so often in a row gets no tasks for a while, then one at a time; the first that fits counts.
circuit_breakers:
  - target: "agent/*"
    failure_threshold: 5
    open_duration: 30s
    success_threshold: 2
max_key_lifetime: 7776000s   # 90 days
max_token_lifetime: 3600s
"""


def policy_yaml(policy: pb.Policy) -> str:
    """Returns a policy as YAML that `read_policy` takes."""
    plain = json_format.MessageToDict(policy, preserving_proto_field_name=True)
    text: str = yaml.safe_dump(plain, sort_keys=False)
    return text


def read_policy(file: Path) -> pb.Policy:
    """Returns the policy in a YAML file; raises click.ClickException for a file that has none."""
    with file.open("rb") as opened:
        data = opened.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise click.ClickException(f"{file} is larger than {_MOST_BYTES} bytes.")
    try:
        node = _Composer(data.decode()).get_single_node()
        content = None if node is None else _plain(node)
        content = {} if content is None else content
        _check(content, pb.Policy.DESCRIPTOR, "")
        return json_format.ParseDict(content, pb.Policy())
    except (yaml.YAMLError, json_format.ParseError, UnicodeDecodeError, _WrongError) as error:
        raise click.ClickException(
            f"{file} is no policy: {error}\n  remedy: `bxmesh security policy example` prints one."
        ) from error
    except RecursionError as error:
        raise click.ClickException(f"{file} is nested too deeply.") from error


class _WrongError(Exception):
    pass


class _Composer(yaml.SafeLoader):
    """Takes no aliases, of which a few lines can stand for gigabytes.

    Only true, false, null and decimal numbers are no text: there are no dates, and `yes` is one.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: int) -> Any:
        """Refuses aliases."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken")
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    (_NULL, "null|Null|NULL|~|", [*"nN~", ""]),
    (_BOOL, "true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    (_INT, "[-+]?[0-9]{1,40}", [*"-+0123456789"]),
    (
        _FLOAT,
        r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}\.[0-9]{0,40})([eE][-+][0-9]{1,3})?",
        [*"-+.0123456789"],
    ),
):
    _Composer.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def _plain(node: yaml.Node) -> Any:
    """Returns the plain value of a node; raises yaml.YAMLError for what has none."""
    if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
        return _mapping(node)
    if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        try:
            return _SCALARS[node.tag](node.value)
        except ValueError as error:
            raise _unreadable(node, "this is no number") from error
    raise _unreadable(node, f"{node.tag} is not taken")


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for name_node, value_node in node.value:
        name = _plain(name_node)
        if not isinstance(name, str):
            raise _unreadable(name_node, "names must be text")
        if name in mapping:
            raise _unreadable(name_node, f"{name} is there twice")
        mapping[name] = _plain(value_node)
    return mapping


def _unreadable(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _check(value: Any, kind: Descriptor, path: str) -> None:
    """Raises _WrongError for what is not known, with its path."""
    known = [field.name for field in kind.fields]
    if not isinstance(value, dict):
        raise _WrongError(f"{path or 'a policy'} must be a mapping of {', '.join(known)}")
    for name, inner in value.items():
        here = f"{path}.{name}" if path else name
        field = kind.fields_by_name.get(name)
        if field is None:
            raise _WrongError(f"{here!r} is not known; known are {', '.join(known)}")
        if not field.is_repeated:
            _check_one(inner, field, here)
            continue
        if not isinstance(inner, list):
            raise _WrongError(f"{here} must be a list")
        for index, item in enumerate(inner):
            _check_one(item, field, f"{here}[{index}]")


def _check_one(value: Any, field: FieldDescriptor, path: str) -> None:
    kind = field.message_type
    if kind is not None:
        if kind.file.package != "google.protobuf":
            _check(value, kind, path)
        elif not isinstance(value, str):
            raise _WrongError(f"{path} must be a time such as 60s")
    elif field.enum_type is not None:
        names = [each.name for each in field.enum_type.values]
        if value not in names:
            raise _WrongError(f"{path} must be one of {', '.join(names)}")
    elif isinstance(value, dict | list) or value is None:
        raise _WrongError(f"{path} must be a plain value")
    elif field.type == FieldDescriptor.TYPE_STRING and not isinstance(value, str):
        raise _WrongError(f"{path} must be a text: write it in quotes")
