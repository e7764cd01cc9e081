"""What the mesh tells the activity log, each fact at the one place that it passes."""

from __future__ import annotations

import time

import grpc
from google.protobuf.message import DecodeError

from bxmesh.agent.v1 import message_pb2
from bxmesh.server.activity.events import AgentEvent, ErrorEvent, Event, MessageEvent, known_reason
from bxmesh.server.activity.log import ActivityLog
from bxmesh.server.activity.minute import Minute
from bxmesh.server.errors import MeshError
from bxmesh.server.streams.entries import HeldEntry
from bxmesh.server.streams.mailboxes import MESSAGE

__all__ = ["OFF", "Activity", "Recorder"]

# The faults of a server; any other code is an answer that the caller has to deal with.
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
# Every open stream ends so when a server is stopped.
_STOPPING = "SERVER_STOPPING"
_ENDS = {
    "done": "acknowledged",
    "retried": "retried",
    "buried": "dropped",
    "answered_with_error": "dropped",
    "expired": "expired",
    "cancelled": "withdrawn",
}


class Activity:
    """Is told what happens. This one, which `OFF` is, keeps nothing."""

    def connected(self, agent_id: str, connection_id: str) -> None:
        """An agent is connected."""

    def disconnected(self, agent_id: str, connection_id: str) -> None:
        """A connection is over."""

    def accepted(self, envelope: message_pb2.Envelope, receivers: int | None = None) -> None:
        """A message is in a mailbox or, when it says how many there are, with its receivers."""

    def delivered(
        self, envelope: message_pb2.Envelope, connection_id: str, attempt: int | None = None
    ) -> None:
        """A message is handed to an agent; without a number of the attempt it is a direct one."""

    def settled(self, held: HeldEntry, end: str, error: MeshError | None) -> None:
        """What came out of a mailbox ended so: `end` is a field of WorkerCounters."""

    def answered(self, method: str, error: MeshError, trace_id: str) -> None:
        """A call was answered with an error."""


OFF = Activity()
"""For who keeps no log."""


class Recorder(Activity):
    """Makes lines of what happens."""

    def __init__(self, log: ActivityLog) -> None:
        self.minute = Minute()
        self.log = log

    def record(self, event: Event) -> None:
        """Adds and counts an event."""
        self.minute.add(event)
        self.log.add(event)

    def connected(self, agent_id: str, connection_id: str) -> None:
        """An agent is connected."""
        self.record(AgentEvent(event="connected", agent_id=agent_id, connection_id=connection_id))

    def disconnected(self, agent_id: str, connection_id: str) -> None:
        """A connection is over."""
        self.record(
            AgentEvent(event="disconnected", agent_id=agent_id, connection_id=connection_id)
        )

    def accepted(self, envelope: message_pb2.Envelope, receivers: int | None = None) -> None:
        """A message is in a mailbox, or with its receivers."""
        self._message(
            "accepted",
            envelope,
            mode="durable" if receivers is None else "direct",
            receivers=receivers,
            # It may have been delivered by now.
            at=_created(envelope),
        )

    def delivered(
        self, envelope: message_pb2.Envelope, connection_id: str, attempt: int | None = None
    ) -> None:
        """A message is handed to an agent."""
        self._message(
            "delivered",
            envelope,
            mode="direct" if attempt is None else "durable",
            connection_id=connection_id,
            attempt=attempt,
        )

    def settled(self, held: HeldEntry, end: str, error: MeshError | None) -> None:
        """A message that came out of a mailbox ended so; tasks tell it themselves."""
        if held.item.kind != MESSAGE or end not in _ENDS:
            return
        envelope = message_pb2.Envelope()
        try:
            if not held.item.payload.Unpack(envelope):
                return
        except DecodeError:
            return
        self._message(_ENDS[end], envelope, mode="durable", attempt=held.attempt, error=error)

    def answered(self, method: str, error: MeshError, trace_id: str) -> None:
        """A call was answered with an error."""
        if error.code in _FAULTS and error.reason != _STOPPING:
            self.record(
                ErrorEvent(
                    event="fault",
                    method=method,
                    code=error.code.name,
                    reason=known_reason(error.reason),
                    trace_id=trace_id,
                )
            )

    def _message(
        self,
        event: str,
        envelope: message_pb2.Envelope,
        *,
        mode: str,
        at: float | None = None,
        attempt: int | None = None,
        receivers: int | None = None,
        connection_id: str = "",
        error: MeshError | None = None,
    ) -> None:
        now = time.time() if at is None else at
        self.record(
            MessageEvent(
                time=now,
                event=event,
                message_id=envelope.message_id,
                message_type=envelope.message_type,
                sender=envelope.sender,
                recipient=envelope.recipient,
                priority=envelope.priority,
                mode=mode,
                size=envelope.ByteSize(),
                correlation_id=envelope.correlation_id,
                conversation_id=envelope.conversation_id,
                attempt=attempt,
                receivers=receivers,
                connection_id=connection_id,
                seconds=max(0.0, now - _created(envelope)) if at is None else None,
                code=error.code.name if error else "",
                reason=known_reason(error.reason) if error else "",
            )
        )


def _created(envelope: message_pb2.Envelope) -> float:
    return envelope.create_time.seconds + envelope.create_time.nanos / 1e9
