"""What functions may call of the mesh, when they are granted it: each call is their caller's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from pydantic_core import to_jsonable_python

from bxmesh.agent.v1 import function_pb2, message_pb2
from bxmesh.agent.v1.function_work_pb2 import OnBehalfOf
from bxmesh.client.errors import BxmeshError
from bxmesh.client.mesh import AsyncMesh
from bxmesh.server.errors import MeshError, invalid_argument
from bxmesh.server.functions.engine import HostFunction
from bxmesh.server.json_values import NotJsonError, json_of, value_of
from bxmesh.server.security.on_behalf import Deputy

__all__ = ["HOST_FUNCTIONS", "HostCalls"]

Tell = Callable[[function_pb2.StreamFunctionResponse], None]
T = TypeVar("T")

_LARGEST_RESULT = 1 << 20
# Whoever follows may read slowly, and what is not read yet is kept.
_MOST_PROGRESS = 16 << 20
_MOST_NUMBERS = 100_000


class HostCalls:
    """The host functions of one execution; an async context manager that ends their connection.

    Each raises MeshError with what the mesh refused.
    """

    def __init__(
        self,
        deputy: Deputy,
        caller: OnBehalfOf,
        parent_task_id: str,
        seconds: float,
        tell: Tell,
    ) -> None:
        """Takes for whom they call, the task whose children their tasks are, for how long at most, and
        whom to tell of progress."""
        self._deputy = deputy
        self._caller = caller
        self._parent_task_id = parent_task_id
        self._seconds = seconds
        self._tell = tell
        self._progress_left = _MOST_PROGRESS
        self._mesh: AsyncMesh | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> HostCalls:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._mesh is not None:
            await self._mesh.close()

    def granted(self, names: Iterable[str]) -> Mapping[str, HostFunction]:
        """Returns host functions by name."""
        return {name: getattr(self, HOST_FUNCTIONS[name]) for name in names}

    async def progress(self, value: object = None) -> None:
        """Reports progress to whoever follows the execution."""
        payload = message_pb2.Payload()
        payload.json.json = _json(value)
        self._progress_left -= payload.ByteSize()
        if self._progress_left < 0:
            raise MeshError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MUCH_PROGRESS",
                f"It reported more than {_MOST_PROGRESS} bytes of progress.",
            )
        self._tell(function_pb2.StreamFunctionResponse(progress=payload))

    async def discover(self, *capabilities: str) -> list[dict[str, Any]]:
        """Finds the live agents that offer all of some capabilities, best first."""
        mesh = await self._connected()
        found = await _refusing(mesh.discover(*_names(capabilities)))
        return [
            {
                "agent_id": agent.agent_id,
                "agent_type": agent.agent_type,
                "capabilities": list(agent.capabilities),
                "status": agent.status,
                "current_load": agent.current_load,
            }
            for agent in found.agents
        ]

    async def request(self, recipient: str, message_type: str, payload: object = None) -> Any:
        """Sends an agent a message and returns what it answers."""
        mesh = await self._connected()
        reply = await _refusing(
            mesh.request(str(recipient), str(message_type), payload, timeout=self._seconds)
        )
        return _plain(reply.payload)

    async def assign(self, capability: str, parameters: object = None) -> Any:
        """Gives a task to an agent that offers a capability and returns the result."""
        mesh = await self._connected()
        task = await _refusing(
            mesh.assign_task(
                str(capability),
                parameters,
                capabilities=[str(capability)],
                timeout=self._seconds,
                parent_task_id=self._parent_task_id,
            )
        )
        try:
            ended = await _refusing(mesh.wait_for_task(task.task_id))
        except asyncio.CancelledError:
            await asyncio.shield(mesh.cancel_task(task.task_id, "its function has ended"))
            raise
        if ended.error is not None:
            raise _refused(ended.error)
        return _plain(ended.result)

    async def gradients(
        self,
        model_id: str,
        coordinates: object = None,
        *,
        target: str = "geometry",
        arrays: bool = False,
    ) -> dict[str, Any]:
        """Computes energies of a model, and gradients as nested lists where they are asked for."""
        mesh = await self._connected()
        given: Any = coordinates
        options: Any = {"target": target}
        found = await _refusing(mesh.gradients(str(model_id), given, **options))
        answer: dict[str, Any] = {"samples": [_plain(asdict(sample)) for sample in found.samples]}
        if arrays:
            for name, array in found.arrays.items():
                if array.size > _MOST_NUMBERS:
                    raise invalid_argument(
                        "arrays", f"{array.size} numbers are too many for a function"
                    )
                answer[name] = array.tolist()
        return answer

    async def _connected(self) -> AsyncMesh:
        async with self._lock:
            if self._mesh is None:
                self._mesh = await self._deputy.mesh(self._caller, self._seconds)
        return self._mesh


HOST_FUNCTIONS: Mapping[str, str] = {
    "mesh.progress": "progress",
    "mesh.discover": "discover",
    "mesh.request": "request",
    "mesh.assign": "assign",
    "geometry.gradients": "gradients",
}
"""What functions may be granted, and the method of HostCalls that it is."""


async def _refusing(call: Awaitable[T]) -> T:
    try:
        return await call
    except BxmeshError as error:
        raise _refused(error) from error


def _refused(error: BxmeshError) -> MeshError:
    code = error.code if isinstance(error.code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN
    return MeshError(code, error.reason, error.message)


def _names(values: Sequence[object]) -> list[str]:
    return [str(value) for value in values]


def _json(value: object) -> str:
    try:
        return json.dumps(json_of(value_of(value, _LARGEST_RESULT)))
    except NotJsonError as error:
        raise invalid_argument("value", str(error)) from None


def _plain(value: Any) -> Any:
    """A value as the sandbox takes it: JSON, protobuf messages written as such."""
    if isinstance(value, Message):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    return to_jsonable_python(value, inf_nan_mode="strings")
