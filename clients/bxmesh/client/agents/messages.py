"""Messages between agents, as they are sent and as they arrive."""

from __future__ import annotations

import builtins
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal, TypedDict, TypeVar, cast
from uuid import uuid4

from bxmesh.agent.v1 import message_pb2 as pb
from bxmesh.client.agents import payloads
from bxmesh.client.agents.times import from_timestamp, to_timestamp
from bxmesh.client.agents.traces import carrier
from bxmesh.client.names import EnumNames, invalid

__all__ = [
    "BroadcastReceipt",
    "DeliveryMode",
    "Message",
    "MessageOptions",
    "Priority",
    "Receipt",
    "envelope",
]

DeliveryMode = Literal["direct", "durable"]
Priority = Literal["low", "medium", "high", "critical"]

DELIVERY_MODES = EnumNames(pb.DeliveryMode, "DELIVERY_MODE_")
PRIORITIES = EnumNames(pb.Priority, "PRIORITY_")

T = TypeVar("T")

_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
# What an envelope of 1 MiB has room for besides names, headers and trace.
_MOST_BYTES = (1 << 20) - (64 << 10)

ERROR_REPORT = "ERROR_REPORT"
"""The type of messages that tell a sender why its message could not be handled."""


class MessageOptions(TypedDict, total=False):
    """What can be said about a message besides its recipient, type and payload."""

    sender: str
    """The agent that sends it, one of the caller's own; the caller's identity."""
    priority: Priority | None
    """Its place among what waits; medium."""
    message_id: str
    """Its name, unique; chosen at random. The same name is delivered as one message."""
    correlation_id: str
    """The message that this one answers."""
    conversation_id: str
    """The conversation it belongs to."""
    reply_to: str
    """The agent that an answer shall go to; the sender."""
    expires_in: float | None
    """Seconds after which it is not delivered any more; None for never."""
    headers: Mapping[str, str]
    """Facts for handlers and filters; at most 64."""


@dataclass(frozen=True)
class Receipt:
    """Says that a message was accepted."""

    message_id: str
    """The message's name."""
    create_time: datetime
    """When it was accepted."""
    receivers: int
    """Connections that got it, for a direct one; 0 for a durable one."""
    held: bool
    """Whether it is held for a recipient that is not registered."""
    quarantined: bool = False
    """Whether it is held in quarantine: it holds data that somebody must look at."""


@dataclass(frozen=True)
class BroadcastReceipt:
    """Says to whom a message went."""

    message_id: str
    """The message's name; all copies have it."""
    recipients: int
    """How many agents it was for."""
    refused: tuple[str, ...]
    """Of these, the agents whose mailbox was full; they do not get it."""
    quarantined: bool = False
    """Whether it is held in quarantine: it holds data that somebody must look at."""


@dataclass(frozen=True, eq=False, repr=False)
class Message:
    """A message as it arrived; it does not change."""

    envelope: pb.Envelope
    """The message of the contract."""
    attempt: int = 1
    """Which delivery of it this is, from 1. Above 1 it may have been handled before."""
    max_attempts: int = 0
    """How often it is delivered at most; 0 for no bound or a direct message."""
    delivery_mode: DeliveryMode = "durable"
    """How it came."""
    entry_id: str = ""
    """Where it stood in the mailbox; empty for a direct message."""
    signed_by: str = ""
    """The identity whose signature was verified; empty for none."""
    responder: Callable[[str, pb.Payload], Awaitable[None]] | None = field(default=None)
    """What sends its reply; None outside a handler."""

    def __repr__(self) -> str:
        return (
            f"Message({self.type!r} from {self.sender!r}, id={self.id!r}, attempt={self.attempt})"
        )

    @property
    def id(self) -> str:
        """The name, unique."""
        return self.envelope.message_id

    @property
    def sender(self) -> str:
        """The agent or identity that sent it, as the server knows it."""
        return self.envelope.sender

    @property
    def recipient(self) -> str:
        """The agent that it is for; empty in a broadcast."""
        return self.envelope.recipient

    @property
    def type(self) -> str:
        """What it is, for example validate.request."""
        return self.envelope.message_type

    @property
    def priority(self) -> Priority:
        """Its place among what waits."""
        return cast(Priority, PRIORITIES.name(self.envelope.priority or pb.PRIORITY_MEDIUM))

    @property
    def correlation_id(self) -> str:
        """The message that it answers; empty for no answer."""
        return self.envelope.correlation_id

    @property
    def conversation_id(self) -> str:
        """The conversation it belongs to; may be empty."""
        return self.envelope.conversation_id

    @property
    def reply_to(self) -> str:
        """The agent that an answer goes to."""
        return self.envelope.reply_to or self.envelope.sender

    @property
    def headers(self) -> dict[str, str]:
        """Facts for handlers and filters."""
        return dict(self.envelope.headers)

    @property
    def create_time(self) -> datetime | None:
        """When the server accepted it."""
        return from_timestamp(self.envelope.create_time)

    @property
    def expire_time(self) -> datetime | None:
        """When it is pointless; None for never."""
        return from_timestamp(self.envelope.expire_time)

    @cached_property
    def payload(self) -> Any:
        """What it carries: parsed JSON, a protobuf message, or None.

        Raises PayloadMismatch for what cannot be parsed.
        """
        return payloads.decode(self.envelope.payload)

    def read(self, model: builtins.type[T]) -> T:
        """Returns the payload as a pydantic model or protobuf message. Raises PayloadMismatch."""
        return payloads.read(self.envelope.payload, model)

    async def reply(self, message_type: str, payload: object = None) -> None:
        """Answers the message, once.

        The answer to a durable message goes out in one step with its acknowledgement, when the
        handler has returned; when the handler fails it is not sent. The answer to a direct message
        goes out at once. Raises InvalidInput for a second answer, outside a handler, for a type that
        is no name, and for a payload that is larger than 960 KiB.
        """
        if self.responder is None:
            raise invalid("reply", "only a message that is being handled can be replied to")
        if not _TYPE.fullmatch(message_type):
            raise invalid("message_type", f"{message_type!r} is no message type")
        content = payloads.encode(payload)
        if (size := content.ByteSize()) > _MOST_BYTES:
            raise invalid(
                "payload",
                f"the reply has {size} bytes, {_MOST_BYTES} at most: upload a bundle and send its name",
                "PAYLOAD_TOO_LARGE",
            )
        await self.responder(message_type, content)


def envelope(
    recipient: str, message_type: str, payload: object, options: MessageOptions
) -> pb.Envelope:
    """Returns the envelope of a new message, with the trace under way."""
    expires_in = options.get("expires_in")
    expire_time = None if expires_in is None else datetime.now(UTC) + timedelta(seconds=expires_in)
    return pb.Envelope(
        message_id=options.get("message_id") or uuid4().hex,
        sender=options.get("sender", ""),
        recipient=recipient,
        message_type=message_type,
        payload=payloads.encode(payload),
        priority=PRIORITIES.number(options.get("priority")),
        correlation_id=options.get("correlation_id", ""),
        conversation_id=options.get("conversation_id", ""),
        reply_to=options.get("reply_to", ""),
        expire_time=to_timestamp(expire_time),
        trace_context=carrier(),
        headers=options.get("headers", {}),
    )
