"""`bxmesh http` as a process."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx

from bxmesh.server.embedded import EmbeddedMesh

COMMAND = (sys.executable, "-c", "from bxmesh.client.cli import main; main()", "http")


async def refusal(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, told = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode != 0
    assert b"Traceback" not in told
    return told.decode()


async def test_it_serves_until_it_is_told_to_stop(http_mesh: EmbeddedMesh) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("--address", "127.0.0.1:0"),
        env={**os.environ, "BXMESH_STATE_DIR": str(http_mesh.state_dir)},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
    url = line.split()[2]
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{url}/health")).status_code == 200
        # The key of this machine, which the command can read, is nobody's here.
        assert (await http.get(f"{url}/health/detailed")).status_code == 401
    process.terminate()
    await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0


async def test_unsafe_places_are_refused(tmp_path: Path) -> None:
    assert "--allow-insecure" in await refusal("--address", "0.0.0.0:0")
    elsewhere = await refusal("--endpoint", "192.0.2.1:50051", "--state-dir", str(tmp_path))
    assert "plain text" in elsewhere
    assert "address" in await refusal("--address", "here")
