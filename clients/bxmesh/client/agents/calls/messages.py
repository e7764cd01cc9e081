"""The calls that send messages."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC
from typing import Unpack
from uuid import uuid4

from google.rpc import status_pb2

from bxmesh.agent.v1 import message_pb2 as pb
from bxmesh.client.agents.messages import (
    DELIVERY_MODES,
    ERROR_REPORT,
    BroadcastReceipt,
    DeliveryMode,
    Message,
    MessageOptions,
    Receipt,
    envelope,
)
from bxmesh.client.agents.times import to_duration
from bxmesh.client.agents.traces import sending
from bxmesh.client.connection import Connection, translated
from bxmesh.client.errors import from_status

__all__ = ["MessageCalls"]


class MessageCalls:
    """Sending messages to agents."""

    _connection: Connection

    async def send(
        self,
        recipient: str,
        message_type: str,
        payload: object = None,
        *,
        mode: DeliveryMode = "durable",
        hold: bool = False,
        **options: Unpack[MessageOptions],
    ) -> Receipt:
        """Sends a message to an agent and returns when the mesh has it.

        The payload is a protobuf message, or anything with a JSON: a pydantic model, a dict.
        `durable` goes into the recipient's mailbox, at least once; `direct` to whoever is connected,
        at most once. `hold` keeps a durable message for an agent that is not registered, which
        otherwise is NotFound. A full mailbox is ResourceExhausted.
        """
        with sending(message_type, recipient):
            request = pb.SendMessageRequest(
                request_id=uuid4().hex,
                envelope=await self._signed(envelope(recipient, message_type, payload, options)),
                delivery_mode=DELIVERY_MODES.number(mode),
                hold_for_recipient=hold,
            )
            response = await self._connection.unary(self._connection.agent.SendMessage, request)
        return Receipt(
            message_id=response.message_id,
            create_time=response.create_time.ToDatetime(tzinfo=UTC),
            receivers=response.receivers,
            held=response.held,
            quarantined=response.quarantined,
        )

    async def request(
        self,
        recipient: str,
        message_type: str,
        payload: object = None,
        *,
        mode: DeliveryMode = "durable",
        hold: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
        **options: Unpack[MessageOptions],
    ) -> Message:
        """Sends a message and returns the message that answers it.

        Raises DeadlineExceeded when none comes within the timeout, in seconds, the handler's error
        when it failed for good, and PermissionDenied for an answer whose signature is not good.
        """
        seconds = timeout or self._connection.timeouts.unary
        deadline = time.monotonic() + seconds + _GRACE_SECONDS
        with sending(message_type, recipient):
            request = pb.SendMessageRequest(
                request_id=uuid4().hex,
                envelope=await self._signed(envelope(recipient, message_type, payload, options)),
                delivery_mode=DELIVERY_MODES.number(mode),
                hold_for_recipient=hold,
                reply_timeout=to_duration(seconds),
            )

            async def call() -> pb.SendMessageResponse:
                with translated():
                    response: pb.SendMessageResponse = await self._connection.agent.SendMessage(
                        request,
                        timeout=max(deadline - time.monotonic(), 0.0),
                        metadata=self._connection.metadata,
                    )
                return response

            response = await self._connection.retried(call)
        signed = await self._connection.signatures.verify(response.reply)
        reply = Message(signed.envelope, delivery_mode=mode, signed_by=signed.signed_by)
        if reply.type == ERROR_REPORT:
            raise from_status(reply.read(status_pb2.Status))
        return reply

    async def broadcast(
        self,
        message_type: str,
        payload: object = None,
        *,
        capabilities: Iterable[str] = (),
        agent_type: str = "",
        include_sender: bool = False,
        mode: DeliveryMode = "durable",
        **options: Unpack[MessageOptions],
    ) -> BroadcastReceipt:
        """Sends a message to every live agent that offers the capabilities and is of the type."""
        with sending(message_type, "*"):
            request = pb.BroadcastMessageRequest(
                request_id=uuid4().hex,
                envelope=await self._signed(envelope("", message_type, payload, options)),
                delivery_mode=DELIVERY_MODES.number(mode),
                capabilities=capabilities,
                agent_type=agent_type,
                include_sender=include_sender,
            )
            response = await self._connection.unary(
                self._connection.agent.BroadcastMessage, request
            )
        return BroadcastReceipt(
            response.message_id,
            response.recipients,
            tuple(response.refused_agent_ids),
            response.quarantined,
        )

    async def _signed(self, message: pb.Envelope) -> pb.Envelope:
        return await self._connection.signatures.sign(message)


# The mesh says itself that no reply came; the call's own deadline is for a mesh that is silent.
_GRACE_SECONDS = 5.0
