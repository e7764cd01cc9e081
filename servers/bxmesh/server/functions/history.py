"""The history of executions: written a moment later, many at once, unless it must not be lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.server.database import Database
from bxmesh.server.database.retention import Kept, Retention
from bxmesh.server.database.tables import EXECUTIONS, OPEN_EXECUTION
from bxmesh.server.database.windows import look
from bxmesh.server.errors import MeshError, not_found
from bxmesh.server.functions.records import ENDED, Record, duration_of, microseconds
from bxmesh.server.pages import Batch
from bxmesh.server.streams.ending import Background
from bxmesh.server.time_ids import id_at

__all__ = ["History", "Statistics", "no_such_execution"]

_log = logging.getLogger(__name__)

_C = EXECUTIONS.c
_OPEN = OPEN_EXECUTION
_GATHER_SECONDS = 0.2
_MOST_GATHERED = 10_000
_MOST_GATHERED_BYTES = 64 << 20
_ROWS_AT_ONCE = 500
_BYTES_AT_ONCE = 8 << 20
# With their outputs they may be large.
_ROWS_READ_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures over the executions that are kept and have ended. Durations are in microseconds."""

    executions: int
    completed: int
    limited: int
    p50: int
    p95: int
    p99: int
    last: int
    """The end of the last one, in microseconds since 1970."""


class _Gathered(NamedTuple):
    """What is to be written."""

    record: Record
    size: int


class History(Background):
    """All executions; an async context manager, within which they are written and forgotten."""

    def __init__(self, database: Database, kept: Kept) -> None:
        """Takes how much is kept of those that have ended."""
        self._database = database
        self.retention = Retention(database, _C.execution_id, ~_OPEN, kept)
        """Forgets them."""
        self._gathered: dict[str, _Gathered] = {}
        self._gathered_bytes = 0
        self._some = asyncio.Event()
        self._dropped = 0
        # Made once, as making it takes longer than executing it.
        self._upsert = _upsert(database.dialect)

    def note(self, record: Record) -> None:
        """Remembers how an execution stands; it is written within a moment."""
        name = record.execution.execution_id
        # What it was before counts no more, whether there is room for what it is.
        self._take_out(name)
        size = record.execution.ByteSize()
        if (
            len(self._gathered) >= _MOST_GATHERED
            or self._gathered_bytes + size > _MOST_GATHERED_BYTES
        ):
            # The database is away, or far too slow.
            self._dropped += 1
            return
        self._gathered[name] = _Gathered(record, size)
        self._gathered_bytes += size
        self._some.set()

    def _take_out(self, name: str) -> None:
        if gathered := self._gathered.pop(name, None):
            self._gathered_bytes -= gathered.size

    async def keep(self, record: Record) -> None:
        """Writes how an execution stands now. Raises MeshError UNAVAILABLE without the database."""
        self._take_out(record.execution.execution_id)
        await self._keep([record])

    async def forget(self, execution_id: str) -> None:
        """Removes an execution that never was. Raises likewise."""
        async with self._database.writing() as connection:
            await connection.execute(delete(EXECUTIONS).where(_C.execution_id == execution_id))

    async def get(self, execution_id: str) -> Record:
        """Returns an execution; raises MeshError NOT_FOUND, and UNAVAILABLE without the database."""
        if "\0" in execution_id:
            # PostgreSQL's text holds none.
            raise no_such_execution(execution_id)
        record = await self._look(execution_id)
        if record is None:
            # Another server may be about to write it.
            await asyncio.sleep(2 * _GATHER_SECONDS)
            record = await self._look(execution_id)
        if record is None:
            raise no_such_execution(execution_id)
        return record

    async def _look(self, execution_id: str) -> Record | None:
        if gathered := self._gathered.get(execution_id):
            return gathered.record
        async with self._database.reading() as connection:
            row = (
                await connection.execute(select(EXECUTIONS).where(_C.execution_id == execution_id))
            ).one_or_none()
        # It may have been noted in between.
        if gathered := self._gathered.get(execution_id):
            return gathered.record
        return _record(row) if row else None

    async def count_open(self, owner: str) -> int:
        """Returns how many durable executions of an owner have not ended. Raises MeshError UNAVAILABLE
        without the database."""
        query = select(func.count()).where(_OPEN, _C.owner == owner, _C.durable == 1)
        return await self._database.read(lambda connection: connection.scalar(query)) or 0

    async def open_records(self, after: str, before: float) -> list[Record]:
        """Returns executions that have not ended, of those that began before a time in seconds since
        1970, in the order of their names behind one. Raises likewise."""
        query = (
            select(EXECUTIONS)
            .where(_OPEN, _C.execution_id > after, _C.execution_id < id_at(before))
            .order_by(_C.execution_id)
            .limit(_ROWS_READ_AT_ONCE)
        )
        async with self._database.reading() as connection:
            return [_record(row) for row in await connection.execute(query)]

    async def page(
        self,
        before: str,
        *,
        owner: str = "",
        name: str = "",
        version: str = "",
        states: Sequence[int] = (),
    ) -> Batch[pb.Execution]:
        """Returns executions, the newest first, without what they printed; those older than
        `before`, unless it is empty."""
        await self._flush()
        query = select(_C.execution_id, _C.execution)
        for wanted, column in (
            (owner, _C.owner),
            (name, _C.function_name),
            (version, _C.function_version),
        ):
            if wanted:
                query = query.where(column == wanted)
        if states:
            query = query.where(_C.state.in_(states))
        async with self._database.reading() as connection:
            found = await look(
                connection,
                query,
                _C.execution_id,
                before,
                _ROWS_READ_AT_ONCE,
                within=_C.owner == owner if owner else None,
                newest_first=True,
            )
        return Batch([pb.Execution.FromString(row.execution) for row in found.rows], found.end)

    async def statistics(self, name: str, version: str) -> Statistics:
        """Returns the figures of a function; of all its versions when that is empty."""
        await self._flush()
        ours = (_C.function_name == name) & _C.state.in_(ENDED)
        if version:
            ours &= _C.function_version == version
        async with self._database.reading() as connection:
            rows = (
                await connection.execute(
                    select(_C.state, func.count(), func.max(_C.end_time))
                    .where(ours)
                    .group_by(_C.state)
                )
            ).all()
            counts = {state: count for state, count, _ in rows}
            timed = ours & (_C.duration >= 0)
            total = await connection.scalar(
                select(func.count()).select_from(EXECUTIONS).where(timed)
            )
            p50, p95, p99 = [
                await self._quantile(connection, timed, total or 0, fraction)
                for fraction in (0.5, 0.95, 0.99)
            ]
        return Statistics(
            sum(counts.values()),
            counts.get(pb.EXECUTION_STATE_COMPLETED, 0),
            counts.get(pb.EXECUTION_STATE_LIMIT_EXCEEDED, 0),
            p50,
            p95,
            p99,
            max((last for _, _, last in rows), default=0),
        )

    @staticmethod
    async def _quantile(
        connection: AsyncConnection, which: ColumnElement[bool], total: int, fraction: float
    ) -> int:
        found = await connection.scalar(
            select(_C.duration)
            .where(which)
            .order_by(_C.duration)
            .offset(max(0, min(total - 1, int(total * fraction))))
            .limit(1)
        )
        return found or 0

    # Keeping

    async def _run(self) -> None:
        try:
            while True:
                await self._some.wait()
                await asyncio.sleep(_GATHER_SECONDS)
                await self._flush_or_wait()
        finally:
            await self._flush_or_wait()

    async def _flush_or_wait(self) -> None:
        try:
            await self._flush()
        except MeshError as error:
            _log.warning("executions wait to be written: %s", error.message)
            await asyncio.sleep(1.0)
        if self._dropped:
            _log.warning("%d executions are missing in the history", self._dropped)
            self._dropped = 0

    async def _flush(self) -> None:
        """Writes what is there now; what comes meanwhile waits for the next time."""
        self._some.clear()
        try:
            for batch in _batches(list(self._gathered.values())):
                await self._keep(each.record for each in batch)
                for each in batch:
                    name = each.record.execution.execution_id
                    if self._gathered.get(name) is each:
                        self._take_out(name)
        finally:
            if self._gathered:
                self._some.set()

    async def _keep(self, records: Iterable[Record]) -> None:
        rows = [_row(record) for record in records]
        await self._database.write(lambda connection: connection.execute(self._upsert, rows))
        for row in rows:
            if row["state"] in ENDED:
                self.retention.wrote(row["owner"], row["size"])


