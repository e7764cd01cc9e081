"""What it costs to execute a stored function, beside a call that only looks it up."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc

from benchmarks.figures import Figure
from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.agent.v1.function_service_pb2_grpc import FunctionServiceStub
from bxmesh.server.embedded import EmbeddedMesh

CALLS = int(os.environ.get("BXMESH_BENCH_CALLS", "2000"))
IN_A_ROW = 20
_NAME = "bench.double"
_CODE = "def main(n):\n    return n * 2\n"


def run() -> list[Figure]:
    return asyncio.run(_executions())


async def _executions() -> list[Figure]:
    """One call at a time over a unix socket, and in turn a unary call that does nothing else."""
    async with AsyncExitStack() as stack:
        mesh = stack.enter_context(EmbeddedMesh(workers=0))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(mesh.address))
        key = (mesh.state_dir / "admin.key").read_text().strip()
        metadata = (("authorization", f"Bearer {key}"),)
        stub: Any = FunctionServiceStub(channel)
        function = pb.Function(name=_NAME, code=_CODE)
        function.input_schema.json_schema.update(
            {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        )
        await stub.CreateFunction(pb.CreateFunctionRequest(function=function), metadata=metadata)
        call = pb.ExecuteFunctionRequest(name=_NAME)
        call.input.update({"n": 21})
        look = pb.GetFunctionRequest(name=_NAME)

        async def execute() -> None:
            answer = await stub.ExecuteFunction(call, metadata=metadata)
            assert answer.execution.output.number_value == 42, answer.execution

        async def look_up() -> None:
            await stub.GetFunction(look, metadata=metadata)

        # The first calls fill caches and wake workers.
        await _timed(execute)
        await _timed(look_up)
        executed: list[float] = []
        looked: list[float] = []
        for _ in range(0, CALLS, IN_A_ROW):
            looked += await _timed(look_up)
            executed += await _timed(execute)
    return [
        _figure("p50", statistics.median(executed), statistics.median(looked)),
        _figure("p95", _p95(executed), _p95(looked)),
    ]


def _figure(which: str, executed: float, looked: float) -> Figure:
    return Figure(
        f"executing a function of one line, {which}, against looking it up",
        executed / looked,
        details=f"{1000 * executed:.2f} against {1000 * looked:.2f} ms",
    )


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


async def _timed(call: Callable[[], Awaitable[None]]) -> list[float]:
    seconds = []
    for _ in range(IN_A_ROW):
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    return seconds
