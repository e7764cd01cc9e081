"""What definitions that are active cost a host: memory, time to begin, processor time at rest."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from benchmarks.bench_memory import resident_megabytes
from benchmarks.figures import Figure
from bxmesh.client import AsyncMesh, DefinitionLimits, ModelSettings, Rule, Tool
from bxmesh.client.chains import Chain, ChainStep
from bxmesh.client.host import Host
from bxmesh.server.embedded import EmbeddedMesh

DEFINITIONS = int(os.environ.get("BXMESH_BENCH_DEFINITIONS", "1000"))
REST_SECONDS = 10.0
AT_A_TIME = 16
_ANSWER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def run() -> list[Figure]:
    return asyncio.run(_hosted())


async def _hosted() -> list[Figure]:
    from pydantic_ai.models.test import TestModel

    with EmbeddedMesh(workers=0) as server:
        async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
            await mesh.functions.create("bench.echo", "def main(**fields):\n    return fields\n")
            await _each(lambda i: mesh.definitions.create(f"bench-{i}", **_definition(i)))
            models = {"bench:model": TestModel()}
            few = [f"bench-{kind}" for kind in range(3)]
            await asyncio.gather(*map(mesh.definitions.activate, few))
            async with Host(mesh, models=models).running():
                # The first of each kind brings in what all share.
                await _there(mesh, 3)
                for name in few:
                    await mesh.request(name, "go", {"n": 1})
                empty = resident_megabytes(os.getpid())
            await _each(lambda i: mesh.definitions.activate(f"bench-{i}"))
            began = time.monotonic()
            async with Host(mesh, models=models).running() as host:
                await _there(mesh, DEFINITIONS)
                took = time.monotonic() - began
                active = resident_megabytes(os.getpid())
                spent = time.process_time()
                await asyncio.sleep(REST_SECONDS)
                at_rest = (time.process_time() - spent) / REST_SECONDS
                await _each(lambda i: mesh.request(f"bench-{i}", "go", {"n": i}))
                used = resident_megabytes(os.getpid())
                assert sum(one.messages for one in host.figures()) == DEFINITIONS
    per_thousand = 1000 / DEFINITIONS
    return [
        Figure(
            f"memory of {DEFINITIONS} active definitions in a host, per 1000",
            (active - empty) * per_thousand,
            "MB",
            at_most=200,
            details=f"{empty:.0f} → {active:.0f} MB; rules, chains and models, a third each",
        ),
        Figure(
            "the same when each has answered a message, per 1000",
            (used - empty) * per_thousand,
            "MB",
            details=f"{empty:.0f} → {used:.0f} MB",
        ),
        Figure("a host takes them all up in", took, "s"),
        Figure("processor time of the host at rest", 100 * at_rest, "% of a core"),
    ]


def _definition(i: int) -> dict[str, Any]:
    """One of three kinds, as large as real ones."""
    common: dict[str, Any] = {
        "description": "One of many. " * 10,
        "limits": DefinitionLimits(timeout=60, max_concurrent_tasks=4),
        "capabilities": [f"bench.kind{i % 3}.n{i}"],
    }
    if i % 3 == 0:
        rules = [Rule(f"type{n}.*", Tool(function="bench.echo"), "reply") for n in range(10)]
        return {**common, "rules": [*rules, Rule("*", Tool(function="bench.echo"), "reply")]}
    if i % 3 == 1:
        steps = [ChainStep("first", function="bench.echo")]
        steps += [ChainStep("second", function="bench.echo", after=("first",))]
        return {**common, "chain": Chain(steps), "max_chain_depth": 2}
    return {
        **common,
        "model": ModelSettings("bench:model"),
        "system_prompt": "You answer with a number, whatever you are asked. " * 40,
        "tools": [Tool(function="bench.echo")],
        "output_schema": _ANSWER,
    }


async def _each(call: Any) -> None:
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(i: int) -> None:
        async with room:
            await call(i)

    await asyncio.gather(*(one(i) for i in range(DEFINITIONS)))


async def _there(mesh: AsyncMesh, count: int) -> None:
    while len(await mesh.agents(agent_type="definition")) < count:  # noqa: ASYNC110 - a host starts them
        await asyncio.sleep(0.5)