def _batches(gathered: Sequence[_Gathered]) -> Iterator[list[_Gathered]]:
    """Parts that are written at once: they are copied for that."""
    batch: list[_Gathered] = []
    size = 0
    for each in gathered:
        if batch and (len(batch) == _ROWS_AT_ONCE or size + each.size > _BYTES_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each.size
    if batch:
        yield batch


def _upsert(dialect: str) -> Any:
    new: Any = (sqlite if dialect == "sqlite" else postgresql).insert(EXECUTIONS)
    changed = ("state", "end_time", "duration", "execution", "printed", "size")
    return new.on_conflict_do_update(
        index_elements=[_C.execution_id],
        set_={name: new.excluded[name] for name in changed},
        # What has ended stays as it is. Many rows at once take no literals.
        where=_C.state < min(ENDED),
    )


def _row(record: Record) -> dict[str, Any]:
    execution = pb.Execution()
    execution.CopyFrom(record.execution)
    execution.ClearField("printed")
    data = execution.SerializeToString()
    # PostgreSQL's text holds no zero bytes.
    printed = record.execution.printed.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return {
        "execution_id": execution.execution_id,
        "function_name": execution.function_name,
        "function_version": execution.function_version,
        "owner": execution.owner,
        "state": execution.state,
        "durable": int(record.durable),
        "end_time": microseconds(execution.end_time),
        "duration": duration_of(execution),
        "execution": data,
        "printed": printed,
        "size": len(data) + len(printed.encode()),
    }


def _record(row: Any) -> Record:
    execution = pb.Execution.FromString(row.execution)
    execution.printed = row.printed
    return Record(execution, bool(row.durable))


def no_such_execution(execution_id: str) -> MeshError:
    """The error for an execution that there is not, or no longer, or that the caller does not see."""
    return not_found(
        f"There is no execution {execution_id}; they are kept for some time only.",
        reason="EXECUTION_NOT_FOUND",
        execution_id=execution_id,
    )
