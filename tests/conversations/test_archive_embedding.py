"""Models that turn texts into vectors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from bxmesh.server.conversations.archive.embedding import Embedder, EmbeddingError
from bxmesh.server.conversations.archive.embedding import packaged as packaged_module
from bxmesh.server.conversations.archive.embedding.http import HttpEmbedder
from bxmesh.server.conversations.archive.embedding.packaged import PackagedEmbedder
from tests.conversations.embedding_server import DIMENSION, EmbeddingServer, embedding_server


@pytest.fixture
async def packaged() -> AsyncIterator[Embedder]:
    embedder = PackagedEmbedder()
    yield embedder
    await embedder.close()


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with embedding_server() as running:
        yield running


@pytest.fixture
async def remote(server: EmbeddingServer) -> AsyncIterator[Embedder]:
    embedder = HttpEmbedder(server.url + "/", "small", DIMENSION, "secret")
    yield embedder
    await embedder.close()


async def test_the_packaged_model_knows_what_is_meant(packaged: Embedder) -> None:
    pairs = [
        ("Refinement lowered the R-free.", "The free R factor fell after minimisation."),
        ("The cat sits on the mat.", "A kitten rests on a rug."),
        ("Who pays for the beamtime?", "The synchrotron's costs are covered by a grant."),
    ]
    first = await packaged.embed([pair[0] for pair in pairs])
    second = await packaged.embed([pair[1] for pair in pairs])
    assert first.shape == (3, packaged.dimension)
    assert first.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    nearness = first @ second.T
    assert (nearness.argmax(axis=1) == [0, 1, 2]).all()
    assert (nearness.argmax(axis=0) == [0, 1, 2]).all()


async def test_the_packaged_model_takes_any_text(packaged: Embedder) -> None:
    texts = ["", "\0", "\ud800", "word " * 100_000, "🙂", *["short"] * 40]
    vectors = await packaged.embed(texts)
    assert vectors.shape == (len(texts), packaged.dimension)
    assert np.isfinite(vectors).all()
    assert (await packaged.embed([])).shape == (0, packaged.dimension)


async def test_another_model_in_its_place_is_not_run(
    packaged: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged_module, "_SHA256", "0" * 64)
    with pytest.raises(EmbeddingError, match="is not the embedding model"):
        await packaged.embed(["text"])


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_module, "_PACKAGE", "no_such_package")
    with pytest.raises(EmbeddingError, match="pip install"):
        PackagedEmbedder()


async def test_a_server_is_asked_for_many_at_once(
    remote: Embedder, server: EmbeddingServer
) -> None:
    texts = ["cat", "kitten cat", "", "\ud800"] * 30
    vectors = await remote.embed(texts)
    assert vectors.shape == (120, DIMENSION)
    assert vectors[0, 0] == 1
    assert vectors[1, 0] == 2
    assert len(server.models) == 2
    assert set(server.models) == {"small"}
    assert set(server.keys) == {"Bearer secret"}
    assert (await remote.embed([])).shape == (0, DIMENSION)


@pytest.mark.parametrize(
    ("status", "refused"),
    [(400, True), (422, True), (302, False), (401, False), (429, False), (500, False)],
)
async def test_what_a_server_does_not_do(
    remote: Embedder, server: EmbeddingServer, status: int, refused: bool
) -> None:
    server.status = status
    with pytest.raises(EmbeddingError, match=str(status)) as raised:
        await remote.embed(["cat"])
    assert raised.value.refused is refused
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "body",
    [
        b"no JSON",
        b"[]",
        b"{}",
        b'{"data": []}',
        b'{"data": [{"index": 0, "embedding": [1, 2]}]}',
        b'{"data": [{"index": 0, "embedding": [NaN, 0, 0, 0, 0, 0]}]}',
        b'{"data": [{"index": 0, "embedding": ["x", 0, 0, 0, 0, 0]}]}',
        b'{"data": [{"index": 0}]}',
        b'{"data": ' + b"[" * 200_000,
        b"x" * 5_000_000,
    ],
    ids=range(10),
)
async def test_answers_that_are_no_vectors(
    remote: Embedder, server: EmbeddingServer, body: bytes
) -> None:
    server.body = body
    with pytest.raises(EmbeddingError) as raised:
        await remote.embed(["cat"])
    assert not raised.value.refused


async def test_nobody_there() -> None:
    embedder = HttpEmbedder("http://127.0.0.1:1/v1", "small", DIMENSION)
    with pytest.raises(EmbeddingError, match="away"):
        await embedder.embed(["cat"])
    await embedder.close()
