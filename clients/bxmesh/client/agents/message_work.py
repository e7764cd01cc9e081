"""Messages at work: from a delivery through its handler to a verdict."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

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
from bxmesh.client.signatures import SignatureRefused, Signatures

if TYPE_CHECKING:
    from bxmesh.client.agents.agent import Agent

__all__ = ["MessageWork"]

_log = logging.getLogger(__name__)


class MessageWork:
    """Handles the messages of one agent."""

    def __init__(
        self, agent: Agent[Any], signatures: Signatures, handlers: Handlers, invoker: Invoker
    ) -> None:
        self._agent = agent
        self._signatures = signatures
        self._handlers = handlers
        self._invoker = invoker
        self._fallback = Handler("message", "*", type(agent).on_message, None, None, None, None)

    async def process(self, delivery: delivery_pb2.Delivery) -> Verdict:
        """Handles a message and says what became of it."""
        try:
            envelope, signed_by = await self._signatures.verify(delivery.envelope)
        except SignatureRefused as error:
            _log.warning("%s", error)
            return Verdict.drop(error)
        except BxmeshError as error:
            return Verdict.retry(error)
        responses = _Responses(
            self._agent, self._signatures, envelope, direct=not delivery.delivery_id
        )
        message = Message(
            envelope,
            attempt=delivery.attempt or 1,
            max_attempts=delivery.max_attempts,
            delivery_mode="durable" if delivery.delivery_id else "direct",
            entry_id=delivery.entry_id,
            signed_by=signed_by,
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
            report = _report(message, error, self._agent.agent_id)
            if direct and report is not None:
                await self._tell(report)
                report = None
            return Verdict.drop(error, report and await self._signatures.sign(report))
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

    def __init__(
        self,
        agent: Agent[Any],
        signatures: Signatures,
        request: message_pb2.Envelope,
        *,
        direct: bool,
    ) -> None:
        self.kept: message_pb2.Envelope | None = None
        self._agent = agent
        self._signatures = signatures
        self._request = request
        self._direct = direct
        self._sent = False

    async def send(self, message_type: str, payload: message_pb2.Payload) -> None:
        if self._sent:
            raise invalid("reply", "the message has its reply already", "REPLIED_ALREADY")
        self._sent = True
        request = self._request
        if not self._direct:
            answer = _answer(request, self._agent.agent_id, message_type, payload)
            self.kept = await self._signatures.sign(answer)
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


def _answer(
    request: message_pb2.Envelope, agent_id: str, message_type: str, payload: message_pb2.Payload
) -> message_pb2.Envelope:
    """An answer, with the names that the mesh gives it too: it can be signed."""
    return message_pb2.Envelope(
        # The same however often the message is handled.
        message_id=uuid5(NAMESPACE_OID, f"reply:{agent_id}:{request.message_id}").hex,
        sender=agent_id,
        recipient=request.reply_to or request.sender,
        message_type=message_type,
        payload=payload,
        correlation_id=request.message_id,
        conversation_id=request.conversation_id,
        trace_context=carrier(),
    )


def _report(message: Message, error: Exception, agent_id: str) -> message_pb2.Envelope | None:
    if message.type == ERROR_REPORT or not message.reply_to:
        return None
    return _answer(message.envelope, agent_id, ERROR_REPORT, payloads.encode(to_status(error)))


def _trace(error: Exception) -> Exception | None:
    """What is told by its message alone needs no stack trace in the log."""
    return None if isinstance(error, BxmeshError | Drop | Retry) else error
