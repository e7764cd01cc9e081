"""Tasks at work: from a delivery through the handler to a result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import grpc

from bxmesh.agent.v1 import delivery_pb2, message_pb2
from bxmesh.client.agents import payloads
from bxmesh.client.agents.calls import AgentCalls
from bxmesh.client.agents.failures import Unhandled, to_status
from bxmesh.client.agents.handlers import Handlers
from bxmesh.client.agents.invoker import Invoker
from bxmesh.client.agents.task_context import TaskContext
from bxmesh.client.agents.tasks import Task
from bxmesh.client.agents.traces import processing
from bxmesh.client.agents.verdicts import Verdict
from bxmesh.client.errors import BxmeshError, Cancelled, FailedPrecondition

__all__ = ["TaskWork"]

_log = logging.getLogger(__name__)


class TaskWork:
    """Does the tasks of one agent."""

    def __init__(
        self, agent_id: str, mesh: AgentCalls, handlers: Handlers, invoker: Invoker
    ) -> None:
        self._agent_id = agent_id
        self._mesh = mesh
        self._handlers = handlers
        self._invoker = invoker

    async def process(self, delivery: delivery_pb2.Delivery, cancel: Callable[[], None]) -> Verdict:
        """Does a task, reports how it ended, and returns the answer to its delivery.

        `cancel` is called when the mesh wants the task cancelled.
        """
        context = self._context(delivery)
        context.on_cancel_requested = cancel
        try:
            try:
                result = await self._result(context, delivery)
                await context.report(result=result)
            except FailedPrecondition as error:
                if error.reason != "LEASE_LOST":
                    raise
                # It is another's by now, or has ended.
                _log.info("%r is not this agent's any more: %s", context, error)
            return Verdict.ack()
        except Exception as error:
            _log.warning(
                "%r failed: %s",
                context,
                error,
                exc_info=None if isinstance(error, BxmeshError) else error,
            )
            return await self._failed(context, error)

    async def _result(
        self, context: TaskContext, delivery: delivery_pb2.Delivery
    ) -> message_pb2.Payload:
        with processing(
            context.type,
            self._agent_id,
            delivery.task.trace_context,
            delivery.last_trace_context,
            {"bxmesh.task.id": context.id, "bxmesh.attempt": context.attempt},
        ):
            handler = self._handlers.find("task", context.type)
            if handler is None:
                raise Unhandled(f"tasks of the type {context.type}", self._agent_id)
            arguments: tuple[object, ...] = ()
            if handler.model is not None:
                arguments = (context.task.read_parameters(handler.model),)
            await context.progress(0.0)
            deadline = None
            if delivery.HasField("deadline"):
                deadline = delivery.deadline.ToNanoseconds() / 1e9
            result = await self._invoker.call(handler, context.type, deadline, context, *arguments)
            return payloads.encode(result)

    async def _failed(self, context: TaskContext, error: BaseException) -> Verdict:
        try:
            await context.report(error=to_status(error))
        except BxmeshError as refusal:
            _log.info("the failure of %r was not reported: %s", context, refusal)
        return Verdict.ack()

    async def cancelled(self, delivery: delivery_pb2.Delivery) -> None:
        """Reports that a task has stopped because somebody wanted it cancelled."""
        error = Cancelled(
            f"{self._agent_id} has stopped the task",
            code=grpc.StatusCode.CANCELLED,
            reason="TASK_CANCELLED",
        )
        with suppress(BxmeshError):
            await self._context(delivery).report(error=to_status(error))

    def _context(self, delivery: delivery_pb2.Delivery) -> TaskContext:
        return TaskContext(self._mesh, delivery.delivery_id, Task.from_message(delivery.task))
