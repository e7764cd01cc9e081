"""Functions in the database: a version that is stored never changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.server.database import Database
from bxmesh.server.database.tables import FUNCTION_ALIASES, FUNCTION_VERSIONS, FUNCTIONS
from bxmesh.server.errors import MeshError, invalid_argument, not_found, permission_denied
from bxmesh.server.functions.versions import LATEST, is_version, next_version, sort_key
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.ownership import may_change, sees

__all__ = ["FunctionStore", "Stored", "no_such_function"]

_VERSIONS, _ALIASES = FUNCTION_VERSIONS.c, FUNCTION_ALIASES.c
_MOST_FUNCTIONS = 100_000
_MOST_VERSIONS = 10_000
_MOST_ALIASES = 64


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

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, function: pb.Function, identity: Identity, team: str, aliases: Sequence[str]
    ) -> tuple[Stored, bool]:
        """Stores a version, or finds the one with the same content; the aliases, and `latest`, mean
        it from then on. Also returns whether it was there.

        Raises MeshError ALREADY_EXISTS for another content under the same version, and
        PERMISSION_DENIED when the name is another's.
        """
        async with self._database.writing() as connection:
            await self._take_name(connection, function.name, identity)
            rows = (
                await connection.execute(
                    select(_VERSIONS.version, _VERSIONS.digest).where(
                        _VERSIONS.name == function.name
                    )
                )
            ).all()
            same = next((row.version for row in rows if row.digest == function.digest), None)
            version = same or function.version or next_version(row.version for row in rows)
            if not same:
                if any(row.version == version for row in rows):
                    raise MeshError(
                        grpc.StatusCode.ALREADY_EXISTS,
                        "VERSION_EXISTS",
                        f"{function.name} {version} is there with another content. "
                        "Take another version, or none to let the server count on.",
                        metadata={"version": version},
                    )
                if len(rows) >= _MOST_VERSIONS:
                    raise MeshError(
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        "TOO_MANY_VERSIONS",
                        f"{function.name} has {len(rows)} versions. Delete some.",
                    )
                await self._add(connection, function, version, team)
            for alias in {*aliases, LATEST}:
                await self._point(connection, function.name, alias, version)
            return await self._find(connection, function.name, version), same is not None

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

    async def latest(self, after: str, most: int) -> list[Stored]:
        """Returns the latest versions of functions by name, of those after a name."""
        async with self._database.reading() as connection:
            rows = await connection.execute(
                select(FUNCTION_VERSIONS)
                .join(
                    FUNCTION_ALIASES,
                    (_ALIASES.name == _VERSIONS.name) & (_ALIASES.version == _VERSIONS.version),
                )
                .where(_ALIASES.alias == LATEST, _VERSIONS.name > after)
                .order_by(_VERSIONS.name)
                .limit(most)
            )
            return await self._stored(connection, rows.all())

    async def versions(self, name: str, before: str, most: int) -> list[Stored]:
        """Returns versions of a function, the highest first, of those below a version, unless that
        is empty."""
        query = select(FUNCTION_VERSIONS).where(_VERSIONS.name == name)
        if before:
            query = query.where(_VERSIONS.sort_key < sort_key(before))
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(_VERSIONS.sort_key.desc()).limit(most))
            return await self._stored(connection, rows.all())

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

    async def _take_name(self, connection: AsyncConnection, name: str, identity: Identity) -> None:
        count = await connection.scalar(select(func.count()).select_from(FUNCTIONS))
        known = await connection.scalar(select(FUNCTIONS.c.owner).where(FUNCTIONS.c.name == name))
        if known is None and count is not None and count >= _MOST_FUNCTIONS:
            raise MeshError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_FUNCTIONS",
                f"There are {count} functions. No more are stored.",
            )
        try:
            async with connection.begin_nested():
                await connection.execute(insert(FUNCTIONS).values(name=name, owner=identity.id))
        except IntegrityError:
            await self._require_owner(connection, name, identity)

    async def _require_owner(
        self, connection: AsyncConnection, name: str, identity: Identity
    ) -> None:
        """Also lets other writers of the same function wait."""
        owner = await connection.scalar(
            select(FUNCTIONS.c.owner).where(FUNCTIONS.c.name == name).with_for_update()
        )
        if owner is None:
            raise no_such_function(name, "")
        if not may_change(identity, owner):
            raise permission_denied(
                f"The function {name} is another's. Take another name.", reason="NOT_THE_OWNER"
            )

    async def _add(
        self, connection: AsyncConnection, function: pb.Function, version: str, team: str
    ) -> None:
        owner = await connection.scalar(
            select(FUNCTIONS.c.owner).where(FUNCTIONS.c.name == function.name)
        )
        stored = pb.Function()
        stored.CopyFrom(function)
        stored.version, stored.owner = version, owner or ""
        stored.ClearField("aliases")
        stored.create_time.GetCurrentTime()
        try:
            key = sort_key(version)
        except ValueError as error:
            raise invalid_argument("function.version", str(error)) from None
        await connection.execute(
            insert(FUNCTION_VERSIONS).values(
                name=function.name,
                version=version,
                sort_key=key,
                digest=function.digest,
                team=team,
                function=stored.SerializeToString(),
            )
        )

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
                raise MeshError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "TOO_MANY_ALIASES",
                    f"{name} has {len(known)} aliases. Remove some.",
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
            function.aliases.extend(aliases.get((row.name, row.version), ()))
            found.append(Stored(function, row.team))
        return found


def no_such_function(name: str, wanted: str) -> MeshError:
    """The error for a function that there is not, or that the caller does not see."""
    version = f" {wanted}" if wanted and wanted != LATEST else ""
    return not_found(
        f"There is no function {name}{version}. ListFunctions says which there are.",
        reason="FUNCTION_NOT_FOUND",
        function=name,
    )
