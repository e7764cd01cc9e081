"""Messages at work: from a delivery through its handler to a verdict."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from bxmesh.agent.v1 import delivery_pb2, message_pb2
from bxmesh.client.agents import payloads
from bxmesh.client.agents.failures import Drop, Retry, Unhandled, to_status
from bxmesh.client.agents.handlers import Handler, Handlers
from bxmesh.client.agents.invoker import Invoker
from bxmesh.client.agents.messages import ERROR_REPORT, Message
from bxmesh.client.agents.payloads import PayloadMismatch
from bxmesh.client.agents.retry import RetryPolicy
from bxmesh.client.agents.traces import carrier, processing
from bxmesh.client.agents.verdicts import Verdict
from bxmesh.client.errors import BxmeshError
from bxmesh.client.names import invalid

if TYPE_CHECKING:
    from bxmesh.client.agents.agent import Agent

__all__ = ["MessageWork"]

_log = logging.getLogger(__name__)


class MessageWork:
    """Handles the messages of one agent."""

    def __init__(self, agent: Agent[Any], handlers: Handlers, invoker: Invoker) -> None:
        self._agent = agent
        self._handlers = handlers
        self._invoker = invoker
        self._fallback = Handler("message", "*", type(agent).on_message, None, None, None, None)

    async def process(self, delivery: delivery_pb2.Delivery) -> Verdict:
        """Handles a message and says what became of it."""
        try:
            envelope = _envelope(delivery)
        except DecodeError as error:
            return Verdict.drop(error)
        responses = _Responses(self._agent, envelope, direct=not delivery.delivery_id)
        message = Message(
            envelope,
            attempt=delivery.attempt or 1,
            max_attempts=delivery.max_attempts,
            delivery_mode="durable" if delivery.delivery_id else "direct",
            entry_id=delivery.entry_id,
            responder=responses.send,
        )
        handler = self._handlers.find("message", message.type) or self._fallback
        try:
            with processing(
                message.type,
                self._agent.agent_id,
                envelope.trace_context,
                delivery.last_trace_context,
                {"messaging.message.id": message.id, "bxmesh.attempt": message.attempt},
            ):
                await self._handle(handler, message, delivery)
        except Exception as error:
            return await self._failed(handler, message, error)
        return Verdict.ack(responses.kept)

    async def _handle(
        self, handler: Handler, message: Message, delivery: delivery_pb2.Delivery
    ) -> None:
        deadline = (
            delivery.deadline.ToNanoseconds() / 1e9 if delivery.HasField("deadline") else None
        )
        payload = () if handler.model is None else (message.read(handler.model),)
        await self._invoker.call(handler, message.type, deadline, message, *payload)

    async def _failed(self, handler: Handler, message: Message, error: Exception) -> Verdict:
        policy = handler.retry or RetryPolicy()
        bounds = [n for n in (policy.max_attempts, message.max_attempts) if n]
        last = bool(bounds) and message.attempt >= min(bounds)
        hopeless = isinstance(error, Drop | PayloadMismatch | Unhandled)
        direct = message.delivery_mode == "direct"
        if direct or last or hopeless or not policy.retryable(error):
            _log.warning("%r is given up: %s", message, error, exc_info=_trace(error))
            report = _report(message, error)
            if direct and report is not None:
                await self._tell(report)
                report = None
            return Verdict.drop(error, report)
        _log.info("%r is tried again: %s", message, error, exc_info=_trace(error))
        after = error.after if isinstance(error, Retry) else None
        if after is None and handler.retry is not None:
            after = policy.delay(message.attempt)
        if isinstance(error, BxmeshError) and error.retry_after is not None:
            after = max(after or 0.0, error.retry_after)
        return Verdict.retry(error, after)

    async def _tell(self, report: message_pb2.Envelope) -> None:
        try:
            await self._agent.mesh.send(
                report.recipient,
                report.message_type,
                report.payload,
                mode="direct",
                sender=self._agent.agent_id,
                correlation_id=report.correlation_id,
                conversation_id=report.conversation_id,
            )
        except BxmeshError as error:
            _log.info("%s was not told of a failure: %s", report.recipient, error)


class _Responses:
    """The reply to a message: sent at once to a direct one, otherwise kept for the answer."""

    def __init__(self, agent: Agent[Any], request: message_pb2.Envelope, *, direct: bool) -> None:
        self.kept: message_pb2.Envelope | None = None
        self._agent = agent
        self._request = request
        self._direct = direct
        self._sent = False

    async def send(self, message_type: str, payload: message_pb2.Payload) -> None:
        if self._sent:
            raise invalid("reply", "the message has its reply already", "REPLIED_ALREADY")
        self._sent = True
        request = self._request
        if not self._direct:
            self.kept = message_pb2.Envelope(
                message_type=message_type, payload=payload, trace_context=carrier()
            )
            return
        await self._agent.mesh.send(
            request.reply_to or request.sender,
            message_type,
            payload,
            mode="direct",
            sender=self._agent.agent_id,
            correlation_id=request.message_id,
            conversation_id=request.conversation_id,
        )


def _envelope(delivery: delivery_pb2.Delivery) -> message_pb2.Envelope:
    if delivery.HasField("signed_envelope"):
        return message_pb2.Envelope.FromString(delivery.signed_envelope.envelope)
    return delivery.envelope


def _report(message: Message, error: Exception) -> message_pb2.Envelope | None:
    if message.type == ERROR_REPORT or not message.reply_to:
        return None
    return message_pb2.Envelope(
        recipient=message.reply_to,
        message_type=ERROR_REPORT,
        payload=payloads.encode(to_status(error)),
        correlation_id=message.id,
        conversation_id=message.conversation_id,
        trace_context=message.envelope.trace_context,
    )


def _trace(error: Exception) -> Exception | None:
    """What is told by its message alone needs no stack trace in the log."""
    return None if isinstance(error, BxmeshError | Drop | Retry) else error
