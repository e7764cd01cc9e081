"""The command line, through click's runner against a server in another thread."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import pytest_asyncio
from click.testing import CliRunner

from bxmesh.client.cli import main

SITES = np.random.default_rng(0).normal(size=(4, 3))


@pytest_asyncio.fixture
async def bxmesh(server, tmp_path):
    """Runs `bxmesh` with arguments; returns the result."""
    model = tmp_path / "model.pdb"
    model.write_text("ATOM      1  CA  ALA A   1\n")
    reflections = tmp_path / "data.mtz"
    reflections.write_bytes(b"MTZ ")

    async def run(*arguments: object):
        names = {"MODEL": model, "MTZ": reflections}
        words = [str(names.get(word, word)) for word in arguments]
        at = ["--address", server.address] if "--address" not in words else []
        return await asyncio.to_thread(CliRunner().invoke, main, [*words, *at])

    return run


@pytest.mark.asyncio
async def test_gradients_as_a_table(bxmesh):
    result = await bxmesh("gradients", "MODEL", "--reflections", "MTZ")
    assert result.exit_code == 0, result.output
    for words in ("P 1", "20.00 – 0.90 Å", "R-work", "0.1840", "R-free", "0.2130", "bond (3)"):
        assert words in result.stdout
    assert "2 hydrogen atoms were set aside." in result.stdout
    assert "build_restraints" in result.stdout
    assert result.stderr.splitlines()[:3] == ["upload", "model", "gradients"]


@pytest.mark.asyncio
async def test_gradients_as_json(server, bxmesh):
    result = await bxmesh("gradients", "MODEL", "--reflections", "MTZ", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["atoms"], report["space_group"]) == (4, "P 1")
    assert report["geometry"]["terms"] == {"bond": {"energy": 1.5, "count": 3}}
    assert (report["xray"]["target"], report["xray"]["r_free"]) == ("ml", 0.213)
    assert report["combined"]["xray_weight"] == 2.0
    assert {"upload", "model", "gradients", "total", "steps"} <= set(report["seconds"])
    assert report["notices"] == ["2 hydrogen atoms were set aside."]
    for method in ("UploadBundle", "CreateModel", "ComputeGradients"):
        assert report["trace_id"] in server.metadata[method]["traceparent"]


@pytest.mark.asyncio
async def test_gradients_to_a_file(bxmesh, tmp_path):
    np.save(tmp_path / "sites.npy", SITES.astype(np.float32))
    output = tmp_path / "gradients.npz"
    result = await bxmesh(
        "gradients", "MODEL", "--coordinates", tmp_path / "sites.npy", "--output", output
    )
    assert result.exit_code == 0, result.output
    with np.load(output) as arrays:
        assert set(arrays) == {"geometry_sites", "xray_sites", "combined_sites"}
        np.testing.assert_allclose(arrays["geometry_sites"], 2 * SITES, rtol=1e-6)


@pytest.mark.asyncio
async def test_batch_lists_its_samples(bxmesh, tmp_path):
    np.save(tmp_path / "sites.npy", np.stack([SITES, SITES * np.nan]))
    coordinates = ("--coordinates", tmp_path / "sites.npy")
    report = json.loads((await bxmesh("gradients", "MODEL", *coordinates, "--json")).stdout)
    assert [sample["status"] for sample in report["samples"]] == ["ok", "non_finite"]
    table = (await bxmesh("gradients", "MODEL", *coordinates)).stdout
    assert "sample 1" in table
    assert "non_finite" in table


@pytest.mark.asyncio
async def test_nothing_computed_is_a_failure(bxmesh, tmp_path):
    np.save(tmp_path / "sites.npy", SITES * np.nan)
    result = await bxmesh("gradients", "MODEL", "--coordinates", tmp_path / "sites.npy", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["samples"][0]["status"] == "non_finite"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gradients", "none.pdb"], "none.pdb"),
        (["gradients", "MODEL", "--target", "both"], "'both'"),
        (["gradients", "MODEL", "--coordinates", "MODEL"], "no NumPy file"),
        (["gradients", "MODEL", "--output", "no/such/place.npz"], "no directory"),
        (["gradients"], "MODEL"),
        (["nonsense"], "nonsense"),
    ],
)
async def test_usage_errors(bxmesh, arguments, says):
    result = await bxmesh(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


@pytest.mark.asyncio
async def test_errors_say_reason_remedy_and_trace(server, bxmesh):
    result = await bxmesh("bundles", "show", "sha256:" + "0" * 64)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Error: no such bundle" in result.stderr
    assert "reason: NOT_FOUND" in result.stderr
    assert "remedy: " in result.stderr
    trace_id = result.stderr.split("trace: ")[1].strip()
    assert trace_id in server.metadata["GetBundle"]["traceparent"]


@pytest.mark.asyncio
async def test_nobody_there(bxmesh, tmp_path):
    result = await bxmesh("status", "--address", f"unix:{tmp_path}/nobody")
    assert result.exit_code == 1
    assert "bxmesh serve" in result.stderr


@pytest.mark.asyncio
async def test_bundles(bxmesh, tmp_path):
    result = await bxmesh("bundles", "upload", "MTZ", "--json")
    assert result.exit_code == 0, result.output
    bundle = json.loads(result.stdout)
    assert (bundle["kind"], bundle["display_name"]) == ("reflections", "data.mtz")
    name = bundle["bundle_id"]
    assert name in (await bxmesh("bundles", "list")).stdout
    assert json.loads((await bxmesh("bundles", "list", "--json")).stdout) == [bundle]
    assert "data.mtz" in (await bxmesh("bundles", "show", name)).stdout
    path = tmp_path / "copy"
    assert (await bxmesh("bundles", "download", name, path)).exit_code == 0
    assert path.read_bytes() == b"MTZ "
    assert (await bxmesh("bundles", "download", name, tmp_path)).exit_code == 2
    assert (await bxmesh("bundles", "delete", name)).exit_code == 0
    assert (await bxmesh("bundles", "show", name)).exit_code == 1


@pytest.mark.asyncio
async def test_status(bxmesh):
    result = await bxmesh("status")
    assert result.exit_code == 0, result.output
    for words in ("is serving", "dependency:redis", "not serving", "worker-3", "geometry.worker"):
        assert words in result.stdout
    report = json.loads((await bxmesh("status", "--json")).stdout)
    assert report["health"]["dependency:redis"] == "not_serving"
    assert len(report["agents"]) == 3


def test_help_loads_no_command():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in ("gradients", "bundles", "status", "serve", "demo", "doctor"):
        assert name in result.stdout


@pytest.mark.parametrize("command", [["serve"], ["gradients", __file__]])
def test_client_alone_says_what_to_install(monkeypatch, command):
    monkeypatch.setitem(__import__("sys").modules, "bxmesh.server.cli", None)
    monkeypatch.setitem(__import__("sys").modules, "bxmesh.server.embedded", None)
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "pip install 'bxmesh[server,monomers]'" in result.stderr
    assert "--address" in result.stderr
