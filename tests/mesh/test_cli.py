"""The command line, against the running mesh and as a process with one it starts itself."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bxmesh.client import AsyncMesh
from bxmesh.client.cli import main
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.test_macromolecule import ETHANOL
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_bytes, wheel_file
from tests.mesh.raw import noisy
from tests.processes import until

# Tests that run in the background ignore interrupts, and so would what they start.
INTERRUPTIBLE = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)
BXMESH = Path(sys.executable).parent / "bxmesh"
PDB, DATA, PEPTIDE = (str(wheel_file(path)) for path in (PDB_7N2L, MTZ_7N2L, PDB_1YJP))
TERMS = {"bond", "angle", "dihedral", "chirality", "planarity", "nonbonded"}


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.stderr
        return json.loads(self.stdout)


Run = Callable[..., Awaitable[Ended]]


def marked(mark: str) -> list[int]:
    """The processes that have a mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Home:
    """A user who has nothing yet; nothing may be left of their processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = uuid.uuid4().hex
        self.environment = {
            **os.environ,
            "HOME": str(directory),
            "TMPDIR": str(directory),
            "XDG_STATE_HOME": str(directory / "state"),
            "XDG_CACHE_HOME": str(directory.parent / "cache"),
            "COLUMNS": "200",
            "MARK": self.mark,
        }

    async def start(self, *arguments: object) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", INTERRUPTIBLE),
            BXMESH,
            *map(str, arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            cwd=self.directory,
        )

    async def run(self, *arguments: object) -> Ended:
        """Runs a command in a process of its own."""
        process = await self.start(*arguments)
        stdout, stderr = await asyncio.wait_for(process.communicate(), 90)
        return Ended(process.returncode or 0, stdout.decode(), stderr.decode())


@pytest.fixture
def home(short_dir: Path) -> Home:
    directory = short_dir / "home"
    directory.mkdir()
    return Home(directory)


@pytest.fixture
def bxmesh(home: Home, shared_mesh: EmbeddedMesh, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against the running mesh, in this process, which takes a second less."""
    monkeypatch.chdir(home.directory)
    monkeypatch.setenv("COLUMNS", "200")

    async def run(*arguments: object) -> Ended:
        words = [*map(str, arguments), "--state-dir", str(shared_mesh.state_dir)]
        result = await asyncio.to_thread(CliRunner().invoke, main, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


def check_report(report: Any) -> None:
    assert (report["atoms"], report["space_group"]) == (150, "P 1")
    geometry, xray = report["geometry"], report["xray"]
    assert set(geometry["terms"]) >= TERMS
    total = sum(term["energy"] for term in geometry["terms"].values())
    assert geometry["energy"] == pytest.approx(total)
    assert all(term["count"] >= 0 for term in geometry["terms"].values())
    # Two of the 3437 are outliers that scaling sets aside.
    assert (xray["target"], xray["reflections"]) == ("ml", 3435)
    assert report["reflections"]["reflections"] == 3437
    assert (xray["r_work"], xray["r_free"]) == (
        pytest.approx(0.202, abs=2e-3),
        pytest.approx(0.230, abs=2e-3),
    )
    assert re.fullmatch("[0-9a-f]{32}", report["trace_id"])
    assert all(seconds >= 0 for seconds in report["seconds"]["steps"].values())
    assert {"upload", "model", "gradients", "total"} <= set(report["seconds"])


def check_output(path: Path, report: Any) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    for target in ("geometry", "xray"):
        array = arrays[f"{target}_sites"]
        assert (array.dtype, array.shape) == (np.float64, (150, 3))
        assert np.linalg.norm(array) == pytest.approx(report[target]["gradient_norm"], rel=1e-9)
    return arrays


async def test_main_job_without_a_server(home: Home) -> None:
    output = home.directory / "gradients.npz"
    ended = await home.run("gradients", PDB, "--reflections", DATA, "--json", "--output", output)
    check_report(ended.json)
    check_output(output, ended.json)
    assert not marked(home.mark)
    # What the mesh kept for the time of the call is gone with it.
    assert [path.name for path in home.directory.iterdir()] == [output.name]


async def test_main_job_against_a_server(
    home: Home, mesh: AsyncMesh, shared_mesh: EmbeddedMesh
) -> None:
    output = home.directory / "gradients.npz"
    arguments = ("gradients", PDB, "--reflections", DATA, "--json", "--output", output)
    ended = await home.run(*arguments, "--state-dir", shared_mesh.state_dir)
    check_report(ended.json)
    arrays = check_output(output, ended.json)
    model = await mesh.create_model(PDB, DATA)
    expected = await mesh.gradients(model)
    assert arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(arrays[name], array)


async def test_table(bxmesh: Run) -> None:
    ended = await bxmesh("gradients", PDB, "--reflections", DATA)
    assert ended.status == 0, ended.stderr
    for words in (
        "150",
        "P 1",
        "R-work",
        "R-free",
        "bond",
        "nonbonded",
        "gradient norm",
        "total",
        "67 hydrogens",
    ):
        assert words in ended.stdout, words
    assert "gradients" in ended.stderr


@pytest.mark.parametrize(
    ("target", "has_geometry", "has_xray"),
    [("geometry", True, False), ("xray", False, True), ("combined", True, True)],
)
async def test_targets(bxmesh: Run, target: str, has_geometry: bool, has_xray: bool) -> None:
    ended = await bxmesh(
        "gradients", PDB, "--reflections", DATA, "--json", "--target", target, "--xray-target", "ls"
    )
    assert (ended.json["geometry"] is not None) == has_geometry
    assert (ended.json["xray"] is not None) == has_xray
    assert ("combined" in ended.json) == (target == "combined")
    if has_xray:
        assert ended.json["xray"]["target"] == "ls"


async def test_coordinates(bxmesh: Run, home: Home, mesh: AsyncMesh) -> None:
    model = await mesh.create_model(PEPTIDE, include_atoms=True)
    assert model.atoms is not None
    batch = noisy(model.atoms.sites, 3)
    batch[1] = np.nan
    np.save(home.directory / "x.npy", batch)
    ended = await bxmesh(
        "gradients", PEPTIDE, "--coordinates", "x.npy", "--json", "--output", "out.npz"
    )
    assert [sample["status"] for sample in ended.json["samples"]] == ["ok", "non_finite", "ok"]
    with np.load(home.directory / "out.npz") as stored:
        sites = stored["geometry_sites"]
    expected = await mesh.gradients(model, batch)
    np.testing.assert_allclose(sites, expected.geometry_sites, rtol=1e-9, atol=1e-9)


async def test_restraints(bxmesh: Run, home: Home) -> None:
    model = wheel_file("iotbx/regression/data/2ERL.pdb")
    refused = await bxmesh("gradients", model)
    assert refused.status == 1
    assert "EOH" in refused.stderr
    assert "UNKNOWN_RESIDUES" in refused.stderr
    (home.directory / "ethanol.cif").write_bytes(ETHANOL)
    ended = await bxmesh("gradients", model, "--restraints", "ethanol.cif", "--json")
    assert ended.json["geometry"]["energy"] > 0


async def test_bundles(bxmesh: Run, home: Home) -> None:
    content = wheel_bytes(PDB_1YJP) + f"REMARK {uuid.uuid4().hex}\n".encode()
    (home.directory / "model.pdb").write_bytes(content)
    stored = (await bxmesh("bundles", "upload", "model.pdb", "--json")).json
    name = stored["bundle_id"]
    assert (stored["kind"], stored["size_bytes"]) == ("macromolecule", len(content))
    listed = (await bxmesh("bundles", "list", "--kind", "macromolecule", "--json")).json
    assert name in [bundle["bundle_id"] for bundle in listed]
    assert {bundle["kind"] for bundle in listed} == {"macromolecule"}
    table = await bxmesh("bundles", "list")
    assert name in table.stdout
    shown = await bxmesh("bundles", "show", name)
    assert "model.pdb" in shown.stdout
    assert (await bxmesh("bundles", "show", name, "--json")).json == stored
    downloaded = await bxmesh("bundles", "download", name, "copy.pdb")
    assert downloaded.status == 0, downloaded.stderr
    assert (home.directory / "copy.pdb").read_bytes() == content
    # Without a path it takes its own name, but not another file's place.
    assert (await bxmesh("bundles", "download", name)).status == 2
    ended = await bxmesh("gradients", name, "--json")
    assert ended.json["atoms"] == 66
    assert (await bxmesh("bundles", "delete", name)).status == 0
    for command in ("show", "download", "delete"):
        gone = await bxmesh("bundles", command, name, *(["x"] if command == "download" else []))
        assert gone.status == 1
        assert "BUNDLE_NOT_FOUND" in gone.stderr
    assert sorted(path.name for path in home.directory.iterdir()) == ["copy.pdb", "model.pdb"]


async def test_status(bxmesh: Run) -> None:
    report = (await bxmesh("status", "--json")).json
    assert report["health"][""] == "serving"
    assert {agent["agent_type"] for agent in report["agents"]} == {"geometry.worker"}
    table = await bxmesh("status")
    assert table.status == 0
    assert "geometry.gradients" in table.stdout
    assert "serving" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("gradients", "missing.pdb"), 2, "missing.pdb"),
        (("gradients", PEPTIDE, "--target", "nonsense"), 2, "nonsense"),
        (("gradients", PEPTIDE, "--output", "no/such/place.npz"), 2, "no/such"),
        (("gradients", PEPTIDE, "--coordinates", PEPTIDE), 2, "NumPy"),
        (("gradients", DATA), 1, "MACROMOLECULE_UNREADABLE"),
        (("gradients", PEPTIDE, "--reflections", PEPTIDE), 1, "REFLECTIONS_UNREADABLE"),
        (("gradients", PEPTIDE, "--reflections", DATA), 1, "CRYSTAL_SYMMETRY_MISMATCH"),
        (("gradients", PEPTIDE, "--target", "xray"), 1, "NO_REFLECTIONS"),
        (("gradients", PEPTIDE, "--timeout", "0.001"), 1, "DEADLINE_EXCEEDED"),
        (("bundles", "show", "sha256:" + "0" * 64), 1, "BUNDLE_NOT_FOUND"),
        (("bundles", "show", "nonsense"), 1, "bundle_id"),
        (("nonsense",), 2, "nonsense"),
    ],
)
async def test_errors(
    bxmesh: Run, home: Home, arguments: tuple[str, ...], status: int, words: str
) -> None:
    ended = await (home.run if arguments == ("nonsense",) else bxmesh)(*arguments)
    assert ended.status == status
    assert words in ended.stderr
    assert not ended.stdout
    assert "Traceback" not in ended.stderr
    if status == 1:
        assert re.search("trace: [0-9a-f]{32}", ended.stderr)


async def test_nobody_there(home: Home) -> None:
    for arguments in (("status",), ("bundles", "list")):
        ended = await home.run(*arguments, "--address", f"unix:{home.directory}/nobody.sock")
        assert ended.status == 1
        assert "bxmesh serve" in ended.stderr
        assert "Traceback" not in ended.stderr


async def test_wrong_key(home: Home, shared_mesh: EmbeddedMesh) -> None:
    home.environment["BXMESH_API_KEY"] = "wrong"
    ended = await home.run("bundles", "list", "--address", shared_mesh.address)
    assert ended.status == 1
    assert "Traceback" not in ended.stderr
    assert "key" in ended.stderr


async def test_interrupted_call_leaves_nothing(home: Home) -> None:
    process = await home.start("gradients", wheel_file("mmtbx/regression/pdbs/pae.pdb"))
    assert process.stderr is not None
    async for line in process.stderr:
        if b"model" in line:
            break
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode not in (0, None)
    await until(lambda: not marked(home.mark))
    assert not list(home.directory.iterdir())
