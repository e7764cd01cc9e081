"""Checks of payloads against the JSON Schemas of definitions."""

from __future__ import annotations

from typing import Any

from bxmesh.client.agents.payloads import PayloadMismatch
from bxmesh.client.host.failures import refused
from bxmesh.client.host.models import extra_missing
from bxmesh.registry.v1.schema_pb2 import Schema

__all__ = ["misfit", "require_fit"]


def misfit(value: Any, schema: Schema, size: int) -> tuple[str, str] | None:
    """Returns the place where a value of about so many bytes does not fit, and why; None when it does.

    Raises FailedPrecondition for a schema that cannot be used, and without the extra `host`.
    """
    if not schema.HasField("json_schema"):
        return None
    try:
        # The same check as the server's.
        from bxmesh.server.json_schemas import SchemaError, find_misfit
    except ModuleNotFoundError as error:
        raise extra_missing(error) from error
    try:
        found = find_misfit(value, schema, size)
    except SchemaError as error:
        raise refused("SCHEMA_INVALID", f"the schema cannot be used: {error}") from error
    return None if found is None else (found.path, found.problem)


def require_fit(value: Any, schema: Schema, size: int) -> None:
    """Raises PayloadMismatch for a payload that does not fit."""
    if found := misfit(value, schema, size):
        path, problem = found
        raise PayloadMismatch(
            f"the payload does not fit: {problem[:200]}", [(f"payload{path}", problem[:200])]
        )
