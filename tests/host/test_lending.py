"""`bxmesh host --lend`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
from click.testing import CliRunner

from bxmesh.client import AsyncMesh
from bxmesh.client.cli import main
from bxmesh.server.embedded import EmbeddedMesh
from tests.host.openai_server import serving
from tests.host.worlds import live
from tests.sdk.agents import name, soon

_MAIN = "from bxmesh.client.cli import main; main()"


async def test_a_host_of_the_command_line_lends_models(
    served: EmbeddedMesh, mesh: AsyncMesh
) -> None:
    unique = name("host")
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "BXMESH_MODEL_KEY_127_0_0_1": "its-key"}
    with serving() as server:
        server.script = lambda asked: "Answer: four"
        command = [sys.executable, "-c", _MAIN, "host", "--name", unique, "--stats"]
        command += ["--address", served.address, "--state-dir", str(served.state_dir)]
        command += ["--only", "nothing", "--lend", f"openai:small={server.url}"]
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=asyncio.subprocess.PIPE
        )
        try:
            await live(mesh, f"models-{unique}")
            found = await soon(mesh.conversations.hold("What is 2 and 2?", agents=2), 60)
            process.send_signal(signal.SIGTERM)
            output, _ = await soon(process.communicate())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert found.value == "four"
    assert set(server.keys) == {"Bearer its-key"}
    assert process.returncode == 0
    assert f"models-{unique}" in output.decode()
    assert "20/10" in output.decode()


@pytest.mark.parametrize("lent", ["", "=http://127.0.0.1/v1", "small", ":small", "openai:"])
def test_models_have_providers(lent: str) -> None:
    result = CliRunner().invoke(main, ["host", "--lend", lent])
    assert result.exit_code == 2
    assert "names no model of a provider" in result.output
