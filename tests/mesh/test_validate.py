"""ValidateModel through the mesh: as an answer, as a page, and by its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bxmesh.client import AsyncMesh, InvalidInput, NotFound
from bxmesh.client.cli import main
from bxmesh.client.validation import compare
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_file
from tests.geometry.test_report import Page
from tests.mesh.models import created, crystal, sites_of


async def test_a_model_is_validated(mesh: AsyncMesh, tmp_path: Path) -> None:
    model = await crystal(mesh)
    html = tmp_path / "report.html"
    found = await mesh.validate(model, html=html)
    assert found.deviations["bond"].count == 82
    assert found.deviations["bond"].rms == pytest.approx(0.00698, abs=1e-5)
    assert found.share("ramachandran", "favored") == 1.0
    assert found.share("rotamer", "favored") is None
    assert found.outlier_counts["angle"] == 1
    assert found.outliers[0].residues == ("A 9 VAL",)
    assert [point.residue for point in found.ramachandran][:2] == ["A 2 TYR", "A 3 ASN"]
    assert found.xray is not None
    assert found.xray.r_free is not None
    assert any(reason.startswith("rotamers") for reason in found.unavailable)
    words = Page(html.read_text(encoding="utf-8")).texts("code")
    assert words == [model.model_id]
    bundle = await mesh.bundles.get(found.html_bundle_id)
    assert model.model_id in bundle.derived_from
    assert bundle.media_type == "text/html"


async def test_a_hostile_file_stays_text(mesh: AsyncMesh, tmp_path: Path) -> None:
    lines = [
        f"{line[:21]}<{line[22:]}" if line.startswith(("ATOM", "TER")) else line
        for line in wheel_file(PDB_1YJP).read_text().splitlines()
    ]
    lines.insert(
        -2, "HETATM 9999 <svg&<b> < 900      30.000  30.000  30.000  1.00 10.00           C"
    )
    path, html = tmp_path / "hostile.pdb", tmp_path / "hostile.html"
    path.write_text("\n".join(lines))
    found = await mesh.validate(await mesh.create_model(path), html=html)
    assert found.ramachandran[0].residue == "< 2 ASN"
    assert any("<b>" in reason for reason in found.unavailable)
    read = Page(html.read_text(encoding="utf-8"))
    assert "<b>" in "".join(read.texts("li"))
    assert any(title.startswith("< 2 ASN: phi") for title in read.texts("title"))


async def test_two_sets_of_coordinates_are_compared(mesh: AsyncMesh, tmp_path: Path) -> None:
    model = await created(mesh, PDB_1YJP)
    sites = sites_of(model)
    noise = np.random.default_rng(0).normal(scale=0.1, size=sites.shape)
    before = await mesh.validate(model, (sites + noise).astype(np.float32))
    after = await mesh.validate(model)
    assert not after.html_bundle_id
    figures = {each.name: each for each in compare(before, after)}
    assert figures["bond rms"].change is not None
    assert figures["bond rms"].change < -0.1
    assert figures["bond outliers"].after == 0
    assert figures["bond outliers"].before == before.outlier_counts["bond"] > 20
    assert figures["ramachandran favored"].after == 1.0
    assert "R-work" not in figures
    own = {each.name: each.change for each in compare(after, after)}
    assert set(own.values()) == {0.0}
    await mesh.validate(model, html=tmp_path / "report.html", before=before)
    texts = Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts("td")
    row = texts[texts.index("bond rms") :][:4]
    each = figures["bond rms"]
    assert row == [
        "bond rms",
        *(f"{value:.4g}" for value in (each.before, each.after, each.change)),
    ]


async def test_a_job_validates(mesh: AsyncMesh) -> None:
    model = await created(mesh, PDB_1YJP)
    job = await mesh.jobs.create(pb.ValidateModelRequest(model_id=model.model_id, as_html=True))
    await mesh.jobs.wait(job.job_id)
    answer: Any = (await mesh.jobs.result(job.job_id)).summary
    assert answer.report.deviations[0].count == 59
    assert (await mesh.bundles.download(answer.html_bundle_id)).startswith(b"<!doctype html>")


async def test_what_cannot_be_validated_is_refused(mesh: AsyncMesh) -> None:
    model = await created(mesh, PDB_1YJP)
    sites = sites_of(model)
    for wrong in (sites[:5], np.stack([sites, sites]), np.full_like(sites, np.nan)):
        with pytest.raises(InvalidInput):
            await mesh.validate(model, wrong)
    with pytest.raises(InvalidInput) as raised:
        await mesh.validate(model, sites + np.random.default_rng(0).normal(0, 200, sites.shape))
    assert raised.value.reason == "EXPLODED"
    with pytest.raises(NotFound):
        await mesh.validate("sha256:" + "0" * 64)


def test_the_command(shared_mesh: EmbeddedMesh, tmp_path: Path) -> None:
    where = ["--address", shared_mesh.address, "--state-dir", str(shared_mesh.state_dir)]
    model = str(wheel_file(PDB_7N2L))

    def call(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(main, ["validate", model, *arguments, *where])
        assert result.exit_code == code, result.output
        return result

    html = tmp_path / "report.html"
    told = call("--reflections", str(wheel_file(MTZ_7N2L)), "--html", str(html)).stdout
    for expected in ("A 9 VAL", "R-free", "favored 7 (100.0%)", "not checked", str(html)):
        assert expected in told
    assert html.read_text().startswith("<!doctype html>")
    # The same file with one atom elsewhere.
    lines = Path(model).read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line[12:26] == " CB  ASN A   4")
    lines[at] = f"{lines[at][:30]}{float(lines[at][30:38]) + 0.5:8.3f}{lines[at][38:]}"
    worse = tmp_path / "worse.pdb"
    worse.write_text("\n".join(lines))
    compared = call("--against", str(worse)).stdout
    assert "before" in compared
    assert "bond rms Z" in compared
    plain = json.loads(call("--against", str(worse), "--json").stdout)
    assert plain["outlier_counts"]["angle"] == 1
    assert plain["before"]["outlier_counts"]["angle"] > 1
    rows = {each["name"]: each for each in plain["comparison"]}
    assert rows["bond rms"]["change"] < 0
    assert plain["residues"][0]["residue"] == "A 1 GLN"
    call("--html", str(tmp_path / "nowhere" / "report.html"), code=2)
