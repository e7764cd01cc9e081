"""Twinned data: against cctbx's own twin target, finite differences, and what the twin was made with."""

from __future__ import annotations

from dataclasses import replace

import mmtbx.f_model
import mmtbx.utils
import numpy as np
import pytest
from cctbx.array_family import flex

from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.server.errors import MeshError
from bxmesh.server.geometry.agent.evaluation import Evaluation
from bxmesh.server.geometry.agent.steps import Steps
from bxmesh.server.geometry.engine import EngineError, ModelInputs, RestraintLibrary, XrayOptions
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.twinning import TwinnedLeastSquares
from bxmesh.server.geometry.engine.types import Floats
from tests.engine import crystals

LAW = "h,-k,-l"
FRACTION = 0.3
OPTIONS = XrayOptions(
    target="twin_ls",
    algorithm="direct",
    with_respect_to=frozenset({"sites", "adp_iso", "occupancy"}),
    twin_law=LAW,
)
CELL = (22.0, 23.0, 17.0, 90.0, 90.0, 90.0)


@pytest.fixture(scope="module")
def twin(library: RestraintLibrary) -> BuiltModel:
    """The atoms of 1yjp in a monoclinic cell without oblique angle, with twinned data."""
    data = crystals.twinned(CELL, "P 1 21 1", LAW, FRACTION)
    return build(ModelInputs(crystals.in_another_crystal(CELL, "P 1 21 1"), data), library)


@pytest.fixture(scope="module")
def shaken(twin: BuiltModel) -> Floats:
    sites = twin.atoms.sites
    return sites + np.random.default_rng(0).normal(0, 0.1, sites.shape)


def test_fraction_is_found(twin: BuiltModel) -> None:
    result = twin.xray(options=OPTIONS)
    assert result.twin_fraction == pytest.approx(FRACTION, abs=0.015)
    assert result.r_work < 0.03
    assert result.r_free is not None
    untwinned = twin.xray(options=XrayOptions(target="ls", algorithm="direct"))
    assert untwinned.r_work > 0.1
    assert untwinned.twin_fraction is None


@pytest.mark.parametrize("algorithm", ["direct", "fft"])
def test_equals_the_twin_target_of_cctbx(twin: BuiltModel, shaken: Floats, algorithm: str) -> None:
    """Against mmtbx.twinning, whose gradients are too small by the share of the free set."""
    f_obs = twin.scaled_at(None).reflections.f_obs
    flags = twin.scaled_at(None).reflections.r_free_flags
    accuracy = mmtbx.f_model.sf_and_grads_accuracy_master_params.extract()
    accuracy.algorithm = algorithm
    common = {
        "f_obs": f_obs.array(data=f_obs.data(), sigmas=flex.double(f_obs.size(), 1.0)),
        "r_free_flags": flags,
        "xray_structure": twin.xray_structure(shaken, f_obs.d_min()),
        "sf_and_grads_accuracy_params": accuracy,
    }
    manager = mmtbx.f_model.manager(**common, twin_law=LAW, twin_fraction=FRACTION)
    found = TwinnedLeastSquares(manager)(compute_gradients=True)
    plain = mmtbx.utils.fmodel_manager(**common, twin_law=LAW)
    work = manager.arrays.f_obs_work.data()
    twinned = manager.arrays.f_model_work.data()
    plain.update_core(
        twin_fraction=FRACTION, k_overall=flex.sum(work * twinned) / flex.sum(twinned * twinned)
    )
    expected = plain.target_functor()(compute_gradients=True)
    assert found.target_work() == pytest.approx(expected.target_work(), rel=1e-9)
    gradients = np.array(expected.d_target_d_site_cart())
    gradients *= plain.norma_sum_f_sq / plain.norma_sum_f_sq_w
    difference = np.linalg.norm(np.array(found.d_target_d_site_cart()) - gradients)
    assert difference < 1e-9 * np.linalg.norm(gradients)


