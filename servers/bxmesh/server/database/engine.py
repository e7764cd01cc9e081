"""The connection to the database, brought up to date when it is opened."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from bxmesh.server.database.migration import upgrade
from bxmesh.server.errors import MeshError, unavailable

__all__ = ["Database", "database_url", "look_at", "open_database", "shown_url"]

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 2.0
_BUSY_SECONDS = 10.0
_POOL = 8
_WRITES = "bxmesh_writes"
# One writes at a time anyway.
_THREADS = 2

T = TypeVar("T")


class Database:
    """Transactions, each on a connection of its own.

    What the database does not do, because it is away, locked for too long or full, is a MeshError
    UNAVAILABLE; a violated constraint stays an IntegrityError for the caller.
    """

    def __init__(self, engine: AsyncEngine, threads: _Threads | None = None) -> None:
        self._engine = engine
        self._threads = threads
        self.dialect = engine.dialect.name
        """`sqlite` or `postgresql`."""

    async def answers(self) -> bool:
        """Whether it does, within a moment."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS), self.reading() as connection:
                await connection.execute(text("SELECT 1"))
        except (MeshError, TimeoutError):
            return False
        return True

    async def read(self, work: Callable[[Connection], T]) -> T:
        """A transaction that only reads, done at once by a function: of SQLite it takes one turn of a
        thread instead of one for each operation, which is for what is asked often."""
        with database_errors():
            if self._threads is not None:
                return await self._threads.do(work, writes=False)
            async with self.reading() as connection:
                return await connection.run_sync(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """A transaction that is kept when the function returns, likewise."""
        with database_errors():
            if self._threads is not None:
                return await self._threads.do(work, writes=True)
            async with self.writing() as connection:
                return await connection.run_sync(work)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads."""
        with database_errors():
            async with self._engine.connect() as connection, connection.begin():
                yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is kept when the block ends without an error."""
        with database_errors():
            async with self._engine.connect() as connection:
                await connection.execution_options(**{_WRITES: True})
                async with connection.begin():
                    yield connection


class _Threads:
    """Threads that do whole transactions of SQLite."""

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(
            url.set(drivername="sqlite"),
            pool_size=_POOL,
            max_overflow=_POOL,
            pool_reset_on_return=None,
            connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
        )
        event.listen(self._engine, "connect", _connected)
        self._threads = ThreadPoolExecutor(_THREADS, "database")

    async def do(self, work: Callable[[Connection], T], *, writes: bool) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._transact, work, writes)

    def _transact(self, work: Callable[[Connection], T], writes: bool) -> T:
        with self._engine.connect() as connection, connection.begin():
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
            return work(connection)

    def close(self) -> None:
        self._threads.shutdown()
        self._engine.dispose()


@contextlib.asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """Opens a database by URL and brings its tables up to date. Raises OSError, which says why, when
    it cannot be used."""
    parsed = database_url(url)
    engine = _engine(parsed)
    threads = _Threads(parsed) if parsed.get_backend_name() == "sqlite" else None
    try:
        try:
            async with engine.connect() as connection:
                await connection.execution_options(**{_WRITES: True})
                async with connection.begin():
                    await connection.run_sync(upgrade)
        except (SQLAlchemyError, OSError) as error:
            raise OSError(
                f"The database {shown_url(url)} cannot be used: {_first_line(error)}"
            ) from error
        yield Database(engine, threads)
    finally:
        if threads is not None:
            await asyncio.to_thread(threads.close)
        await engine.dispose()


async def look_at(url: str) -> None:
    """Asks a database something, and changes nothing. Raises OSError, which says why, when it does not
    answer."""
    engine = _engine(database_url(url))
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError) as error:
        raise OSError(_first_line(error)) from error
    finally:
        await engine.dispose()


def shown_url(url: str) -> str:
    """Returns a URL as people may see it: without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "the database"


def database_url(given: str) -> URL:
    """Returns the URL with the driver that we use; raises ValueError for what is none of ours."""
    try:
        url = make_url(given)
    except ArgumentError:
        raise ValueError("must be a URL, sqlite:///PATH or postgresql://USER@HOST/NAME") from None
    driver = _DRIVERS.get(url.get_backend_name())
    if driver is None:
        raise ValueError(f"{url.get_backend_name()} is neither sqlite nor postgresql")
    return url.set(drivername=driver)


@contextlib.contextmanager
def database_errors() -> Any:
    """Turns the database being away, or refusing, into a MeshError UNAVAILABLE."""
    try:
        yield
    except DBAPIError as error:
        if type(error).__name__ == "IntegrityError":
            raise
        raise _away(_first_line(error)) from error
    # Beginning a transaction of SQLite raises what its driver raises.
    except (PoolTimeoutError, OSError, sqlite3.Error) as error:
        raise _away(_first_line(error)) from error


def _away(why: str) -> MeshError:
    return unavailable(
        f"The database does not answer as it should: {why[:120]}",
        retry_after=1.0,
        reason="DATABASE_UNAVAILABLE",
    )


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _engine(url: URL) -> AsyncEngine:
    if url.get_backend_name() != "sqlite":
        return create_async_engine(
            url,
            pool_size=_POOL,
            max_overflow=_POOL,
            pool_timeout=_CONNECT_SECONDS,
            pool_pre_ping=True,
            connect_args={"timeout": _CONNECT_SECONDS},
        )
    if url.database:
        # What is kept there concerns its owner only.
        Path(url.database).touch(mode=0o600)
    # Each operation is a turn of a thread. Transactions end by themselves, so that a connection that
    # comes back needs none.
    engine = create_async_engine(
        url,
        pool_size=_POOL,
        max_overflow=_POOL,
        pool_reset_on_return=None,
        connect_args={"timeout": _BUSY_SECONDS},
    )

    event.listen(engine.sync_engine, "connect", _connected)

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        driver = connection.connection.driver_connection
        try:
            await_only(driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN"))
        except BaseException:
            # When whoever waits for it is cancelled it begins nevertheless, and whoever gets the
            # connection next would be in the middle of it.
            connection.invalidate()
            raise

    return engine


def _connected(connection: Any, record: object) -> None:
    # The driver would begin transactions by itself, and too late for the lock of a writer.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # Like Redis, which writes to the disk once a second: a process that is killed loses nothing, a
    # machine that is switched off may lose the last moment.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
