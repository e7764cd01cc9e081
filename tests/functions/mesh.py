"""A whole server, without geometry, and callers of its function service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from bxmesh.agent.v1.function_service_pb2_grpc import FunctionServiceStub
from bxmesh.client.errors import BxmeshError, from_rpc_error
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.registry.v1.schema_pb2 import Schema
from bxmesh.security.v1 import credential_pb2, identity_pb2
from bxmesh.security.v1.security_service_pb2_grpc import SecurityServiceStub
from bxmesh.server.app import MeshServer, serve
from bxmesh.server.security.admin_key import load_or_create
from bxmesh.server.settings import Settings

COMPLETED = pb.EXECUTION_STATE_COMPLETED
FAILED = pb.EXECUTION_STATE_FAILED
LIMITED = pb.EXECUTION_STATE_LIMIT_EXCEEDED
CANCELLED = pb.EXECUTION_STATE_CANCELLED
PENDING = pb.EXECUTION_STATE_PENDING

Metadata = tuple[tuple[str, str], ...]


def seconds(value: float, **fields: Any) -> pb.FunctionLimits:
    """Limits."""
    made = pb.FunctionLimits(**fields)
    made.timeout.FromMicroseconds(int(value * 1e6))
    return made


def struct(**fields: Any) -> Struct:
    """An object from Python values."""
    made = Struct()
    json_format.ParseDict(fields, made)
    return made


def schema(**content: Any) -> Schema:
    """A JSON Schema."""
    return Schema(json_schema=struct(**content))


def objects(required: Sequence[str] = (), **properties: Any) -> Schema:
    """A JSON Schema of an object."""
    return schema(
        type="object",
        properties=properties,
        required=list(required),
        additionalProperties=False,
    )


class Caller:
    """The function service as one identity sees it."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self.metadata = metadata
        self.channel = channel
        self.stub: Any = FunctionServiceStub(channel)
        self.agents: Any = AgentServiceStub(channel)
        self.registry: Any = RegistryServiceStub(channel)

    async def create(self, name: str, code: str, **fields: Any) -> pb.Function:
        """Stores a function; `aliases`, `request_id` and `validate_only` are the request's."""
        request = {
            key: fields.pop(key)
            for key in ("aliases", "request_id", "validate_only")
            if key in fields
        }
        answer = await self.stub.CreateFunction(
            pb.CreateFunctionRequest(
                function=pb.Function(name=name, code=code, **fields), **request
            ),
            metadata=self.metadata,
        )
        function: pb.Function = answer.function
        return function

    async def execute(
        self, name: str, arguments: dict[str, Any] | None = None, **fields: Any
    ) -> Any:
        """Executes a function; returns the execution."""
        answer = await self.stub.ExecuteFunction(
            pb.ExecuteFunctionRequest(name=name, input=struct(**(arguments or {})), **fields),
            metadata=self.metadata,
        )
        return answer.execution

    async def stream(
        self, name: str, arguments: dict[str, Any] | None = None, **fields: Any
    ) -> Any:
        """Executes a function; returns the events."""
        call = pb.ExecuteFunctionRequest(name=name, input=struct(**(arguments or {})), **fields)
        return [
            event
            async for event in self.stub.StreamFunction(
                pb.StreamFunctionRequest(call=call), metadata=self.metadata
            )
        ]

    async def cancel(self, execution_id: str) -> pb.Execution:
        """Cancels an execution; returns it."""
        answer = await self.stub.CancelExecution(
            pb.CancelExecutionRequest(execution_id=execution_id), metadata=self.metadata
        )
        execution: pb.Execution = answer.execution
        return execution

    async def begun(self, name: str) -> pb.Execution:
        """Waits until the newest execution of a function runs, and returns it."""
        request = pb.ListExecutionsRequest(function_name=name, page_size=1)
        while True:
            answer = await self.stub.ListExecutions(request, metadata=self.metadata)
            for execution in answer.executions:
                if execution.state == pb.EXECUTION_STATE_RUNNING:
                    found: pb.Execution = execution
                    return found
            await asyncio.sleep(0.05)

    async def run(self, code: str, name: str = "test.it", **arguments: Any) -> Any:
        """Stores a function and executes it; returns the execution."""
        is_async = "async def main" in code
        await self.create(name, code, is_async=is_async)
        return await self.execute(name, arguments)

    async def run_with(self, code: str, *host_functions: str, name: str = "test.it") -> Any:
        """Stores a coroutine with host functions and executes it."""
        await self.create(name, code, is_async=True, host_functions=host_functions)
        return await self.execute(name)


@dataclass
class World:
    """A running server."""

    server: MeshServer
    channel: grpc.aio.Channel
    admin: Caller
    security: Any

    async def caller(self, name: str, *permissions: str, team: str = "", **fields: Any) -> Caller:
        """An identity with a key."""
        await self.security.CreateIdentity(
            identity_pb2.CreateIdentityRequest(
                identity=identity_pb2.Identity(
                    identity_id=name,
                    kind=identity_pb2.IDENTITY_KIND_USER,
                    permissions=permissions
                    or ("function_read", "function_write", "function_execute"),
                    team=team,
                    **fields,
                )
            ),
            metadata=self.admin.metadata,
        )
        answer = await self.security.CreateApiKey(
            credential_pb2.CreateApiKeyRequest(identity_id=name), metadata=self.admin.metadata
        )
        return Caller(self.channel, (("authorization", f"Bearer {answer.secret}"),))


@asynccontextmanager
async def world(redis_url: str, folder: Path | None = None, **options: Any) -> AsyncIterator[World]:
    """Runs a server within a block; servers of one folder, one after another, are one mesh."""
    with TemporaryDirectory(prefix="bx-") as own:
        settings = Settings(
            state_dir=folder or Path(own),
            listen="127.0.0.1:0",
            redis_url=redis_url,
            services=("registry", "agent", "functions", "security"),
            **{"function_workers": 2, "drain_grace": 0.5, **options},
        )
        async with serve(settings) as server:
            key = load_or_create(settings.state_dir)
            async with grpc.aio.insecure_channel(
                server.address, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                admin = Caller(channel, (("authorization", f"Bearer {key}"),))
                yield World(server, channel, admin, SecurityServiceStub(channel))


async def refused(call: Any) -> BxmeshError:
    """Returns the error of a call that must fail."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError(f"the call was not refused: {answer}")