def test_gradients_equal_finite_differences(twin: BuiltModel, shaken: Floats) -> None:
    gradients = twin.xray(shaken, OPTIONS).gradients["sites"]
    step = 1e-4
    for atom, axis in [(0, 0), (5, 1), (20, 2), (65, 0)]:
        values = []
        for sign in (1, -1):
            moved = shaken.copy()
            moved[atom, axis] += sign * step
            values.append(twin.xray(moved, OPTIONS).value)
        difference = (values[0] - values[1]) / (2 * step)
        assert difference == pytest.approx(gradients[atom, axis], rel=1e-5)


@pytest.mark.parametrize("name", ["adp_iso", "occupancy"])
def test_other_gradients_equal_finite_differences(
    twin: BuiltModel, shaken: Floats, name: str
) -> None:
    gradients = twin.xray(shaken, OPTIONS).gradients[name]
    targets = twin.scaled_at(None)
    manager, functor = targets._scaled[replace(OPTIONS, with_respect_to=frozenset())]
    attribute = {"adp_iso": "u_iso", "occupancy": "occupancy"}[name]
    step = 1e-4
    for index in (0, 11, 40):
        scatterer = manager.xray_structure.scatterers()[index]
        kept, values = getattr(scatterer, attribute), []
        for sign in (1, -1):
            setattr(scatterer, attribute, kept + sign * step)
            manager.update_xray_structure(update_f_calc=True, update_f_mask=False)
            values.append(functor(compute_gradients=False).target_work())
        setattr(scatterer, attribute, kept)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(gradients[targets._order.places[index]], rel=1e-4)


def test_fft_is_near_to_direct(twin: BuiltModel, shaken: Floats) -> None:
    direct = twin.xray(shaken, OPTIONS).gradients["sites"]
    fast = twin.xray(shaken, replace(OPTIONS, algorithm="fft")).gradients["sites"]
    assert np.linalg.norm(fast - direct) < 0.05 * np.linalg.norm(direct)


@pytest.mark.parametrize(
    ("law", "why"),
    [
        ("h,k,l", "symmetry itself"),
        ("-h,k,-l", "symmetry itself"),
        ("-h,-k,-l", "symmetry itself"),
        ("h,-h-k,-l", "degrees away"),
        ("2h,k,l", "no lattice"),
        ("h,h+k,l", "no lattice"),
        ("0,0,0", "no lattice"),
        ("1/2h+1/2k,h-k,-l", "no lattice"),
        ("h,-k", "three sums"),
        ("h,k+1/2,l", "three sums"),
        ("99999999999999999999h,k,l", "three sums"),
        ("", "in terms of"),
        ("x,-y,-z", "in terms of"),
        ("h,-k,-l\x00", "in terms of"),
        ("__import__('os')", "in terms of"),
    ],
)
def test_laws_that_make_no_sense_are_refused(twin: BuiltModel, law: str, why: str) -> None:
    with pytest.raises(EngineError, match=why) as raised:
        twin.xray(options=replace(OPTIONS, twin_law=law))
    assert raised.value.reason == "TWIN_LAW_INVALID"
    assert raised.value.field == "options"


def test_options(twin: BuiltModel) -> None:
    evaluation = Evaluation(
        twin, gradients_pb2.GradientOptions(target=gradients_pb2.TARGET_COMBINED, twin_law=LAW)
    )
    evaluation.prepare(Steps())
    value, gradients = evaluation.evaluate(None)
    assert value.xray.target == gradients_pb2.XRAY_TARGET_TWIN_LS
    assert value.xray.twin_fraction == pytest.approx(FRACTION, abs=0.015)
    assert gradients["combined_sites"].any()


@pytest.mark.parametrize(
    ("target", "law", "reason"),
    [
        (gradients_pb2.XRAY_TARGET_TWIN_LS, "", "TWIN_LAW_MISSING"),
        (gradients_pb2.XRAY_TARGET_ML, LAW, "TWIN_LAW_NOT_IN_TARGET"),
        (gradients_pb2.XRAY_TARGET_LS, LAW, "TWIN_LAW_NOT_IN_TARGET"),
    ],
)
def test_options_at_odds_are_refused(
    twin: BuiltModel, target: gradients_pb2.XrayTarget.ValueType, law: str, reason: str
) -> None:
    with pytest.raises(MeshError) as raised:
        Evaluation(twin, gradients_pb2.GradientOptions(xray_target=target, twin_law=law))
    assert raised.value.reason == reason
