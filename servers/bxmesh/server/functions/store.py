"""Functions in the database: a version that is stored never changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from sqlalchemy import ColumnElement, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.server.database import Database
from bxmesh.server.database.holdings import Holdings
from bxmesh.server.database.tables import FUNCTION_ALIASES, FUNCTION_VERSIONS, FUNCTIONS
from bxmesh.server.database.visibility import seen_rows
from bxmesh.server.database.windows import look
from bxmesh.server.errors import MeshError, not_found, permission_denied, resource_exhausted
from bxmesh.server.functions.versions import LATEST, is_version, next_version, sort_key
from bxmesh.server.pages import Batch
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.ownership import may_change, sees

__all__ = ["FunctionStore", "Stored", "no_such_function"]

_VERSIONS, _ALIASES = FUNCTION_VERSIONS.c, FUNCTION_ALIASES.c
_MOST_ALIASES = 64
# With their code they may be large.
_ROWS_AT_ONCE = 20
_LOCK_OWNER = text("SELECT pg_advisory_xact_lock(hashtext(:what))")


@dataclass(frozen=True, slots=True)
class Stored:
    """A version as it is stored."""

    function: pb.Function
    """With its aliases."""
    team: str
    """Who sees it besides; empty for no team."""

    def seen_by(self, identity: Identity) -> bool:
        """Whether an identity sees it."""
        function = self.function
        return sees(identity, function.owner, visibility=function.visibility, team=self.team)


class FunctionStore:
    """All functions. Methods raise MeshError UNAVAILABLE without the database."""

    def __init__(self, database: Database, holdings: Holdings) -> None:
        """Takes how much an owner may keep."""
        self._database = database
        self._holdings = holdings

    async def create(
        self,
        function: pb.Function,
        identity: Identity,
        team: str,
        aliases: Sequence[str],
        *,
        only_checked: bool = False,
    ) -> tuple[Stored, bool]:
        """Stores a version; the aliases, and `latest`, mean it from then on. The one with the same
        content, when there is one, gets what does not decide what it does. Also returns whether it
        was there. What is only checked is as it was afterwards.

        Raises MeshError ALREADY_EXISTS for another content under the same version,
        PERMISSION_DENIED when the name is another's, and RESOURCE_EXHAUSTED when its owner would
        have too much.
        """
        async with self._database.writing() as connection, connection.begin_nested() as attempt:
            stored = await self._create(connection, function, identity, team, aliases)
            if only_checked:
                await attempt.rollback()
            return stored

    async def _create(
        self,
        connection: AsyncConnection,
        function: pb.Function,
        identity: Identity,
        team: str,
        aliases: Sequence[str],
    ) -> tuple[Stored, bool]:
        name = function.name
        owner = await self._take_name(connection, name, identity)
        rows = (
            await connection.execute(
                select(_VERSIONS.version, _VERSIONS.digest).where(_VERSIONS.name == name)
            )
        ).all()
        same = next((row.version for row in rows if row.digest == function.digest), None)
        version = same or function.version or next_version(row.version for row in rows)
        if not same and any(row.version == version for row in rows):
            raise MeshError(
                grpc.StatusCode.ALREADY_EXISTS,
                "VERSION_EXISTS",
                f"{name} {version} is there with another content. "
                "Take another version, or none to let the server count on.",
                metadata={"version": version},
            )
        stored = pb.Function()
        stored.CopyFrom(function)
        stored.version, stored.owner = version, owner
        stored.ClearField("aliases")
        stored.ClearField("visibility")
        if same:
            before = await self._find(connection, name, version)
            stored.create_time.CopyFrom(before.function.create_time)
        else:
            stored.create_time.GetCurrentTime()
        values = {
            "team": team,
            "visibility": function.visibility,
            "function": stored.SerializeToString(),
        }
        if same:
            one = (_VERSIONS.name == name) & (_VERSIONS.version == version)
            await connection.execute(update(FUNCTION_VERSIONS).where(one).values(**values))
        else:
            await connection.execute(
                insert(FUNCTION_VERSIONS).values(
                    name=name,
                    version=version,
                    sort_key=sort_key(version),
                    digest=function.digest,
                    **values,
                )
            )
        await self._measure(connection, name)
        count, size = (
            await connection.execute(
                select(func.count(), func.sum(FUNCTIONS.c.size)).where(FUNCTIONS.c.owner == owner)
            )
        ).one()
        self._holdings.require(owner, name, count, len(rows) + (not same), int(size))
        for alias in {*aliases, LATEST}:
            await self._point(connection, name, alias, version)
        return await self._find(connection, name, version), same is not None

    async def require_owner(self, name: str, identity: Identity) -> str:
        """Returns whose function it is. Raises MeshError NOT_FOUND, and PERMISSION_DENIED unless the
        identity may change it."""
        async with self._database.reading() as connection:
            return await self._require_owner(connection, name, identity)

    async def point(self, name: str, alias: str, version: str, identity: Identity) -> Stored:
        """Lets an alias mean a version, or removes it when the version is empty; returns the
        version that it means, or meant. Raises MeshError NOT_FOUND and PERMISSION_DENIED."""
        async with self._database.writing() as connection:
            await self._require_owner(connection, name, identity)
            stored = await self._find(connection, name, version or alias)
            if version:
                await self._point(connection, name, alias, version)
            else:
                await connection.execute(
                    delete(FUNCTION_ALIASES).where(_ALIASES.name == name, _ALIASES.alias == alias)
                )
            return await self._find(connection, name, stored.function.version)

    async def get(self, name: str, wanted: str) -> Stored:
        """Returns a function by version, digest or alias; raises MeshError NOT_FOUND."""
        async with self._database.reading() as connection:
            return await self._find(connection, name, wanted or LATEST)

    async def latest(self, identity: Identity, after: str) -> Batch[Stored]:
        """Returns the latest versions of functions by name, of those after a name, that an identity
        sees."""
        names = FUNCTIONS.c.name
        query = (
            select(names.label("place"), FUNCTION_VERSIONS)
            .join(FUNCTION_ALIASES, (_ALIASES.name == names) & (_ALIASES.alias == LATEST))
            .join(
                FUNCTION_VERSIONS,
                (_VERSIONS.name == names) & (_VERSIONS.version == _ALIASES.version),
            )
            .where(_seen_by(identity))
        )
        async with self._database.reading() as connection:
            found = await look(connection, query, names, after, _ROWS_AT_ONCE)
            return Batch(await self._stored(connection, found.rows), found.end)

    async def versions(self, identity: Identity, name: str, before: str) -> Batch[Stored]:
        """Returns versions of a function that an identity sees, the highest first, of those below a
        version, unless that is empty."""
        query = (
            select(FUNCTION_VERSIONS)
            .join(FUNCTIONS, FUNCTIONS.c.name == _VERSIONS.name)
            .where(_VERSIONS.name == name, _seen_by(identity))
            .order_by(_VERSIONS.sort_key.desc())
            .limit(_ROWS_AT_ONCE)
        )
        if before:
            query = query.where(_VERSIONS.sort_key < sort_key(before))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
            end = rows[-1].version if len(rows) == _ROWS_AT_ONCE else ""
            return Batch(await self._stored(connection, rows), end)

    async def delete(self, name: str, version: str, identity: Identity) -> None:
        """Deletes a version, or all. Raises MeshError NOT_FOUND and PERMISSION_DENIED."""
        async with self._database.writing() as connection:
            await self._require_owner(connection, name, identity)
            if version:
                await self._find(connection, name, version)
                await connection.execute(
                    delete(FUNCTION_VERSIONS).where(
                        _VERSIONS.name == name, _VERSIONS.version == version
                    )
                )
                left = list(
                    await connection.scalars(
                        select(_VERSIONS.version).where(_VERSIONS.name == name)
                    )
                )
                if left:
                    await self._keep_latest(connection, name, left)
                    await self._measure(connection, name)
                    return
            await connection.execute(delete(FUNCTIONS).where(FUNCTIONS.c.name == name))

    async def _keep_latest(
        self, connection: AsyncConnection, name: str, left: Iterable[str]
    ) -> None:
        has_one = await connection.scalar(
            select(_ALIASES.version).where(_ALIASES.name == name, _ALIASES.alias == LATEST)
        )
        if has_one is None:
            await self._point(connection, name, LATEST, max(left, key=sort_key))

    async def _take_name(self, connection: AsyncConnection, name: str, identity: Identity) -> str:
        """Returns the owner, of whom no other writer counts anything meanwhile."""
        known = await connection.scalar(select(FUNCTIONS.c.owner).where(FUNCTIONS.c.name == name))
        if self._database.dialect == "postgresql":
            what = f"functions of {known or identity.id}"
            await connection.execute(_LOCK_OWNER, {"what": what})
        try:
            async with connection.begin_nested():
                await connection.execute(
                    insert(FUNCTIONS).values(name=name, owner=identity.id, size=0)
                )
        except IntegrityError:
            return await self._require_owner(connection, name, identity)
        return identity.id

    @staticmethod
    async def _measure(connection: AsyncConnection, name: str) -> None:
        size = select(func.sum(func.length(_VERSIONS.function))).where(_VERSIONS.name == name)
        await connection.execute(
            update(FUNCTIONS).where(FUNCTIONS.c.name == name).values(size=size.scalar_subquery())
        )

    async def _require_owner(
        self, connection: AsyncConnection, name: str, identity: Identity
    ) -> str:
        """Also lets other writers of the same function wait."""
        owner: str | None = await connection.scalar(
            select(FUNCTIONS.c.owner).where(FUNCTIONS.c.name == name).with_for_update()
        )
        if owner is None:
            raise no_such_function(name, "")
        if not may_change(identity, owner):
            raise permission_denied(
                f"The function {name} is another's. Take another name.", reason="NOT_THE_OWNER"
            )
        return owner

    async def _point(
        self, connection: AsyncConnection, name: str, alias: str, version: str
    ) -> None:
        moved = await connection.execute(
            update(FUNCTION_ALIASES)
            .where(_ALIASES.name == name, _ALIASES.alias == alias)
            .values(version=version)
        )
        if not moved.rowcount:
            known = list(
                await connection.scalars(select(_ALIASES.alias).where(_ALIASES.name == name))
            )
            if len(known) >= _MOST_ALIASES:
                raise resource_exhausted(
                    f"{name} has {len(known)} aliases. Remove some.",
                    reason="TOO_MANY_ALIASES",
                    subject=name,
                )
            await connection.execute(
                insert(FUNCTION_ALIASES).values(name=name, alias=alias, version=version)
            )

    async def _find(self, connection: AsyncConnection, name: str, wanted: str) -> Stored:
        if "\0" in wanted:
            # PostgreSQL's text holds none.
            raise no_such_function(name, wanted)
        if is_version(wanted):
            condition = _VERSIONS.version == wanted
        elif wanted.startswith("sha256:"):
            condition = _VERSIONS.digest == wanted
        else:
            condition = _VERSIONS.version == (
                select(_ALIASES.version)
                .where(_ALIASES.name == name, _ALIASES.alias == wanted)
                .scalar_subquery()
            )
        row = (
            await connection.execute(
                select(FUNCTION_VERSIONS).where(_VERSIONS.name == name, condition)
            )
        ).one_or_none()
        if row is None:
            raise no_such_function(name, wanted)
        return (await self._stored(connection, [row]))[0]

    async def _stored(self, connection: AsyncConnection, rows: Sequence[Any]) -> list[Stored]:
        aliases: dict[tuple[str, str], list[str]] = {}
        names = {row.name for row in rows}
        for row in await connection.execute(
            select(FUNCTION_ALIASES).where(_ALIASES.name.in_(names)).order_by(_ALIASES.alias)
        ):
            aliases.setdefault((row.name, row.version), []).append(row.alias)
        found = []
        for row in rows:
            function = pb.Function.FromString(row.function)
            function.visibility = row.visibility
            function.aliases.extend(aliases.get((row.name, row.version), ()))
            found.append(Stored(function, row.team))
        return found


def _seen_by(identity: Identity) -> ColumnElement[bool]:
    """What `Stored.seen_by` says, of rows."""
    return seen_rows(identity, FUNCTIONS.c.owner, _VERSIONS.visibility, _VERSIONS.team)


def no_such_function(name: str, wanted: str) -> MeshError:
    """The error for a function that there is not, or that the caller does not see."""
    version = f" {wanted}" if wanted and wanted != LATEST else ""
    return not_found(
        f"There is no function {name}{version}. ListFunctions says which there are.",
        reason="FUNCTION_NOT_FOUND",
        function=name,
    )
