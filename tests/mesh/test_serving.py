"""`bxmesh serve` as a process: where it listens, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bxmesh.client import AsyncMesh
from bxmesh.client.errors import BxmeshError
from bxmesh.server.embedded import EmbeddedMesh
from tests.mesh.conftest import start_mesh
from tests.processes import children, until

CERTIFICATES = Path(__file__).parents[1] / "doctor" / "certificates"


def refusal(*arguments: str, state_dir: Path) -> str:
    """What `bxmesh serve` says when it does not start."""
    result = subprocess.run(
        [sys.executable, "-m", "bxmesh.server.cli", "serve", "--workers", "0", *arguments],
        env={**os.environ, "BXMESH_STATE_DIR": str(state_dir)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    return result.stderr


async def test_listens_elsewhere_only_with_tls(state_dir: Path) -> None:
    message = refusal("--listen", "0.0.0.0:0", state_dir=state_dir)
    assert "--tls-certificate" in message
    assert "--allow-insecure" in message


async def test_one_mesh_per_state_directory(shared_mesh: EmbeddedMesh) -> None:
    message = refusal("--listen", "127.0.0.1:0", state_dir=shared_mesh.state_dir)
    assert "Another bxmesh serves" in message
    async with AsyncMesh(shared_mesh.address, state_dir=shared_mesh.state_dir) as mesh:
        assert await mesh.agents()


async def test_taken_port(state_dir: Path) -> None:
    with start_mesh(0, "--listen", "127.0.0.1:0") as server:
        message = refusal("--listen", server.address, state_dir=state_dir)
    assert server.address in message


async def test_unreachable_redis_is_told_without_the_password(state_dir: Path) -> None:
    url = "redis://user:secret-word@127.0.0.1:1/0"
    message = refusal("--listen", "127.0.0.1:0", "--redis-url", url, state_dir=state_dir)
    assert "127.0.0.1" in message
    assert "secret-word" not in message


@pytest.mark.parametrize("arguments", [("--workers", "-1"), ("--services", "geometry,magic")])
async def test_wrong_options(state_dir: Path, arguments: tuple[str, ...]) -> None:
    assert arguments[0].lstrip("-") in refusal(*arguments, state_dir=state_dir)


async def test_tls() -> None:
    certificate = CERTIFICATES / "lasting.pem"
    with start_mesh(
        0,
        *("--listen", "127.0.0.1:0"),
        *("--tls-certificate", str(certificate)),
        *("--tls-key", str(CERTIFICATES / "key.pem")),
    ) as server:
        port = server.address.rpartition(":")[2]
        address = f"localhost:{port}"
        async with AsyncMesh(
            address, root_certificates=certificate, state_dir=server.state_dir
        ) as mesh:
            assert [bundle async for bundle in mesh.bundles.list()] == []
        async with AsyncMesh(address, tls=False, state_dir=server.state_dir, retries=0) as mesh:
            with pytest.raises(BxmeshError):
                await mesh.agents()


async def test_ends_with_the_process_that_started_it(state_dir: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from bxmesh.server.embedded import EmbeddedMesh\n"
        f"mesh = EmbeddedMesh(Path({str(state_dir)!r}), workers=1)\n"
        "mesh.start()\n"
        "print(mesh.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    assert starter.stdout is not None
    server = int(await asyncio.wait_for(starter.stdout.readline(), 60))
    pids = [server, *children(server)]
    assert len(pids) >= 2
    starter.kill()
    await starter.wait()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


async def test_sigterm_drains_and_leaves_nothing(state_dir: Path) -> None:
    server = EmbeddedMesh(state_dir, workers=1)
    server.start()
    pids = [server.pid, *children(server.pid)]
    assert json.loads((state_dir / "server.json").read_text())["pid"] == server.pid
    server.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not (state_dir / "server.json").exists()
    log = server.log_path.read_text()
    assert "Traceback" not in log
    assert "Valkey died" not in log
