"""Runs of chains in the database: what has ended stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from bxmesh.agent.v1 import chain_run_pb2 as pb
from bxmesh.server.database import Database
from bxmesh.server.database.retention import Kept, Retention
from bxmesh.server.database.tables import CHAIN_RUNS, CHAIN_STEPS
from bxmesh.server.database.windows import look
from bxmesh.server.errors import MeshError, not_found
from bxmesh.server.pages import Batch

__all__ = ["ENDED", "ChainStore", "RunEndedError", "no_such_run"]

_R, _S = CHAIN_RUNS.c, CHAIN_STEPS.c

ENDED = frozenset(
    {
        pb.RUN_STATE_COMPLETED,
        pb.RUN_STATE_FAILED,
        pb.RUN_STATE_CANCELLED,
        pb.RUN_STATE_TIMED_OUT,
        pb.RUN_STATE_SKIPPED,
    }
)
"""States that are never left."""
# They come first.
_OPEN = _R.state < min(ENDED)
# With their inputs and outputs they may be large.
_ROWS_AT_ONCE = 20
_STEP_CHANGED = update(CHAIN_STEPS).where(
    _S.run_id == bindparam("which_run"), _S.place == bindparam("which_place")
)


# Statements that are executed often are made once.
_ONE = select(CHAIN_RUNS).where(_R.run_id == bindparam("run"))
_STEPS_OF_ONE = select(_S.step).where(_S.run_id == bindparam("run")).order_by(_S.place)
_CHANGES_OF_ONE = (
    select(_R.state, _R.revision, _S.revision, _S.step)
    .outerjoin(CHAIN_STEPS, (_S.run_id == _R.run_id) & (_S.revision > bindparam("after")))
    .where(_R.run_id == bindparam("run"))
    .order_by(_S.revision)
)
_OPEN_OF_OWNER = (
    select(func.count()).select_from(CHAIN_RUNS).where(_R.owner == bindparam("owner_"), _OPEN)
)
_RUN_CHANGED = (
    update(CHAIN_RUNS)
    .where(_R.run_id == bindparam("run_id_"), _OPEN)
    .values(revision=_R.revision + bindparam("count"))
    .returning(_R.revision)
)
_WHOLE_CHANGED = _RUN_CHANGED.values(
    state=bindparam("new_state"), run=bindparam("new_run"), size=bindparam("new_size")
)


class RunEndedError(Exception):
    """The run has ended meanwhile: it was cancelled."""


class Changes(NamedTuple):
    """What has changed in a run."""

    ended: bool
    """Whether it has ended."""
    revision: int
    """Where it stands."""
    steps: list[tuple[int, pb.StepRun]]
    """The steps, each with the revision of its last change, in that order."""


class ChainStore:
    """All runs. Methods raise MeshError UNAVAILABLE without the database."""

    def __init__(self, database: Database, kept: Kept) -> None:
        """Takes how much is kept of those that have ended."""
        self._database = database
        self.retention = Retention(database, _R.run_id, _R.state >= min(ENDED), kept)
        """Forgets them."""

    async def create(self, run: pb.ChainRun) -> None:
        """Stores a new run with its steps."""

        def create(connection: Connection) -> None:
            connection.execute(
                insert(CHAIN_RUNS).values(
                    run_id=run.run_id,
                    definition_id=run.definition_id,
                    owner=run.owner,
                    state=run.state,
                    revision=run.revision,
                    run=_without_steps(run),
                    size=0,
                )
            )
            connection.execute(
                insert(CHAIN_STEPS),
                [
                    {
                        "run_id": run.run_id,
                        "place": place,
                        "revision": run.revision,
                        "step": step.SerializeToString(),
                    }
                    for place, step in enumerate(run.steps)
                ],
            )

        await self._database.write(create)

    async def get(self, run_id: str) -> pb.ChainRun:
        """Returns a run with its steps; raises MeshError NOT_FOUND."""
        if "\0" in run_id:
            # PostgreSQL's text holds none.
            raise no_such_run(run_id)

        def get(connection: Connection) -> pb.ChainRun:
            row = connection.execute(_ONE, {"run": run_id}).one_or_none()
            if row is None:
                raise no_such_run(run_id)
            run = _run(row)
            steps = connection.scalars(_STEPS_OF_ONE, {"run": run_id})
            run.steps.extend(pb.StepRun.FromString(step) for step in steps)
            return run

        return await self._database.read(get)

    async def changed(self, run_id: str, after: int) -> Changes:
        """Returns what has changed in a run after a revision; raises MeshError NOT_FOUND."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                _CHANGES_OF_ONE, {"run": run_id, "after": after}
            ).all()
        )
        if not rows:
            raise no_such_run(run_id)
        state, revision, *_ = rows[0]
        steps = [(since, pb.StepRun.FromString(step)) for _, _, since, step in rows if step]
        return Changes(state in ENDED, revision, steps)

    async def page(
        self,
        before: str,
        *,
        owner: str = "",
        definition_id: str = "",
        states: Sequence[int] = (),
    ) -> Batch[pb.ChainRun]:
        """Returns runs, the newest first, without steps; those older than `before`, unless it is
        empty."""
        query = select(CHAIN_RUNS)
        if owner:
            query = query.where(_R.owner == owner)
        if definition_id:
            query = query.where(_R.definition_id == definition_id)
        if states:
            query = query.where(_R.state.in_(states))
        async with self._database.reading() as connection:
            found = await look(
                connection,
                query,
                _R.run_id,
                before,
                _ROWS_AT_ONCE,
                within=_R.owner == owner if owner else None,
                newest_first=True,
            )
        return Batch([_run(row) for row in found.rows], found.end)

    async def count_open(self, owner: str) -> int:
        """Returns how many runs of an owner have not ended."""
        found = await self._database.read(
            lambda connection: connection.scalar(_OPEN_OF_OWNER, {"owner_": owner})
        )
        return found or 0

    async def open_runs(self, older_than: str) -> list[str]:
        """Returns the names of runs that have not ended, of those before a name."""
        async with self._database.reading() as connection:
            return list(
                await connection.scalars(select(_R.run_id).where(_OPEN, _R.run_id < older_than))
            )

    async def save(
        self, run: pb.ChainRun, steps: Mapping[int, pb.StepRun], *, whole: bool = False
    ) -> None:
        """Writes steps by place, and the run as a whole where that has changed; the run's revision
        counts them all, so that each change has its own. Raises RunEndedError when it has ended
        already, and changes nothing then."""
        count = max(1, len(steps))
        size = 0
        values: dict[str, Any] = {"run_id_": run.run_id, "count": count}
        if whole:
            size = run.ByteSize() if run.state in ENDED else 0
            values |= {"new_state": run.state, "new_run": _without_steps(run), "new_size": size}
        # What is written is what there is now, whatever changes meanwhile.
        rows = [(place, step.SerializeToString()) for place, step in steps.items()]

        def save(connection: Connection) -> int:
            changed = connection.execute(_WHOLE_CHANGED if whole else _RUN_CHANGED, values)
            revision = changed.scalar_one_or_none()
            if revision is None:
                raise RunEndedError
            if rows:
                connection.execute(
                    _STEP_CHANGED,
                    [
                        {
                            "which_run": run.run_id,
                            "which_place": place,
                            "revision": revision - len(rows) + index,
                            "step": step,
                        }
                        for index, (place, step) in enumerate(rows, 1)
                    ],
                )
            return int(revision)

        run.revision = await self._database.write(save)
        if whole and run.state in ENDED:
            self.retention.wrote(run.owner, size)

    async def remove(self, run_id: str) -> None:
        """Removes a run that never was."""
        async with self._database.writing() as connection:
            await connection.execute(delete(CHAIN_RUNS).where(_R.run_id == run_id))


def _without_steps(run: pb.ChainRun) -> bytes:
    stored = pb.ChainRun()
    stored.CopyFrom(run)
    stored.ClearField("steps")
    return stored.SerializeToString()


def _run(row: Any) -> pb.ChainRun:
    run = pb.ChainRun.FromString(row.run)
    run.state = row.state
    run.revision = row.revision
    return run


def no_such_run(run_id: str) -> MeshError:
    """The error for a run that there is not, or no longer, or that the caller does not see."""
    return not_found(
        f"There is no run {run_id}; they are kept for some time only.",
        reason="RUN_NOT_FOUND",
        run_id=run_id,
    )
