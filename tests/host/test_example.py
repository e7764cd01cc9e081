"""The example runs as it is."""

from __future__ import annotations

from bxmesh.server.embedded import EmbeddedMesh
from tests.sdk.test_examples import run


async def test_dynamic_agent(served: EmbeddedMesh) -> None:
    assert (await run(served, "dynamic_agent.py")).splitlines() == [
        "examples.contacts 1 is draft",
        "examples.contacts 1 is active",
        '{"closest": 2.9, "count": 2}',
        '{"nearest": 2.9}',
        "2 tasks, 2 calls, 0 failures",
    ]
