"""X-ray targets: equal to cctbx called plainly, and to finite differences."""

import iotbx.pdb
import mmtbx.f_model
import numpy as np
import pytest
from cctbx import xray
from cctbx.array_family import flex
from iotbx import mtz

from bxmesh.server.geometry.engine import EngineError, RestraintLibrary, SampleError, XrayOptions
from bxmesh.server.geometry.engine.model import BuiltModel, build
from tests.engine.plain import label, labels
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, inputs, wheel_bytes, wheel_file

EVERYTHING = frozenset({"sites", "adp_iso", "occupancy"})


def jittered(model: BuiltModel) -> np.ndarray:
    return model.atoms.sites + np.random.default_rng(0).normal(0, 0.05, model.atoms.sites.shape)


@pytest.mark.parametrize("algorithm", ["fft", "direct"])
@pytest.mark.parametrize(("target", "name"), [("ml", "ml"), ("ls", "ls_wunit_k1")])
def test_equals_plain_cctbx(crystal: BuiltModel, algorithm: str, target: str, name: str) -> None:
    arrays = {
        a.info().label_string(): a for a in mtz.object(str(wheel_file(MTZ_7N2L))).as_miller_arrays()
    }
    flags = arrays["R-free-flags"]
    source = iotbx.pdb.input(str(wheel_file(PDB_7N2L)))
    hierarchy = source.construct_hierarchy()
    structure = hierarchy.extract_xray_structure(crystal_symmetry=source.crystal_symmetry())
    f_obs = arrays["FOBS,SIGFOBS"]
    structure.scattering_type_registry(table="n_gaussian", d_min=f_obs.d_min())
    accuracy = mmtbx.f_model.sf_and_grads_accuracy_master_params.extract()
    accuracy.algorithm = algorithm
    manager = mmtbx.f_model.manager(
        f_obs=f_obs,
        r_free_flags=flags.array(data=flags.data() == 0),
        xray_structure=structure,
        sf_and_grads_accuracy_params=accuracy,
        target_name=name,
    )
    manager.update_all_scales()
    functor = manager.target_functor()
    places = labels(crystal)
    order = np.array([places[label(atom)] for atom in hierarchy.atoms()])
    options = XrayOptions(target=target, algorithm=algorithm, with_respect_to=EVERYTHING)
    for sites in (crystal.atoms.sites, jittered(crystal)):
        structure.set_sites_cart(flex.vec3_double(sites[order]))
        manager.update_xray_structure(xray_structure=structure, update_f_calc=True)
        expected = functor(compute_gradients=True)
        result = crystal.xray(sites, options)
        assert result.target == name
        assert result.value == pytest.approx(expected.target_work(), rel=1e-9)
        assert result.r_work == pytest.approx(manager.r_work(), rel=1e-9)
        assert result.r_free == pytest.approx(manager.r_free(), rel=1e-9)
        sites_expected = np.array(expected.d_target_d_site_cart())
        difference = np.linalg.norm(result.gradients["sites"][order] - sites_expected)
        assert difference < 1e-9 * np.linalg.norm(sites_expected)
        xray.set_scatterer_grad_flags(scatterers=structure.scatterers(), occupancy=True)
        occupancy = np.array(expected.gradients_wrt_atomic_parameters(occupancy=True))
        np.testing.assert_allclose(
            result.gradients["occupancy"][order], occupancy, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("target", ["ml", "ls"])
def test_gradients_equal_finite_differences(crystal: BuiltModel, target: str) -> None:
    options = XrayOptions(target=target, algorithm="direct")
    sites = jittered(crystal)
    gradients = crystal.xray(sites, options).gradients["sites"]
    step = 1e-4
    for atom, axis in [(0, 0), (5, 1), (11, 0), (60, 2), (140, 1)]:
        values = []
        for sign in (1, -1):
            moved = sites.copy()
            moved[atom, axis] += sign * step
            values.append(crystal.xray(moved, options).value)
        difference = (values[0] - values[1]) / (2 * step)
        assert difference == pytest.approx(gradients[atom, axis], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("table", "used", "r_work", "r_free"),
    [("auto", "n_gaussian", 0.202, 0.230), ("electron", "electron", 0.185, 0.202)],
)
def test_r_factors(
    library: RestraintLibrary, table: str, used: str, r_work: float, r_free: float
) -> None:
    model = build(inputs(PDB_7N2L, wheel_bytes(MTZ_7N2L), scattering_table=table), library)
    result = model.xray()
    assert model.summary.data is not None
    assert model.summary.data.scattering_table == used
    assert result.r_work == pytest.approx(r_work, abs=2e-3)
    assert result.r_free == pytest.approx(r_free, abs=2e-3)


def test_header_chooses_the_scattering_table(library: RestraintLibrary) -> None:
    header = b"EXPDTA    ELECTRON CRYSTALLOGRAPHY\n"
    model = build(inputs(header + wheel_bytes(PDB_7N2L), wheel_bytes(MTZ_7N2L)), library)
    assert model.summary.data is not None
    assert model.summary.data.scattering_table == "electron"


def test_scales_are_frozen_until_refreshed(library: RestraintLibrary) -> None:
    model = build(inputs(PDB_7N2L, wheel_bytes(MTZ_7N2L)), library)
    sites = jittered(model)
    first = model.xray(sites)
    model.xray()
    assert model.xray(sites).value == first.value
    model.refresh_scales(sites)
    assert model.xray(sites).value != first.value
    model.refresh_scales()
    assert model.xray(sites).value == pytest.approx(first.value, rel=1e-12)


def test_bulk_solvent_can_be_left_out(crystal: BuiltModel) -> None:
    without = crystal.xray(options=XrayOptions(bulk_solvent=False))
    assert without.value != crystal.xray().value
    assert without.r_work < 0.25


def test_bad_sample_does_not_hurt_the_next(crystal: BuiltModel) -> None:
    expected = crystal.xray()
    bad = crystal.atoms.sites.copy()
    bad[0] = np.nan
    with pytest.raises(SampleError):
        crystal.xray(bad)
    np.testing.assert_array_equal(crystal.xray().gradients["sites"], expected.gradients["sites"])


def test_needs_no_restraint_library(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bxmesh.server.geometry.engine.library._PACKAGE", "no_such_package")
    for variable in ("MMTBX_CCP4_MONOMER_LIB", "CLIBD_MON"):
        monkeypatch.delenv(variable, raising=False)
    missing = RestraintLibrary(tmp_path)  # type: ignore[arg-type]
    model = build(inputs(PDB_7N2L, wheel_bytes(MTZ_7N2L)), missing)
    assert any("Geometry is not available" in notice for notice in model.summary.notices)
    assert model.xray().r_work < 0.21
    with pytest.raises(EngineError) as caught:
        model.geometry()
    assert caught.value.reason == "LIBRARY_MISSING"
    assert "monomers" in caught.value.message


def test_every_step_is_observed(library: RestraintLibrary) -> None:
    from contextlib import contextmanager

    steps = []

    @contextmanager
    def observe(name):
        steps.append(name)
        yield

    model = build(inputs(PDB_7N2L, wheel_bytes(MTZ_7N2L)), library, observe)
    assert steps == ["parse", "read_reflections"]
    model.xray()
    model.geometry()
    model.geometry()
    assert steps[2:] == ["scale", "xray_target", "build_restraints", "energies", "energies"]
