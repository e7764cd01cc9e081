"""Definitions in the database: versions that never change, and which of them runs."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import grpc
from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from bxmesh.registry.v1 import agent_definition_pb2 as pb
from bxmesh.server.database import Database
from bxmesh.server.database.holdings import Holdings
from bxmesh.server.database.tables import COUNTERS, DEFINITION_VERSIONS, DEFINITIONS
from bxmesh.server.database.windows import look
from bxmesh.server.errors import MeshError, not_found, permission_denied
from bxmesh.server.pages import Batch
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.ownership import may_change

__all__ = ["Change", "DefinitionStore", "no_such_definition"]

_D, _V = DEFINITIONS.c, DEFINITION_VERSIONS.c
_COUNTER = "definitions"
_FORGOTTEN = "definitions forgotten"
"""The revision of the last deletion that is not told any more."""
_MOST_DELETED = 10_000
# They may be large.
_ROWS_AT_ONCE = 20
RUNNING = (pb.DEFINITION_STATE_ACTIVE, pb.DEFINITION_STATE_DRAINING)
"""States in which there may be agents."""


@dataclass(frozen=True, slots=True)
class Change:
    """How a definition stands after a change."""

    definition: pb.AgentDefinition
    deleted: bool


class DefinitionStore:
    """All definitions. Methods raise MeshError UNAVAILABLE without the database."""

    def __init__(self, database: Database, holdings: Holdings) -> None:
        """Takes how much an owner may keep."""
        self._database = database
        self._holdings = holdings

    async def create(
        self, definition: pb.AgentDefinition, identity: Identity
    ) -> pb.AgentDefinition:
        """Stores a new definition as a draft; raises MeshError ALREADY_EXISTS, and RESOURCE_EXHAUSTED
        when its owner would have too much."""
        name = definition.definition_id
        async with self._database.writing() as connection:
            revision = await _count(connection)
            known = await self._row(connection, name, deleted=True)
            if known is not None and not known.deleted:
                raise _exists(name)
            if known is not None:
                await connection.execute(delete(DEFINITIONS).where(_D.definition_id == name))
            try:
                await connection.execute(
                    insert(DEFINITIONS).values(
                        definition_id=name,
                        owner=identity.id,
                        state=pb.DEFINITION_STATE_DRAFT,
                        newest_version=1,
                        active_version=0,
                        revision=revision,
                        deleted=0,
                        create_time=_now(),
                        update_time=_now(),
                        size=0,
                    )
                )
            except IntegrityError:
                raise _exists(name) from None
            await self._add_version(connection, definition, 1, identity.id)
            return await self._read(connection, name, 0)

    async def update(
        self, definition: pb.AgentDefinition, identity: Identity, expected_revision: int
    ) -> pb.AgentDefinition:
        """Stores a new version, which does not run yet. Raises MeshError NOT_FOUND,
        PERMISSION_DENIED, ABORTED, and RESOURCE_EXHAUSTED when its owner would have too much."""
        name = definition.definition_id
        async with self._database.writing() as connection:
            revision = await _count(connection)
            row = await self._own(connection, name, identity, expected_revision)
            version = row.newest_version + 1
            await self._add_version(connection, definition, version, row.owner)
            await self._set(connection, name, revision, newest_version=version)
            return await self._read(connection, name, 0)

    async def set_state(
        self,
        name: str,
        state: pb.DefinitionState.ValueType,
        version: int,
        identity: Identity | None,
    ) -> pb.AgentDefinition:
        """Sets the state and the version that runs; the mesh itself needs no identity. Raises MeshError
        NOT_FOUND and PERMISSION_DENIED."""
        async with self._database.writing() as connection:
            revision = await _count(connection)
            row = await self._own(connection, name, identity, 0)
            await self._read(connection, name, version)
            active = 0
            if state == pb.DEFINITION_STATE_ACTIVE:
                active = version or row.newest_version
            elif state == pb.DEFINITION_STATE_DRAINING:
                active = row.active_version
                if not active:
                    # There is nothing to finish.
                    state = pb.DEFINITION_STATE_INACTIVE
            if (row.state, row.active_version) != (state, active):
                await self._set(connection, name, revision, state=state, active_version=active)
            return await self._read(connection, name, active)

    async def delete(self, name: str, identity: Identity, expected_revision: int) -> None:
        """Deletes a definition with its versions. Raises MeshError NOT_FOUND, PERMISSION_DENIED,
        ABORTED, and FAILED_PRECONDITION while it runs."""
        async with self._database.writing() as connection:
            revision = await _count(connection)
            row = await self._own(connection, name, identity, expected_revision)
            if row.state in RUNNING:
                raise MeshError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "DEFINITION_ACTIVE",
                    f"{name} is {'active' if row.state == RUNNING[0] else 'draining'}. "
                    "Drain it first, and wait until it is inactive.",
                    precondition_violations=[("DEFINITION_ACTIVE", name, "it has agents")],
                )
            await connection.execute(delete(DEFINITION_VERSIONS).where(_V.definition_id == name))
            await self._set(connection, name, revision, deleted=1, active_version=0, size=0)
            await self._forget_deleted(connection)

    async def get(self, name: str, version: int = 0) -> pb.AgentDefinition:
        """Returns a definition in a version, by default the newest; raises MeshError NOT_FOUND."""
        async with self._database.reading() as connection:
            return await self._read(connection, name, version)

    async def page(self, after: str, states: Collection[int] = ()) -> Batch[pb.AgentDefinition]:
        """Returns definitions in their newest version by name, of those after a name; in some states
        only, unless there are none."""
        query = (
            select(DEFINITIONS, _V.version, _V.definition)
            .join(
                DEFINITION_VERSIONS,
                (_V.definition_id == _D.definition_id) & (_V.version == _D.newest_version),
            )
            .where(_D.deleted == 0)
        )
        if states:
            query = query.where(_D.state.in_(states))
        async with self._database.reading() as connection:
            found = await look(connection, query, _D.definition_id, after, _ROWS_AT_ONCE)
        return Batch([_definition(row) for row in found.rows], found.end)

    async def running(
        self, after: int, until: int, owners: Collection[str] = ()
    ) -> list[pb.AgentDefinition]:
        """Returns the first that are active or draining, each in the version that runs, by revision:
        of those after one and until another, and of some owners only, unless there are none."""
        query = (
            select(DEFINITIONS, _V.version, _V.definition)
            .join(
                DEFINITION_VERSIONS,
                (_V.definition_id == _D.definition_id) & (_V.version == _D.active_version),
            )
            .where(_D.deleted == 0, _D.state.in_(RUNNING))
            .where(_D.revision > after, _D.revision <= until)
            .order_by(_D.revision)
            .limit(_ROWS_AT_ONCE)
        )
        if owners:
            query = query.where(_D.owner.in_(owners))
        async with self._database.reading() as connection:
            return [_definition(row) for row in await connection.execute(query)]

    async def versions(self, name: str, below: int) -> Batch[pb.AgentDefinition]:
        """Returns versions of a definition, the newest first, of those below a number; raises MeshError
        NOT_FOUND when there are none."""
        async with self._database.reading() as connection:
            rows = await connection.execute(
                select(DEFINITIONS, _V.version, _V.definition)
                .join(DEFINITION_VERSIONS, _V.definition_id == _D.definition_id)
                .where(_D.definition_id == name, _D.deleted == 0, _V.version < below)
                .order_by(_V.version.desc())
                .limit(_ROWS_AT_ONCE)
            )
            found = [_definition(row) for row in rows]
        if not found:
            raise no_such_definition(name)
        # The first is 1.
        return Batch(found, str(found[-1].version) if found[-1].version > 1 else "")

    async def changes(self, after: int) -> list[Change]:
        """Returns the first definitions that have changed after a revision, by revision. Raises
        MeshError OUT_OF_RANGE when not all are known any more."""
        async with self._database.reading() as connection:
            rows = (
                await connection.execute(
                    select(DEFINITIONS)
                    .where(_D.revision > after)
                    .order_by(_D.revision)
                    .limit(_ROWS_AT_ONCE)
                )
            ).all()
            # What was forgotten before they were read is seen now.
            if after < await _value(connection, _FORGOTTEN):
                raise MeshError(
                    grpc.StatusCode.OUT_OF_RANGE,
                    "REVISION_COMPACTED",
                    f"The deletions after revision {after} are not kept any more. Begin again at 0, "
                    "and let go of what is not told then.",
                    metadata={"after_revision": str(after)},
                )
            return [
                Change(
                    pb.AgentDefinition(definition_id=row.definition_id, revision=row.revision)
                    if row.deleted
                    else await self._read(connection, row.definition_id, row.active_version),
                    bool(row.deleted),
                )
                for row in rows
            ]

    async def revision(self) -> int:
        """Returns the revision of the last change; 0 before the first."""
        async with self._database.reading() as connection:
            return await _value(connection, _COUNTER)

    # Rows

    async def _forget_deleted(self, connection: AsyncConnection) -> None:
        """Lets no more stay than those who follow may be behind."""
        last = await connection.scalar(
            select(_D.revision)
            .where(_D.deleted == 1)
            .order_by(_D.revision.desc())
            .offset(_MOST_DELETED)
            .limit(1)
        )
        if last is not None:
            await connection.execute(
                delete(DEFINITIONS).where(_D.deleted == 1, _D.revision <= last)
            )
            # Whoever writes has counted, so nobody else does.
            told = COUNTERS.c.name == _FORGOTTEN
            await connection.execute(delete(COUNTERS).where(told))
            await connection.execute(insert(COUNTERS).values(name=_FORGOTTEN, value=last))

    async def _row(
        self, connection: AsyncConnection, name: str, *, deleted: bool = False
    ) -> Row[Any] | None:
        row = (
            await connection.execute(select(DEFINITIONS).where(_D.definition_id == name))
        ).one_or_none()
        return row if row is not None and (deleted or not row.deleted) else None

    async def _own(
        self,
        connection: AsyncConnection,
        name: str,
        identity: Identity | None,
        expected_revision: int,
    ) -> Row[Any]:
        row = await self._row(connection, name)
        if row is None:
            raise no_such_definition(name)
        if identity is not None and not may_change(identity, row.owner):
            raise permission_denied(f"The definition {name} is another's.", reason="NOT_THE_OWNER")
        if expected_revision and row.revision != expected_revision:
            raise MeshError(
                grpc.StatusCode.ABORTED,
                "REVISION_MISMATCH",
                f"{name} is at revision {row.revision}, not {expected_revision}. Read it again.",
                metadata={"revision": str(row.revision)},
            )
        return row

    async def _add_version(
        self, connection: AsyncConnection, definition: pb.AgentDefinition, version: int, owner: str
    ) -> None:
        stored = pb.AgentDefinition()
        stored.CopyFrom(definition)
        clear_output_only(stored)
        await connection.execute(
            insert(DEFINITION_VERSIONS).values(
                definition_id=definition.definition_id,
                version=version,
                definition=stored.SerializeToString(),
            )
        )
        name = definition.definition_id
        size = select(func.sum(func.length(_V.definition))).where(_V.definition_id == name)
        await connection.execute(
            update(DEFINITIONS).where(_D.definition_id == name).values(size=size.scalar_subquery())
        )
        count, total = (
            await connection.execute(
                select(func.count(), func.sum(_D.size)).where(_D.owner == owner, _D.deleted == 0)
            )
        ).one()
        self._holdings.require(owner, name, count, version, int(total))

    async def _set(
        self, connection: AsyncConnection, name: str, revision: int, **values: Any
    ) -> None:
        await connection.execute(
            update(DEFINITIONS)
            .where(_D.definition_id == name)
            .values(revision=revision, update_time=_now(), **values)
        )

    async def _read(
        self, connection: AsyncConnection, name: str, version: int
    ) -> pb.AgentDefinition:
        wanted = _V.version == (version or _D.newest_version)
        row = (
            await connection.execute(
                select(DEFINITIONS, _V.version, _V.definition)
                .join(DEFINITION_VERSIONS, _V.definition_id == _D.definition_id)
                .where(_D.definition_id == name, _D.deleted == 0, wanted)
            )
        ).one_or_none()
        if row is None:
            raise no_such_definition(name, version)
        return _definition(row)


async def _value(connection: AsyncConnection, counter: str) -> int:
    found = await connection.scalar(select(COUNTERS.c.value).where(COUNTERS.c.name == counter))
    return found or 0


async def _count(connection: AsyncConnection) -> int:
    """The next revision; others wait for it until this transaction has ended."""
    for _ in range(2):
        counted = await connection.execute(
            update(COUNTERS)
            .where(COUNTERS.c.name == _COUNTER)
            .values(value=COUNTERS.c.value + 1)
            .returning(COUNTERS.c.value)
        )
        if (value := counted.scalar_one_or_none()) is not None:
            return int(value)
        try:
            async with connection.begin_nested():
                await connection.execute(insert(COUNTERS).values(name=_COUNTER, value=0))
        except IntegrityError:
            continue
    raise RuntimeError("the counter of definitions cannot be counted on")


def clear_output_only(definition: pb.AgentDefinition) -> None:
    """Clears what callers do not set."""
    definition.ClearField("state")
    definition.ClearField("version")
    definition.ClearField("owner")
    definition.ClearField("create_time")
    definition.ClearField("update_time")
    definition.ClearField("revision")
    definition.ClearField("active_version")


def _definition(row: Any) -> pb.AgentDefinition:
    definition = pb.AgentDefinition.FromString(row.definition)
    definition.state = row.state
    definition.version = row.version
    definition.active_version = row.active_version
    definition.owner = row.owner
    definition.revision = row.revision
    definition.create_time.FromMicroseconds(row.create_time)
    definition.update_time.FromMicroseconds(row.update_time)
    return definition


def _now() -> int:
    return time.time_ns() // 1000


def _exists(name: str) -> MeshError:
    return MeshError(
        grpc.StatusCode.ALREADY_EXISTS,
        "DEFINITION_EXISTS",
        f"There is a definition {name}. Update it, or take another name.",
        metadata={"definition_id": name},
    )


def no_such_definition(name: str, version: int = 0) -> MeshError:
    """The error for a definition that there is not."""
    return not_found(
        f"There is no definition {name}{f' in version {version}' if version else ''}.",
        reason="DEFINITION_NOT_FOUND",
        definition_id=name,
    )
