"""What a conversation must be before it can be held."""

from __future__ import annotations

from collections.abc import Sequence

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.server.errors import invalid_argument
from bxmesh.server.json_schemas import SchemaError, require_usable

__all__ = ["require_holdable"]

_FIELD = "spec.consensus"


def require_holdable(spec: pb.ConversationSpec, participants: Sequence[pb.Participant]) -> None:
    """Raises MeshError INVALID_ARGUMENT, by field, for what no consensus can come out of."""
    settings = spec.consensus
    if settings.method == pb.CONSENSUS_METHOD_JUDGE and not settings.HasField("judge"):
        raise invalid_argument(f"{_FIELD}.judge", "is needed for the judge's method")
    if settings.method == pb.CONSENSUS_METHOD_STRUCTURED and not settings.HasField("answer_schema"):
        raise invalid_argument(f"{_FIELD}.answer_schema", "is needed for the structured method")
    if settings.HasField("answer_schema"):
        try:
            require_usable(Schema(json_schema=settings.answer_schema))
        except SchemaError as error:
            raise invalid_argument(f"{_FIELD}.answer_schema", str(error)[:200]) from None
    if settings.quorum > len(participants):
        raise invalid_argument(
            f"{_FIELD}.quorum",
            f"{settings.quorum} cannot answer where {len(participants)} take part",
        )
