"""One execution, as the history keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.agent.v1 import function_pb2 as pb

__all__ = ["ENDED", "Record", "duration_of", "microseconds"]

ENDED = frozenset(
    {
        pb.EXECUTION_STATE_COMPLETED,
        pb.EXECUTION_STATE_FAILED,
        pb.EXECUTION_STATE_CANCELLED,
        pb.EXECUTION_STATE_LIMIT_EXCEEDED,
    }
)
"""States that are never left."""


@dataclass(frozen=True, slots=True)
class Record:
    """An execution and how it is done."""

    execution: pb.Execution
    """With what it printed."""
    durable: bool

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.execution.state in ENDED


def microseconds(time: Timestamp) -> int:
    """Returns a time since 1970; 0 when it is not set."""
    return time.seconds * 1_000_000 + time.nanos // 1000


def duration_of(execution: pb.Execution) -> int:
    """Returns the microseconds from begin to end; -1 for what has not begun and ended."""
    if not (execution.HasField("start_time") and execution.HasField("end_time")):
        return -1
    return max(0, microseconds(execution.end_time) - microseconds(execution.start_time))
