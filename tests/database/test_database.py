"""The database on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, func, insert, inspect, select
from sqlalchemy.exc import IntegrityError

from bxmesh.server.database import Database, open_database
from bxmesh.server.database.migration import downgrade, upgrade
from bxmesh.server.database.tables import FUNCTIONS, METADATA
from bxmesh.server.errors import MeshError


def ours(name: str | None, *_: object) -> bool:
    """An index of words is a table of each database's own kind, which METADATA cannot describe;
    tests/conversations has its tests."""
    return not (name or "").startswith("conversation_search")


def tables(connection: Connection) -> set[str]:
    return set(filter(ours, inspect(connection).get_table_names())) - {"alembic_version"}


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"include_name": ours})
    return list(compare_metadata(context, METADATA))


async def names(database: Database) -> list[str]:
    async with database.reading() as connection:
        return list(await connection.scalars(select(FUNCTIONS.c.name).order_by(FUNCTIONS.c.name)))


async def test_the_migrations_make_the_tables_that_the_code_uses(database_url: str) -> None:
    async with open_database(database_url) as database, database.writing() as connection:
        assert await connection.run_sync(tables) == set(METADATA.tables)
        assert await connection.run_sync(differences) == []


async def test_down_and_up_again(database_url: str) -> None:
    async with open_database(database_url) as database:
        async with database.writing() as connection:
            await connection.execute(insert(FUNCTIONS).values(name="a", owner="alice"))
        async with database.writing() as connection:
            await connection.run_sync(downgrade)
        async with database.writing() as connection:
            assert await connection.run_sync(tables) == set()
            await connection.run_sync(upgrade)
            assert await connection.run_sync(tables) == set(METADATA.tables)
        assert await names(database) == []


async def test_servers_that_start_at_once_migrate_once(database_url: str) -> None:
    async def start(index: int) -> None:
        async with open_database(database_url) as database, database.writing() as connection:
            await connection.execute(insert(FUNCTIONS).values(name=f"f{index}", owner="alice"))

    await asyncio.gather(*(start(index) for index in range(6)))
    async with open_database(database_url) as database:
        assert await names(database) == [f"f{index}" for index in range(6)]


async def test_what_fails_leaves_nothing(database_url: str) -> None:
    async with open_database(database_url) as database:
        with pytest.raises(IntegrityError):
            async with database.writing() as connection:
                for _ in range(2):
                    await connection.execute(insert(FUNCTIONS).values(name="twice", owner="a"))
        assert await names(database) == []


async def test_many_write_at_once(database_url: str) -> None:
    async with open_database(database_url) as database:

        async def write(index: int) -> None:
            async with database.writing() as connection:
                count = await connection.scalar(select(func.count()).select_from(FUNCTIONS))
                await connection.execute(
                    insert(FUNCTIONS).values(name=f"f{index}-{count}", owner="alice")
                )

        await asyncio.gather(*(write(index) for index in range(30)))
        assert len(await names(database)) == 30


async def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    path.write_bytes(b"no database at all, " * 100)
    with pytest.raises(OSError, match=r"mesh\.db cannot be used: file is not a database"):
        async with open_database(f"sqlite:///{path}"):
            pass


async def test_nobody_there_is_said_without_the_password() -> None:
    with pytest.raises(OSError, match="cannot be used") as raised:
        async with open_database("postgresql://user:hunter2@127.0.0.1:1/mesh"):
            pass
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("url", ["mysql://host/name", "nonsense", "sqlite", ""])
async def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite"):
        async with open_database(url):
            pass


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "mesh.db"
    async with open_database(f"sqlite:///{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_tables_that_are_gone_are_unavailable_not_a_crash(tmp_path: Path) -> None:
    async with open_database(f"sqlite:///{tmp_path / 'mesh.db'}") as database:
        async with database.writing() as connection:
            await connection.run_sync(downgrade)
        with pytest.raises(MeshError) as raised:
            await names(database)
        assert raised.value.reason == "DATABASE_UNAVAILABLE"


async def test_a_database_that_is_locked_for_too_long_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bxmesh.server.database.engine._BUSY_SECONDS", 0.1)
    path = tmp_path / "mesh.db"
    async with open_database(f"sqlite:///{path}") as database:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(MeshError) as raised:
                async with database.writing():
                    pass
            assert raised.value.reason == "DATABASE_UNAVAILABLE"
            assert await names(database) == []
            other.execute("ROLLBACK")
        async with database.writing() as connection:
            await connection.execute(insert(FUNCTIONS).values(name="a", owner="alice"))
        assert await names(database) == ["a"]


async def test_who_is_cancelled_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    async with open_database(f"sqlite:///{tmp_path / 'mesh.db'}") as database:
        for turns in range(60):
            tasks = [asyncio.create_task(names(database)) for _ in range(4)]
            for _ in range(turns % 20):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await asyncio.gather(*(names(database) for _ in range(8))) == [[]] * 8
