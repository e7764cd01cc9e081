"""The health of what finds by meaning, when the real thing goes away."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bxmesh.health.v1 import health_pb2 as pb
from bxmesh.server.conversations.archive import Archive, MeaningOptions, open_archive
from bxmesh.server.conversations.archive.embedding import EmbeddingError
from bxmesh.server.conversations.archive.uses import Uses
from bxmesh.server.database import open_database
from bxmesh.server.health_report import HealthReport
from bxmesh.server.health_report.meaning import meaning_checks
from bxmesh.server.settings import Settings
from tests.conversations.archived import conversation
from tests.conversations.embedding_server import DIMENSION, EmbeddingServer, embedding_server

HEALTHY, UNHEALTHY, UNKNOWN = (
    pb.HEALTH_STATE_HEALTHY,
    pb.HEALTH_STATE_UNHEALTHY,
    pb.HEALTH_STATE_UNKNOWN,
)
SECRET = "hush-hush"


class Looking:
    """An archive, and the health of what it finds by meaning with."""

    def __init__(self, archive: Archive, settings: Settings) -> None:
        self.archive = archive
        self.checks = meaning_checks(settings, archive)

    async def components(self) -> dict[str, pb.ComponentHealth]:
        """Looks anew."""
        report = HealthReport(self.checks)
        answer = await report.look()
        await report.close()
        assert SECRET not in str(answer)
        return {component.name: component for component in answer.components}

    async def opened(self) -> dict[str, pb.ComponentHealth]:
        """Looks until it is known how all are."""
        while True:
            found = await self.components()
            if all(one.state != UNKNOWN for one in found.values()):
                return found
            assert all(one.message for one in found.values())

    async def embed(self) -> None:
        """Uses the model."""
        assert self.archive.meaning is not None
        await self.archive.meaning.embed(["cat"])


@asynccontextmanager
async def looking(state_dir: Path, **settings: Any) -> AsyncIterator[Looking]:
    made = Settings(state_dir=state_dir, **settings)
    options = MeaningOptions(
        state_dir / "vectors",
        made.embedding_url,
        made.embedding_model,
        made.embedding_dimension,
        made.embedding_key.get_secret_value(),
        made.qdrant_url,
        made.qdrant_key.get_secret_value(),
    )
    async with open_database(made.database) as database, open_archive(database, options) as archive:
        yield Looking(archive, made)


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with embedding_server() as running:
        yield running


@pytest.fixture(autouse=True)
def only_local_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in [name for name in os.environ if name.startswith("BXMESH_")]:
        monkeypatch.delenv(name)


def model_of(server: EmbeddingServer) -> dict[str, Any]:
    """Settings with secrets in them."""
    return {
        "embedding_url": server.url.replace("//", f"//somebody:{SECRET}@"),
        "embedding_model": "small",
        "embedding_dimension": DIMENSION,
        "embedding_key": SECRET,
    }


async def test_all_is_well_and_nothing_is_spent(tmp_path: Path, server: EmbeddingServer) -> None:
    async with looking(tmp_path, **model_of(server)) as here:
        found = await here.opened()
        model, vectors = found["embedding_model"], found["vector_store"]
        assert (model.state, vectors.state) == (HEALTHY, HEALTHY), found
        assert model.details["server"] == "127.0.0.1"
        assert model.details["model"] == "small"
        assert "not used yet" in model.message
        assert vectors.details["vectors"] == "0"
        assert model.response_time.ToMicroseconds() > 0
        assert server.looked_at >= 1
        assert server.texts == []
        await here.archive.save(conversation("Where is the cat?"))
        async with asyncio.timeout(60):
            while found["vector_store"].details["vectors"] != "1":
                found = await here.components()
        assert found["embedding_model"].details["seconds_since_success"].isdigit()
        assert "not used" not in str(found)
        assert server.texts == ["Where is the cat?"]


async def test_a_model_that_stalls(tmp_path: Path, server: EmbeddingServer) -> None:
    async with looking(tmp_path, **model_of(server)) as here:
        await here.opened()
        server.may_answer.clear()
        found = await here.components()
        assert found["embedding_model"].state == UNHEALTHY
        assert "within 1.5 s" in found["embedding_model"].message
        assert found["embedding_model"].remedy
        assert found["vector_store"].state == HEALTHY
        server.may_answer.set()
        assert (await here.components())["embedding_model"].state == HEALTHY


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_a_model_that_refuses(tmp_path: Path, server: EmbeddingServer, status: int) -> None:
    async with looking(tmp_path, **model_of(server)) as here:
        server.status = status
        found = await here.components()
        assert found["embedding_model"].state == UNHEALTHY
        assert str(status) in found["embedding_model"].message


async def test_a_server_that_does_not_tell_its_models(
    tmp_path: Path, server: EmbeddingServer
) -> None:
    async with looking(tmp_path, **model_of(server)) as here:
        server.status = 404
        assert (await here.components())["embedding_model"].state == HEALTHY
        # Its last use tells more.
        with pytest.raises(EmbeddingError):
            await here.embed()
        model = (await here.components())["embedding_model"]
        assert (model.state, "404" in model.message) == (UNHEALTHY, True)


async def test_a_model_that_answers_garbage(tmp_path: Path, server: EmbeddingServer) -> None:
    async with looking(tmp_path, **model_of(server)) as here:
        server.body = f'{{"data": "{SECRET}"}}'.encode()
        with pytest.raises(EmbeddingError):
            await here.embed()
        model = (await here.components())["embedding_model"]
        assert model.state == UNHEALTHY
        assert "no vectors" in model.message
        assert model.details["seconds_since_failure"].isdigit()
        server.body = None
        await here.embed()
        model = (await here.components())["embedding_model"]
        assert model.state == HEALTHY
        assert "seconds_since_failure" not in model.details


async def test_texts_that_a_model_refuses_are_no_failure(
    tmp_path: Path, server: EmbeddingServer
) -> None:
    async with looking(tmp_path, **model_of(server)) as here:
        server.refused = "cat"
        with pytest.raises(EmbeddingError):
            await here.embed()
        assert (await here.components())["embedding_model"].state == HEALTHY


async def test_a_model_whose_server_is_gone(tmp_path: Path) -> None:
    with embedding_server() as server:
        settings = model_of(server)
        async with looking(tmp_path, **settings) as here:
            assert (await here.opened())["embedding_model"].state == HEALTHY
            server.socket.close()
            model = (await here.components())["embedding_model"]
    assert model.state == UNHEALTHY
    assert "away" in model.message


async def test_a_folder_that_is_none(tmp_path: Path, server: EmbeddingServer) -> None:
    (tmp_path / "vectors").write_text("a file")
    async with looking(tmp_path, **model_of(server)) as here:
        found = await here.opened()
        assert found["vector_store"].state == UNHEALTHY
        assert found["vector_store"].remedy
        assert found["embedding_model"].state == HEALTHY
        (tmp_path / "vectors").unlink()
        # It is opened anew.
        assert (await here.opened())["vector_store"].state == HEALTHY


async def test_a_folder_with_something_else_in_it(tmp_path: Path, server: EmbeddingServer) -> None:
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "meta.json").write_text("garbage")
    async with looking(tmp_path, **model_of(server)) as here:
        assert (await here.opened())["vector_store"].state == UNHEALTHY


# The library leaves the lock's file open when it cannot have it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_folder_that_is_in_use(tmp_path: Path, server: EmbeddingServer) -> None:
    async with looking(tmp_path, **model_of(server)) as first:
        assert (await first.opened())["vector_store"].state == HEALTHY
        async with looking(tmp_path, **model_of(server)) as second:
            vectors = (await second.opened())["vector_store"]
    assert vectors.state == UNHEALTHY
    assert "already accessed" in vectors.message
    gc.collect()


async def test_a_folder_that_cannot_be_written_any_more(
    tmp_path: Path, server: EmbeddingServer
) -> None:
    async with looking(tmp_path, **model_of(server)) as here:
        assert (await here.opened())["vector_store"].state == HEALTHY
        shutil.rmtree(tmp_path / "vectors")
        assert (await here.components())["vector_store"].state == UNHEALTHY


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
async def test_a_server_of_vectors_that_is_not_there(
    tmp_path: Path, server: EmbeddingServer
) -> None:
    url = f"http://somebody:{SECRET}@127.0.0.1:1"
    async with looking(tmp_path, qdrant_url=url, qdrant_key=SECRET, **model_of(server)) as here:
        vectors = (await here.opened())["vector_store"]
        assert vectors.state == UNHEALTHY
        assert "refused" in vectors.message
        assert vectors.details["server"] == "127.0.0.1"


async def test_a_server_of_vectors_that_hangs(tmp_path: Path, server: EmbeddingServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with looking(tmp_path, qdrant_url=url, **model_of(server)) as here:
            # It may be about to open until that has failed.
            assert (await here.components())["vector_store"].state == UNKNOWN
            found = await here.opened()
            assert found["vector_store"].state == UNHEALTHY
            # Also while it is tried again.
            assert (await here.components())["vector_store"].state == UNHEALTHY


async def test_what_is_asked_for_and_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: EmbeddingServer
) -> None:
    import importlib.util

    found_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "qdrant_client" else found_spec(name, *rest),
    )
    async with looking(tmp_path, **model_of(server)) as here:
        found = await here.components()
        assert found.keys() == {"embedding_model"}
        assert found["embedding_model"].state == pb.HEALTH_STATE_DEGRADED
    async with looking(tmp_path) as here:
        assert here.checks == {}


async def test_a_use_that_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    uses = Uses()

    async def wait() -> None:
        with uses.one():
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait(), 0.01)
    # Whoever asked may just have gone.
    assert uses.failure is None
    monkeypatch.setattr("bxmesh.server.conversations.archive.uses._PATIENCE_SECONDS", 0.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait(), 0.01)
    assert uses.failure is not None
    assert uses.waiting == 0
    with uses.one():
        pass
    assert uses.failure is None
    assert uses.success is not None
