"""Looking after executions: those that nobody can end any more end."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.server.errors import not_found
from bxmesh.server.functions.history import History
from bxmesh.server.functions.records import Record
from bxmesh.server.keeper import Keeper
from bxmesh.server.time_ids import age_of

__all__ = ["ExecutionKeeper"]

# Longer than any execution that is not durable: what still runs after that has lost its server.
_LOST_SECONDS = 2 * 3600.0
_YOUNG_SECONDS = 60.0


class ExecutionKeeper(Keeper):
    """An async context manager, within which executions are looked after."""

    what = "executions"
    seconds = 300.0

    def __init__(self, history: History, settled: Callable[[Record], Awaitable[Record]]) -> None:
        """Takes what ends a durable execution whose work has ended, or is lost."""
        self._history = history
        self._settled = settled

    async def look(self) -> None:
        """Looks once. Raises MeshError UNAVAILABLE without Redis or the database."""
        before = time.time() - _YOUNG_SECONDS
        after = ""
        while records := await self._history.open_records(after, before):
            for record in records:
                after = record.execution.execution_id
                if record.durable:
                    await self._settled(record)
                elif age_of(after) > _LOST_SECONDS:
                    await self._history.keep(_lost(record))


def _lost(record: Record) -> Record:
    execution = record.execution
    execution.state = pb.EXECUTION_STATE_FAILED
    execution.end_time.GetCurrentTime()
    error = not_found("The server that ran it is gone.", reason="SERVER_LOST")
    execution.error.CopyFrom(error.to_status())
    return record
