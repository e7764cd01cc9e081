"""What an embedding model has to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Embedder", "EmbeddingError"]


class EmbeddingError(Exception):
    """The model gave no vectors."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        """Takes whether it is the texts that it will never take."""
        super().__init__(message)
        self.refused = refused


class Embedder(Protocol):
    """A model that turns texts into vectors whose cosine says how near they are in meaning."""

    @property
    def name(self) -> str:
        """The model; vectors of different models are never compared."""

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the vectors [n, dimension] of n texts. Raises EmbeddingError."""

    async def look(self) -> None:
        """Looks whether the model is there, at no cost and within seconds. Raises EmbeddingError."""

    async def close(self) -> None:
        """Lets go of what it holds."""
