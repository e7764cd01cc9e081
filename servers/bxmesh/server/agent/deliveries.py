"""Between what waits in a mailbox and what an agent is handed."""

from __future__ import annotations

import time

from google.protobuf.message import DecodeError

from bxmesh.agent.v1 import delivery_pb2, message_pb2, task_pb2
from bxmesh.server.errors import MeshError, internal
from bxmesh.server.streams.entries import HeldEntry

__all__ = [
    "MessageTypes",
    "delivery_id",
    "delivery_of",
    "direct_delivery",
    "envelope_of",
    "unhandled",
]


def delivery_id(held: HeldEntry) -> str:
    """Names a delivery: the priority of the stream, and the entry in it."""
    return f"{held.stream[-1]}:{held.entry_id.decode()}"


def envelope_of(held: HeldEntry) -> message_pb2.Envelope:
    """The message in an entry; raises MeshError INTERNAL (UNREADABLE) when there is none."""
    envelope = message_pb2.Envelope()
    try:
        if held.item.payload.Unpack(envelope):
            return envelope
    except DecodeError:
        pass
    raise internal("The entry holds no message.", reason="UNREADABLE")


def delivery_of(
    held: HeldEntry, content: message_pb2.Envelope | task_pb2.Task, lease: float
) -> delivery_pb2.Delivery:
    """What an agent is handed, under a lease of so many seconds."""
    item = held.item
    delivery = delivery_pb2.Delivery(
        delivery_id=delivery_id(held),
        attempt=held.attempt,
        max_attempts=item.max_attempts,
        entry_id=held.entry_id.decode(),
        last_trace_context=held.entry.last_trace_context,
    )
    if isinstance(content, message_pb2.Envelope):
        delivery.envelope.CopyFrom(content)
    else:
        delivery.task.CopyFrom(content)
    if item.HasField("deadline"):
        delivery.deadline.CopyFrom(item.deadline)
    delivery.lease_expire_time.FromNanoseconds(int((time.time() + lease) * 1e9))
    return delivery


def direct_delivery(data: bytes) -> delivery_pb2.Delivery | None:
    """A direct message as it is handed over; None for what cannot be read."""
    try:
        envelope = message_pb2.Envelope.FromString(data)
    except DecodeError:
        return None
    return delivery_pb2.Delivery(envelope=envelope, attempt=1)


class MessageTypes:
    """Which types of messages a connection handles: names, or prefixes that end in `*`."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._names = frozenset(p for p in patterns if not p.endswith("*"))
        self._prefixes = tuple(p[:-1] for p in patterns if p.endswith("*"))
        self._all = not patterns

    def __contains__(self, message_type: str) -> bool:
        return self._all or message_type in self._names or message_type.startswith(self._prefixes)


def unhandled(error_type: str) -> MeshError:
    """Why a message waits on: nobody who is connected handles its type."""
    return internal(
        f"No connection handles messages of the type {error_type}.", reason="NO_HANDLER"
    )
