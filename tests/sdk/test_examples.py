"""The examples run as they are."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_file
from tests.sdk.conftest import client

EXAMPLES = Path(__file__).parents[2] / "examples"


async def run(server: EmbeddedMesh, name: str, *arguments: str) -> str:
    """What an example prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        str(EXAMPLES / name),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"BXMESH_STATE_DIR": str(server.state_dir)},
    )
    async with asyncio.timeout(100):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_greeting(shared_server: EmbeddedMesh) -> None:
    assert (await run(shared_server, "greeting.py")).splitlines() == [
        "bert hears 'Good morning, bert!' by direct message",
        "ada gets 'Hello, ada!' back",
        "ada hears 'Good morning, ada!' by durable message",
        "bert gets 'Hello, bert!' back",
    ]


async def test_stored_function(shared_server: EmbeddedMesh) -> None:
    assert (await run(shared_server, "stored_function.py")).splitlines() == [
        "examples.deviation 1.0.0 is latest",
        "5.0 Å",
        "started ",
        "progress {'atoms': 1}",
        "progress {'atoms': 2}",
        "printed all atoms compared",
        "ended ",
        "examples.deviation failed: ZeroDivisionError: division by zero (line 15)",
        "2 of 3 executions completed",
    ]


async def test_minions(lone_server: EmbeddedMesh) -> None:
    assert (await run(lone_server, "minions.py")).splitlines() == [
        "23.0",
        "6",
        "one is idle, load 0%",
        "three is idle, load 0%",
        "two is idle, load 0%",
        "43 done",
    ]


async def test_chain(shared_server: EmbeddedMesh, tmp_path: Path) -> None:
    picture = tmp_path / "run.svg"
    *lines, fails = (await run(shared_server, "chain.py", str(picture))).splitlines()
    assert lines[0] == "{'kept': [1, 2, 3], 'mean': 2}"
    # These two run at the same time.
    measured, spread = sorted(lines[1:3])
    assert measured == "measure {'mean': 14}"
    assert spread.startswith("spread {'spread': 20.79")
    assert lines[3:] == ["trim {'kept': [1, 2, 3]}", "{'kept': [1, 2, 3], 'mean': 14}"]
    assert fails.startswith("The step mean failed: ")
    assert "ZeroDivisionError" in fails
    assert picture.read_text().startswith("<svg")


async def test_geometry_fanout(workers_server: EmbeddedMesh) -> None:
    output = await run(workers_server, "geometry_fanout.py", str(wheel_file(PDB_1YJP)))
    assert "200 of 200 jobs" in output
    assert "0 failures" in output
    bundle_id = output.split()[-1]
    async with client(workers_server) as mesh:
        assert len(await mesh.bundles.download(bundle_id)) % (3 * 8) == 0
        workers = {agent.agent_id for agent in await mesh.agents()}
    assert all(worker in output for worker in workers)


async def test_which_model(workers_server: EmbeddedMesh) -> None:
    files = (str(wheel_file(PDB_7N2L)), str(wheel_file(MTZ_7N2L)))
    output = await run(workers_server, "which_model.py", *files, "--scattering-table", "electron")
    shaken, minimized = output.split("Which is better, the deposited one or ")[1:]
    # All find the deposited one better than a shaken copy.
    assert shaken.startswith("the shaken one?")
    assert re.findall(r"  (\S+): the (\S+) one", shaken) == [
        ("clash", "deposited"),
        ("geometry", "deposited"),
        ("xray-fit", "deposited"),
        ("better", "deposited"),
    ]
    for figure in ("rms Z of bonds and angles", "R-free", "nonbonded energy"):
        assert len(re.findall(rf"sha256:[0-9a-f]{{64}} has {figure} \d", shaken)) == 2
    # Minimized without the data it has the better geometry; the judge goes by the data.
    assert re.findall(r"  (\S+): the (\S+) one", minimized) == [
        ("clash", "minimized"),
        ("geometry", "minimized"),
        ("xray-fit", "deposited"),
        ("better", "deposited"),
    ]
    assert "has R-free" in minimized
