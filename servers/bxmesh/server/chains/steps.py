"""Doing one step of a run, as the run's owner would: execute a function, or give an agent a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from bxmesh.agent.v1 import function_pb2, message_pb2, task_pb2
from bxmesh.agent.v1.function_service_pb2_grpc import FunctionServiceStub
from bxmesh.server.agent_calls import AgentCalls, mesh_error, result_of
from bxmesh.server.chains.graph import Step
from bxmesh.server.errors import MeshError, deadline_exceeded, invalid_argument
from bxmesh.server.functions.limits import MOST
from bxmesh.server.json_values import json_aside, value_aside
from bxmesh.server.security.on_behalf import Metadata

__all__ = ["Calls", "StepCall"]

_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StepCall:
    """One attempt at a step."""

    step: Step
    input: Any
    request_id: str
    """The same for the same attempt, so that one that is taken up again finds its task."""
    seconds: float
    """How long it may take."""
    parent_task_id: str = ""
    on_behalf_of: str = ""
    """For whom the owner of the run began it; empty for itself."""
    unwanted: Callable[[], bool] = lambda: True
    """Whether what is cancelled is cancelled for good, and not to be taken up again."""


class Calls:
    """Calls the mesh for the owner of a run."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._functions: Any = FunctionServiceStub(channel)
        self._agents = AgentCalls(channel, metadata)
        self._metadata = metadata

    async def call(self, call: StepCall) -> tuple[Any, str]:
        """Returns what a step answers, and the agent that did it; raises MeshError with why not."""
        try:
            if call.step.function is not None:
                return await self._execute(call), ""
            return await self._assign(call)
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error) from error

    async def _execute(self, call: StepCall) -> Any:
        reference = call.step.function
        assert reference is not None
        if not isinstance(call.input, dict):
            raise invalid_argument(
                f"steps.{call.step.step_id}.input",
                "must be an object, whose fields are the function's arguments",
                reason="INPUT_INVALID",
            )
        request = function_pb2.ExecuteFunctionRequest(
            name=reference.name,
            version=reference.version,
            on_behalf_of=call.on_behalf_of,
            parent_task_id=call.parent_task_id,
        )
        given = await value_aside(call.input)
        request.input.CopyFrom(given.struct_value)
        limit = min(call.seconds, MOST.timeout)
        request.limits.timeout.FromMilliseconds(max(1, int(limit * 1000)))
        answer = await self._functions.ExecuteFunction(
            request, metadata=self._metadata, timeout=call.seconds + _MARGIN_SECONDS
        )
        execution = answer.execution
        if execution.state != function_pb2.EXECUTION_STATE_COMPLETED:
            raise MeshError.from_status(execution.error)
        return await json_aside(execution.output)

    async def _assign(self, call: StepCall) -> tuple[Any, str]:
        message = call.step.message
        capability = message.capability
        spec = task_pb2.TaskSpec(
            task_type=capability or "chain.step",
            description=f"Step {call.step.step_id} of a chain.",
            agent_id=message.agent,
            required_capabilities=[capability] if capability else [],
            parameters=message_pb2.Payload(
                json=message_pb2.JsonPayload(json=json.dumps(call.input))
            ),
            retry_policy=message.retry_policy,
            parent_task_id=call.parent_task_id,
        )
        spec.timeout.FromMilliseconds(max(1, int(call.seconds * 1000)))
        task = await self._agents.done(
            task_pb2.AssignTaskRequest(
                request_id=call.request_id, spec=spec, on_behalf_of=call.on_behalf_of
            ),
            unwanted=call.unwanted,
            why="its chain has ended",
        )
        if task.state == task_pb2.TASK_STATE_COMPLETED:
            return result_of(task), task.agent_id
        error = MeshError.from_status(task.error)
        if task.state == task_pb2.TASK_STATE_TIMED_OUT:
            error = deadline_exceeded(error.message, reason="STEP_TIMED_OUT")
        raise error
