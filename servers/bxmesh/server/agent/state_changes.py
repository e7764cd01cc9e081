"""Changes of a state: some fields, or a JSON merge patch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from google.protobuf.struct_pb2 import Struct, Value

from bxmesh.agent.v1 import state_pb2
from bxmesh.server.errors import MeshError, invalid_argument

__all__ = ["MOST_STATE_BYTES", "Change", "change_of", "require_small"]

Change = Callable[[Struct], None]
"""Changes a state in place; raises MeshError when it does not fit the state."""

MOST_STATE_BYTES = 1 << 20
# Protobuf implementations read messages of up to 100 levels; an object takes three.
_DEEPEST = 24
_MOST_PATHS = 1000


def change_of(request: state_pb2.UpdateStateRequest) -> Change:
    """Returns the change that is asked for; raises MeshError INVALID_ARGUMENT."""
    if request.WhichOneof("change") == "merge_patch":
        patch = request.merge_patch
        _check(patch, "merge_patch")
        return lambda state: _merge(state, patch)
    value = request.update.value
    _check(value, "update.value")
    paths = [_segments(path) for path in request.update.update_mask.paths]
    if len(paths) > _MOST_PATHS:
        raise _wrong_mask(f"{len(paths)} paths are too many, {_MOST_PATHS} are the most")
    if not paths:
        return lambda state: state.CopyFrom(value)
    return lambda state: _set(state, value, paths)


def require_small(state: Struct, field: str = "") -> None:
    """Raises MeshError INVALID_ARGUMENT (STATE_TOO_LARGE) for more than a state may have."""
    if state.ByteSize() > MOST_STATE_BYTES:
        raise invalid_argument(
            field,
            f"the state would have {state.ByteSize()} bytes, {MOST_STATE_BYTES} are the most;"
            " store a bundle and keep its name",
            reason="STATE_TOO_LARGE",
        )


def _merge(target: Struct, patch: Struct) -> None:
    for name, value in patch.fields.items():
        match value.WhichOneof("kind"):
            case "null_value":
                target.fields.pop(name, None)
            case "struct_value":
                if not _is_object(target, name):
                    target.fields[name].struct_value.SetInParent()
                _merge(target.fields[name].struct_value, value.struct_value)
            case _:
                target.fields[name].CopyFrom(value)


def _set(state: Struct, value: Struct, paths: Iterable[list[str]]) -> None:
    for *parents, name in paths:
        source: Struct | None = value
        for parent in parents:
            source = _child(source, parent, "update.value") if source is not None else None
        found = source is not None and name in source.fields
        target: Struct | None = state
        for parent in parents:
            assert target is not None
            child = _child(target, parent, "the state")
            if child is None and found:
                target.fields[parent].struct_value.SetInParent()
                child = target.fields[parent].struct_value
            target = child
            if target is None:
                break
        if target is None:
            continue
        if source is not None and found:
            target.fields[name].CopyFrom(source.fields[name])
        else:
            target.fields.pop(name, None)


def _child(struct: Struct, name: str, where: str) -> Struct | None:
    if name not in struct.fields:
        return None
    if not _is_object(struct, name):
        raise _wrong_mask(f"{name!r} is no object in {where}, a path leads through objects only")
    return struct.fields[name].struct_value


def _is_object(struct: Struct, name: str) -> bool:
    return name in struct.fields and struct.fields[name].WhichOneof("kind") == "struct_value"


def _segments(path: str) -> list[str]:
    segments = path.split(".")
    if not all(segments):
        raise _wrong_mask(f"{path!r} is no path: names with dots between them")
    if len(segments) > _DEEPEST:
        raise _wrong_mask(f"{path!r} is too deep, {_DEEPEST} levels are the most")
    return segments


def _wrong_mask(why: str) -> MeshError:
    return invalid_argument("update.update_mask", why)


def _check(struct: Struct, field: str) -> None:
    """Raises MeshError INVALID_ARGUMENT for what is not JSON, too deep or too large."""
    require_small(struct, field)
    level: list[Value] = list(struct.fields.values())
    depth = 1
    while level:
        if depth > _DEEPEST:
            raise invalid_argument(
                field, f"is too deep, {_DEEPEST} levels are the most", reason="STATE_TOO_DEEP"
            )
        below: list[Value] = []
        for value in level:
            match value.WhichOneof("kind"):
                case "struct_value":
                    below.extend(value.struct_value.fields.values())
                case "list_value":
                    below.extend(value.list_value.values)
                case "number_value":
                    if not math.isfinite(value.number_value):
                        raise invalid_argument(field, "JSON has no infinite numbers and no NaN")
                case None:
                    raise invalid_argument(field, "holds a value that is none; JSON has null")
        level, depth = below, depth + 1
