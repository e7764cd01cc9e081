"""Minimization in a worker: against cctbx's own minimizer, and on data that a known model made."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scitbx.lbfgs
from cctbx.array_family import flex
from cctbx.geometry_restraints import lbfgs

from bxmesh.geometry.v1 import bundle_pb2, gradients_pb2
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.errors import MeshError
from bxmesh.server.geometry.agent.minimization import minimization
from bxmesh.server.geometry.agent.run import Run
from bxmesh.server.geometry.agent.steps import Steps
from bxmesh.server.geometry.engine import ModelInputs, ModelOptions, RestraintLibrary
from bxmesh.server.geometry.engine import macromolecule as reading
from bxmesh.server.geometry.engine.errors import SampleError
from bxmesh.server.geometry.engine.fast import FastGeometry
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.types import SampleStatus
from tests.engine.wheel import PDB_1YJP, wheel_bytes

UBIQUITIN = "iotbx/regression/secondary_structure/1ubf_cutted.pdb"
GEOMETRY = gradients_pb2.GradientOptions(target=gradients_pb2.TARGET_GEOMETRY)


class Kept:
    """What a calculation stored and told."""

    def __init__(self) -> None:
        self.files: dict[int, bytes] = {}
        self.steps: list[Any] = []

    def keep(self, content: bytes, kind: Any, media_type: str) -> str:
        self.files[kind] = content
        return f"sha256:{kind:064d}"


def shaken(model: BuiltModel, scale: float) -> Any:
    sites = model.atoms.sites
    return sites + np.random.default_rng(0).normal(scale=scale, size=sites.shape)


def run(
    model: BuiltModel,
    sites: Any,
    is_over: Callable[[int], bool] = lambda step: False,
    **request: Any,
) -> tuple[pb.MinimizationSummary, Any, Kept]:
    kept, asked = Kept(), 0

    def over() -> bool:
        nonlocal asked
        asked += 1
        return is_over(asked)

    request.setdefault("options", GEOMETRY)
    summary, tensors = minimization(
        Run(
            model,
            pb.MinimizeRequest(**request),
            sites,
            Steps(),
            kept.steps.append,
            over,
            lambda: None,
            lambda bundle_id: b"",
            kept.keep,
        )
    )
    assert isinstance(summary, pb.MinimizationSummary)
    return summary, tensors["sites"], kept


def test_it_is_no_worse_than_the_minimizer_of_cctbx(built: Callable[[str], BuiltModel]) -> None:
    model = built(UBIQUITIN)
    sites = shaken(model, 0.15)
    summary, best, kept = run(model, sites, max_evaluations=120)
    assert summary.best.evaluation <= 120
    for step, at in ((summary.best, best), (summary.start, sites)):
        energy = model.geometry(at).energy
        assert step.value.geometry.energy == pytest.approx(energy, rel=1e-9)
    target = model._geometry
    assert target is not None
    theirs = target._order.to_flex(sites)
    lbfgs.lbfgs(
        sites_cart=theirs,
        correct_special_position_tolerance=1.0,
        geometry_restraints_manager=target._manager,
        lbfgs_termination_params=scitbx.lbfgs.termination_parameters(max_calls=120),
    )
    energies = target._manager.energies_sites(sites_cart=theirs)
    assert summary.best.value.geometry.energy <= energies.target * 1.001
    ours = target._manager.energies_sites(sites_cart=target._order.to_flex(best))
    assert ours.bond_deviations()[2] <= 0.02
    assert ours.target < 0.01 * summary.start.value.geometry.energy
    # Those that are told get better and better.
    told = [step.value.geometry.energy for step in kept.steps]
    assert told == sorted(told, reverse=True)
    moved = np.sqrt(np.mean(np.sum((best - sites) ** 2, axis=1)))
    assert summary.best.rms_displacement == pytest.approx(moved)


def test_the_file_has_the_best_coordinates(built: Callable[[str], BuiltModel]) -> None:
    model = built(PDB_1YJP)
    summary, best, kept = run(model, shaken(model, 0.1), max_evaluations=60)
    assert np.array_equal(np.load(io.BytesIO(kept.files[bundle_pb2.BUNDLE_KIND_COORDINATES])), best)
    written = kept.files[bundle_pb2.BUNDLE_KIND_MACROMOLECULE]
    assert np.allclose(reading.read(written).atoms.sites, best, atol=0.0006)
    assert written.startswith(wheel_bytes(PDB_1YJP)[:200])
    assert summary.macromolecule_bundle_id
    assert not summary.macromolecule_problem


@pytest.mark.parametrize("tolerance", [0.0, 50.0, float("inf")])
def test_it_converges(built: Callable[[str], BuiltModel], tolerance: float) -> None:
    model = built(PDB_1YJP)
    sites = shaken(model, 0.1)
    summary, best, _ = run(model, sites, gradient_tolerance=tolerance, max_evaluations=5000)
    assert summary.reason == "converged"
    gradient = model.geometry(best).gradients[model.atom_mask]
    first = model.geometry(sites).gradients[model.atom_mask]
    most = tolerance or 1e-3 * np.sqrt(np.mean(first**2))
    assert np.sqrt(np.mean(gradient**2)) <= most
    if tolerance == float("inf"):
        assert summary.best == summary.start


def test_bounds_are_kept(built: Callable[[str], BuiltModel]) -> None:
    model = built(PDB_1YJP)
    for most, cycles in ((1, 1), (7, 1), (7, 3)):
        summary, _, _ = run(model, shaken(model, 0.2), max_evaluations=most, macro_cycles=cycles)
        assert summary.reason == "max_evaluations"
        assert summary.best.evaluation <= most * cycles
        assert summary.best.macro_cycle <= cycles


def test_what_is_cancelled_keeps_its_best(built: Callable[[str], BuiltModel]) -> None:
    model = built(PDB_1YJP)
    sites = shaken(model, 0.2)
    summary, best, kept = run(model, sites, lambda asked: asked > 20)
    assert summary.reason == "cancelled"
    assert summary.best.evaluation <= 20
    assert model.geometry(best).energy < model.geometry(sites).energy
    assert kept.files


def test_there_is_no_way_down_from_nowhere(built: Callable[[str], BuiltModel]) -> None:
    model = built(PDB_1YJP)
    sites = shaken(model, 0.0)
    sites[0, 0] = np.nan
    with pytest.raises(MeshError) as raised:
        run(model, sites)
    assert raised.value.reason == "NON_FINITE"
    with pytest.raises(MeshError, match="sites alone"):
        run(
            model,
            None,
            options=gradients_pb2.GradientOptions(
                with_respect_to=[gradients_pb2.PARAMETER_OCCUPANCY]
            ),
        )
    with pytest.raises(MeshError) as raised:
        run(model, None, options=gradients_pb2.GradientOptions(target=gradients_pb2.TARGET_XRAY))
    assert raised.value.reason == "NO_REFLECTIONS"


def test_impossible_places_are_stepped_back_from(
    built: Callable[[str], BuiltModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(PDB_1YJP)
    honest, calls = FastGeometry.evaluate, 0

    def flaky(self: FastGeometry, *arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 10:
            return [SampleError(SampleStatus.EXPLODED, "apart")]
        return honest(self, *arguments, **keywords)

    monkeypatch.setattr(FastGeometry, "evaluate", flaky)
    summary, best, _ = run(model, shaken(model, 0.2))
    assert summary.reason in ("diverged", "converged")
    assert summary.best.evaluation <= 10
    energy = model.geometry(best).energy
    assert energy == pytest.approx(summary.best.value.geometry.energy, rel=1e-9)


def simulated(library: RestraintLibrary) -> tuple[bytes, bytes]:
    """A model, and data that it made, with noise and free flags."""
    pdb = wheel_bytes(PDB_1YJP)
    truth = reading.read(pdb)
    structure = truth.hierarchy.extract_xray_structure(crystal_symmetry=truth.symmetry)
    f_calc = structure.structure_factors(d_min=1.5, algorithm="direct").f_calc()
    f_obs = abs(f_calc)
    noise = np.random.default_rng(3).normal(scale=0.03, size=f_obs.size())
    f_obs = f_obs.array(data=f_obs.data() * flex.double(1 + noise))
    f_obs.set_sigmas(f_obs.data() * 0.03)
    f_obs.set_observation_type_xray_amplitude()
    flags = f_obs.generate_r_free_flags(fraction=0.1, use_lattice_symmetry=False)
    dataset = f_obs.as_mtz_dataset(column_root_label="FOBS")
    dataset.add_miller_array(flags, column_root_label="R-free-flags")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.mtz"
        dataset.mtz_object().write(str(path))
        return pdb, path.read_bytes()


def test_a_shaken_model_finds_back_to_its_data(library: RestraintLibrary) -> None:
    pdb, mtz = simulated(library)
    model = build(ModelInputs(pdb, mtz, options=ModelOptions()), library)
    truth = model.atoms.sites
    sites = truth + np.random.default_rng(5).normal(scale=0.15, size=truth.shape)
    summary, best, _ = run(
        model,
        sites,
        options=gradients_pb2.GradientOptions(target=gradients_pb2.TARGET_COMBINED),
        max_evaluations=150,
        macro_cycles=3,
    )
    before, after = summary.start.value.xray, summary.best.value.xray
    assert after.r_work < before.r_work - 0.03
    assert after.r_free < before.r_free - 0.03
    assert np.sqrt(np.mean((best - truth) ** 2)) < 0.6 * np.sqrt(np.mean((sites - truth) ** 2))
