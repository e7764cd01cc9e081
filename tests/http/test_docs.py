"""The lines of docs/http.md, as they are written there."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, wheel_file
from tests.http.keys import admin_key

PAGE = Path(__file__).parents[2] / "docs" / "http.md"
# What asks language models is tested with agents of its own.
LINES = [
    line.strip()
    for line in PAGE.read_text().splitlines()
    if line.startswith("    curl") and "/chat" not in line and "/stream" not in line
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("line", LINES)
async def test_a_line(line: str, url: str, http_mesh: EmbeddedMesh, tmp_path: Path) -> None:
    shutil.copy(wheel_file(PDB_7N2L), tmp_path / "model.pdb")
    shutil.copy(wheel_file(MTZ_7N2L), tmp_path / "data.mtz")
    process = await asyncio.create_subprocess_shell(
        line.replace("curl ", "curl --silent --show-error --fail-with-body ").replace(
            "http://127.0.0.1:8080", url
        ),
        cwd=tmp_path,
        env={**os.environ, "KEY": admin_key(http_mesh)},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, told
    for answer in told.splitlines():
        assert isinstance(json.loads(answer), dict)
