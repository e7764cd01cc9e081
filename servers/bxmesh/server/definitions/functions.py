"""What definitions and chains need to know of stored functions."""

from __future__ import annotations

from typing import Any, Protocol

from google.protobuf import json_format

from bxmesh.agent.v1 import function_pb2
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.server.security.identities import Identity

__all__ = ["Functions", "json_schema"]


class Functions(Protocol):
    """Stored functions, as an identity sees them."""

    async def seen(self, name: str, wanted: str, identity: Identity) -> function_pb2.Function:
        """Returns a function by version, digest or alias; raises MeshError NOT_FOUND."""


def json_schema(schema: Schema) -> Any:
    """Returns a JSON Schema as Python has it; None for anything else."""
    if schema.WhichOneof("kind") != "json_schema":
        return None
    return json_format.MessageToDict(schema.json_schema)
