"""A model of somebody else's, which learns only what the data-loss policy lets go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from google.protobuf.any_pb2 import Any
from google.protobuf.wrappers_pb2 import StringValue
from numpy.typing import NDArray

from bxmesh.agent.v1.message_pb2 import Envelope, Payload
from bxmesh.client.conversations.question import ASKED
from bxmesh.server.conversations.archive.embedding.protocol import Embedder, EmbeddingError
from bxmesh.server.errors import MeshError
from bxmesh.server.security.data_loss import DataGuard

__all__ = ["GuardedEmbedder"]


class GuardedEmbedder:
    """Another embedder, and what may be sent to it."""

    def __init__(self, embedder: Embedder, data: DataGuard) -> None:
        self._embedder = embedder
        self._data = data
        self.name = embedder.name
        self.dimension = embedder.dimension

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the vectors [n, dimension] of n texts, without what the policy takes out of them.
        Raises EmbeddingError, also, as `refused`, for what may not go."""
        sent = [await self._inspected(text) for text in texts]
        # Texts that follow one another may be pieces of one.
        whole = "".join(sent)
        if len(sent) > 1 and await self._inspected(whole) != whole:
            raise _withheld()
        return await self._embedder.embed(sent)

    async def look(self) -> None:
        """Looks whether the model is there. Raises EmbeddingError."""
        await self._embedder.look()

    async def close(self) -> None:
        """Lets go of what it holds."""
        await self._embedder.close()

    async def _inspected(self, text: str) -> str:
        content = Any()
        content.Pack(StringValue(value=text))
        envelope = Envelope(message_type=ASKED, payload=Payload(protobuf=content))
        try:
            verdict = await self._data.inspect(envelope, "")
        except MeshError as error:
            raise _withheld() from error
        if verdict.quarantine is not None:
            raise _withheld() from verdict.quarantine
        value = StringValue()
        verdict.envelope.payload.protobuf.Unpack(value)
        return value.value


def _withheld() -> EmbeddingError:
    return EmbeddingError("The data-loss policy lets nobody send it to a model.", refused=True)
