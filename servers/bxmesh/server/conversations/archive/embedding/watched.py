"""A model of which it is known how its last use went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bxmesh.server.conversations.archive.embedding.protocol import Embedder, EmbeddingError
from bxmesh.server.conversations.archive.uses import Uses

__all__ = ["WatchedEmbedder"]


class WatchedEmbedder:
    """Another embedder, and its uses."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.name = embedder.name
        self.dimension = embedder.dimension
        self.uses = Uses()
        """How it goes."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the vectors [n, dimension] of n texts. Raises EmbeddingError."""
        if not texts:
            # The model is not asked for these.
            return await self._embedder.embed(texts)
        with self.uses.one():
            try:
                return await self._embedder.embed(texts)
            except EmbeddingError as error:
                # It is the texts then, and the model is well.
                if not error.refused:
                    raise
                refusal = error
        raise refusal

    async def look(self) -> None:
        """Looks whether the model is there. Raises EmbeddingError."""
        await self._embedder.look()

    async def close(self) -> None:
        """Lets go of what it holds."""
        await self._embedder.close()
