"""The examples run as they are, and do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_file

EXAMPLES = Path(__file__).parents[2] / "examples"


def figures(server: EmbeddedMesh, name: str, *arguments: str | Path) -> list[float]:
    """The numbers in the last line that an example prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"BXMESH_STATE_DIR": str(server.state_dir)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [float(figure) for figure in re.findall(r"\d+\.?\d*", done.stdout.splitlines()[-1])]


def test_refine(server: EmbeddedMesh) -> None:
    before, after, rmsd = figures(
        server, "torch_refine.py", wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L), "--steps", "12"
    )
    assert after < before - 0.05
    assert rmsd < 0.3


def test_guidance(server: EmbeddedMesh) -> None:
    samples, alone, guided = figures(server, "torch_guidance.py", wheel_file(PDB_1YJP))
    assert samples == 4
    assert guided < 0.1 * alone


def test_training(server: EmbeddedMesh) -> None:
    before, after = figures(server, "torch_training.py", wheel_file(PDB_1YJP), "--epochs", "80")
    assert after < before - 3
