"""Looking at a part of a table at a time, however little of it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bxmesh.server.pages import Batch

__all__ = ["look"]

_MOST_LOOKED = 1000


async def look(
    connection: AsyncConnection,
    query: Select[Any],
    name: ColumnElement[Any],
    place: str,
    most: int,
    *,
    within: ColumnElement[bool] | None = None,
    newest_first: bool = False,
) -> Batch[Row[Any]]:
    """Returns the first rows of a query behind a place, in the order of a column of names, which is the
    query's first.

    Of what is `within`, for which there must be an index, no more than some rows are looked at,
    though the query may want few of them.
    """
    order: Callable[[], Any] = name.desc if newest_first else name.asc

    def behind(statement: Select[Any]) -> Select[Any]:
        if place:
            statement = statement.where(name < place if newest_first else name > place)
        return (statement if within is None else statement.where(within)).order_by(order())

    edge = await connection.scalar(behind(select(name)).offset(_MOST_LOOKED - 1).limit(1))
    if edge is not None:
        query = query.where(name >= edge if newest_first else name <= edge)
    rows = (await connection.execute(behind(query).limit(most))).all()
    if len(rows) == most:
        return Batch(rows, str(rows[-1][0]))
    return Batch(rows, edge or "")
