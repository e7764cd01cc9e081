"""What turns texts into vectors: a packaged model, or one behind HTTP."""

from bxmesh.server.conversations.archive.embedding.protocol import Embedder, EmbeddingError

__all__ = ["Embedder", "EmbeddingError"]
