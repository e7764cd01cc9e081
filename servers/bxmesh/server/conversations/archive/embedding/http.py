"""A model behind the API that OpenAI has and many servers speak: POST …/embeddings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from bxmesh.server.conversations.archive.embedding.protocol import EmbeddingError

__all__ = ["HttpEmbedder"]

_SECONDS = 30.0
_TEXTS_AT_ONCE = 64
_BYTES_PER_NUMBER = 40
# What an answer has besides numbers.
_SPARE_BYTES = 1 << 20
_LOOK_SECONDS = 1.5
# The key is refused, or who answers cannot reach the model. Others do not have this question.
_AWAY = (401, 403, 500, 502, 503, 504)


class HttpEmbedder:
    """Asks a server for vectors, without following where it redirects to."""

    def __init__(self, url: str, model: str, dimension: int, api_key: str = "") -> None:
        """Takes the URL up to and with /v1, and how many numbers the model's vectors have."""
        self.name = model
        self.dimension = dimension
        self._url = f"{url.rstrip('/')}/embeddings"
        self._models_url = f"{url.rstrip('/')}/models"
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=_SECONDS)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the vectors. Raises EmbeddingError for a server that is away or answers otherwise;
        `refused` when it is the texts that it does not take."""
        vectors = [np.zeros((0, self.dimension), np.float32)]
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            vectors.append(await self._some(texts[first : first + _TEXTS_AT_ONCE]))
        return np.concatenate(vectors)

    async def look(self) -> None:
        """Asks the server which models it has: servers that do not tell say so at once, and none takes
        money for it. Raises EmbeddingError when it is away or refuses the key."""
        try:
            async with (
                asyncio.timeout(_LOOK_SECONDS),
                self._client.stream("GET", self._models_url) as response,
            ):
                status = response.status_code
        except TimeoutError as error:
            raise EmbeddingError(
                f"The embedding server does not answer within {_LOOK_SECONDS:g} s"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EmbeddingError(f"The embedding server is away: {type(error).__name__}") from error
        if status in _AWAY:
            raise EmbeddingError(f"The embedding server answers {status}")

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _some(self, texts: Sequence[str]) -> NDArray[np.float32]:
        # A lone surrogate is no text; an empty one is refused by many.
        clean = [text.encode("utf-8", "replace").decode() or " " for text in texts]
        body = {"model": self.name, "input": clean, "encoding_format": "float"}
        try:
            async with self._client.stream("POST", self._url, json=body) as response:
                data = await self._read(response, len(texts))
        except httpx.HTTPError as error:
            raise EmbeddingError(f"The embedding server is away: {type(error).__name__}") from error
        if response.status_code != httpx.codes.OK:
            raise EmbeddingError(
                f"The embedding server answers {response.status_code}",
                refused=response.status_code in (400, 413, 422),
            )
        return self._vectors(data, len(texts))

    async def _read(self, response: httpx.Response, count: int) -> bytes:
        most = count * self.dimension * _BYTES_PER_NUMBER + _SPARE_BYTES
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > most:
                raise EmbeddingError("The embedding server answers without end")
        return bytes(data)

    def _vectors(self, data: bytes, count: int) -> NDArray[np.float32]:
        try:
            rows: list[Any] = sorted(json.loads(data)["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], np.float32)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EmbeddingError("The embedding server answers no vectors") from error
        if vectors.shape != (count, self.dimension) or not np.isfinite(vectors).all():
            raise EmbeddingError(
                f"The embedding server answers {vectors.shape} instead of {count} vectors of "
                f"{self.dimension} numbers"
            )
        return vectors
