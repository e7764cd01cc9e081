"""Looking after runs: those that nobody can end any more end."""

from __future__ import annotations

import contextlib
import time

import grpc

from bxmesh.agent.v1 import chain_run_pb2 as pb
from bxmesh.server.chains.store import ENDED, ChainStore, RunEndedError
from bxmesh.server.errors import MeshError
from bxmesh.server.keeper import Keeper
from bxmesh.server.streams import WorkQueue
from bxmesh.server.time_ids import age_of, id_at

__all__ = ["ChainKeeper"]

_YOUNG_SECONDS = 60.0


class ChainKeeper(Keeper):
    """An async context manager, within which runs are looked after."""

    what = "runs of chains"

    def __init__(self, store: ChainStore, queue: WorkQueue) -> None:
        self._store = store
        self._queue = queue

    async def look(self) -> None:
        """Looks once. Raises MeshError UNAVAILABLE without Redis or the database."""
        for run_id in await self._store.open_runs(id_at(time.time() - _YOUNG_SECONDS)):
            if error := await self._lost(run_id):
                await self._end(run_id, error)

    async def _lost(self, run_id: str) -> MeshError | None:
        outcome = await self._queue.outcome(run_id)
        if outcome is not None:
            return MeshError.from_status(outcome.status) if outcome.status.code else None
        if not await self._queue.lost(run_id, age_of(run_id)):
            return None
        # Redis was emptied, or the server that took it was lost before it was queued.
        return MeshError(
            grpc.StatusCode.DATA_LOSS, "RUN_LOST", "Nobody has the run any more. Start it again."
        )

    async def _end(self, run_id: str, error: MeshError) -> None:
        run = await self._store.get(run_id)
        if run.state in ENDED:
            return
        changed = {}
        for place, step in enumerate(run.steps):
            if step.state not in ENDED:
                step.state = pb.RUN_STATE_SKIPPED
                step.end_time.GetCurrentTime()
                changed[place] = step
        run.state = pb.RUN_STATE_FAILED
        run.error.CopyFrom(error.to_status())
        run.end_time.GetCurrentTime()
        with contextlib.suppress(RunEndedError):
            await self._store.save(run, changed, whole=True)
