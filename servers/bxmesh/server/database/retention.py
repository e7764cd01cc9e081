"""What has ended is kept for a while, of each owner so much: the oldest goes first."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, delete, func, select

from bxmesh.server.database.engine import Database
from bxmesh.server.errors import MeshError
from bxmesh.server.streams.ending import Background
from bxmesh.server.time_ids import id_at

__all__ = ["Kept", "Retention"]

_log = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0
# What may be written before it is looked at again, whoever wrote it.
_MOST_WRITES = 10_000
_MOST_BYTES = 64 << 20
# Others want to write meanwhile.
_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Kept:
    """How much is kept."""

    days: float
    """How long."""
    most: int
    """Rows of one owner."""
    most_bytes: int
    """Bytes of one owner."""


class Retention(Background):
    """Deletes rows that have ended; an async context manager, within which it does so by itself.

    The table has an owner and a size, and names that grow with time.
    """

    def __init__(
        self, database: Database, name: ColumnElement[Any], ended: ColumnElement[bool], kept: Kept
    ) -> None:
        """Takes the column of the names, and which rows have ended: others stay whatever happens."""
        self._database = database
        self._name = name
        self._table: Any = name.table
        self._ended = ended
        self._kept = kept
        self._owners: set[str] = set()
        self._writes = 0
        self._bytes = 0
        self._due = asyncio.Event()

    def wrote(self, owner: str, size: int) -> None:
        """To be told of every row that has ended."""
        self._owners.add(owner)
        self._writes += 1
        self._bytes += size
        if self._writes >= _MOST_WRITES or self._bytes >= _MOST_BYTES:
            self._due.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_SECONDS):
                    await self._due.wait()
            try:
                await self.sweep()
            except MeshError as error:
                _log.warning("old %s stay for now: %s", self._table.name, error.message)
                await asyncio.sleep(1.0)

    async def sweep(self) -> None:
        """Deletes what is too much of those who have written since the last time, and what is too
        old. Raises MeshError UNAVAILABLE without the database."""
        self._due.clear()
        self._writes = self._bytes = 0
        await self._delete(self._name < id_at(time.time() - self._kept.days * 86400.0))
        for owner in list(self._owners):
            self._owners.discard(owner)
            try:
                await self._shorten(owner)
            except MeshError:
                self._owners.add(owner)
                raise

    async def _shorten(self, owner: str) -> None:
        table, name = self._table, self._name
        newest_first = name.desc()
        counted = (
            select(
                name.label("name"),
                func.row_number().over(order_by=newest_first).label("rows"),
                func.sum(table.c.size).over(order_by=newest_first).label("bytes"),
            )
            .where(table.c.owner == owner, self._ended)
            .subquery()
        )
        over = (counted.c.rows > self._kept.most) | (counted.c.bytes > self._kept.most_bytes)
        query = select(func.max(counted.c.name)).where(over)
        last = await self._database.read(lambda connection: connection.scalar(query))
        if last is not None:
            await self._delete(table.c.owner == owner, name <= last)

    async def _delete(self, *which: ColumnElement[bool]) -> None:
        some = select(self._name).where(self._ended, *which).order_by(self._name)
        statement = delete(self._table).where(self._name.in_(some.limit(_ROWS_AT_ONCE)))
        while True:
            result: CursorResult[Any] = await self._database.write(
                lambda connection: connection.execute(statement)
            )
            if result.rowcount < _ROWS_AT_ONCE:
                return
