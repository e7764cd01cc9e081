"""What a step of a chain adds to the function that it executes, written down before the next begins."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc

from benchmarks.figures import Figure, milliseconds
from bxmesh.agent.v1 import chain_run_pb2 as pb
from bxmesh.agent.v1 import function_pb2
from bxmesh.agent.v1.chain_service_pb2_grpc import ChainServiceStub
from bxmesh.agent.v1.function_service_pb2_grpc import FunctionServiceStub
from bxmesh.registry.v1 import chain_pb2
from bxmesh.server.embedded import EmbeddedMesh

RUNS = int(os.environ.get("BXMESH_BENCH_RUNS", "100"))
STEPS = 10
_NAME = "bench.add"


def run() -> list[Figure]:
    return asyncio.run(_chains())


async def _chains() -> list[Figure]:
    """Chains over a unix socket, and in turn as many calls of their function, and chains of one step:
    the difference of these is what steps take, without what a run costs once."""
    async with AsyncExitStack() as stack:
        mesh = stack.enter_context(EmbeddedMesh(workers=0))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(mesh.address))
        key = (mesh.state_dir / "admin.key").read_text().strip()
        metadata = (("authorization", f"Bearer {key}"),)
        functions: Any = FunctionServiceStub(channel)
        chains: Any = ChainServiceStub(channel)
        function = function_pb2.Function(name=_NAME, code="def main(n):\n    return {'n': n + 1}\n")
        await functions.CreateFunction(
            function_pb2.CreateFunctionRequest(function=function), metadata=metadata
        )
        call = function_pb2.ExecuteFunctionRequest(name=_NAME)
        call.input.update({"n": 0})

        async def execute() -> None:
            answer = await functions.ExecuteFunction(call, metadata=metadata)
            assert answer.execution.output.struct_value["n"] == 1, answer.execution

        async def run_chain(steps: int) -> None:
            request = pb.StartChainRequest(chain=_chain(steps))
            request.input.struct_value.update({"n": 0})
            started = await chains.StartChain(request, metadata=metadata)
            watch = chains.WatchChain(
                pb.WatchChainRequest(run_id=started.run.run_id), metadata=metadata
            )
            changes = [change async for change in watch]
            assert changes[-1].run.output.struct_value["n"] == steps, changes[-1].run

        # The first calls fill caches and wake workers.
        for warm_up in (execute, lambda: run_chain(STEPS), lambda: run_chain(1)):
            for _ in range(5):
                await warm_up()
        executed: list[float] = []
        whole: list[float] = []
        short: list[float] = []
        for _ in range(RUNS):
            executed += [await _timed(execute) for _ in range(STEPS)]
            whole.append(await _timed(lambda: run_chain(STEPS)))
            short.append(await _timed(lambda: run_chain(1)))
    one = statistics.median(executed)
    step = (statistics.median(whole) - statistics.median(short)) / (STEPS - 1)
    return [
        Figure(
            "a step of a chain, beyond the execution of its function",
            1000 * (step - one),
            "ms",
            details=f"{milliseconds(step, one)} with and without the chain",
        ),
        Figure("the same as a ratio", step / one, details=f"{RUNS} chains of {STEPS} steps"),
        Figure(
            "what a chain of one step takes, beyond the same",
            1000 * (statistics.median(short) - one),
            "ms",
            details="to start, queue, watch and end it",
        ),
    ]


def _chain(steps: int) -> chain_pb2.Chain:
    """Steps one after another, of which each adds one to what the one before it answered."""
    return chain_pb2.Chain(
        steps=[
            chain_pb2.ChainStep(step_id=f"s{i}", function=_NAME, after=[f"s{i - 1}"] if i else [])
            for i in range(steps)
        ]
    )


async def _timed(call: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began
