"""cctbx called plainly, as someone without bxmesh would."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import iotbx.pdb
import mmtbx.f_model
import mmtbx.model
import numpy as np
from cctbx.array_family import flex
from iotbx import reflection_file_reader, reflection_file_utils
from libtbx.utils import null_out

from bxmesh.server.geometry.engine import RestraintLibrary
from bxmesh.server.settings import Settings

UBF = "iotbx/regression/secondary_structure/1ubf_cutted.pdb"
PDB_7N2L = "mmtbx/regression/pdbs/7n2l.pdb"
MTZ_7N2L = "mmtbx/regression/mtz/7n2l.mtz"


def wheel_file(path: str) -> Path:
    """A file of the cctbx wheel."""
    spec = find_spec("iotbx")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).parent / path


def prepare_library() -> None:
    """Makes mmtbx find the same restraint library that the workers use."""
    RestraintLibrary(Settings().cache_dir).load()


class BareGeometry:
    """`energies_sites` of one model."""

    def __init__(self, path: str) -> None:
        self.sites: Any
        source = iotbx.pdb.input(str(wheel_file(path)))
        self.manager = mmtbx.model.manager(model_input=source, log=null_out())
        self.manager.process(make_restraints=True)
        self._geometry = self.manager.get_restraints_manager().geometry
        self.sites = self.manager.get_sites_cart().as_double().as_numpy_array().reshape(-1, 3)

    def energy_and_gradients(self, sites: Any) -> tuple[float, Any]:
        """The energy at coordinates [N, 3], and its gradient as an array."""
        energies = self._geometry.energies_sites(
            sites_cart=flex.vec3_double(flex.double(sites.ravel())), compute_gradients=True
        )
        return energies.target, energies.gradients.as_double().as_numpy_array()

    def gradients(self, sites: Any) -> Any:
        """The gradient at coordinates [N, 3] as an array."""
        return self.energy_and_gradients(sites)[1]


class BareXray:
    """The maximum-likelihood target of 7n2l."""

    def __init__(self) -> None:
        source = iotbx.pdb.input(str(wheel_file(PDB_7N2L)))
        structure = source.xray_structure_simple()
        structure.scattering_type_registry(table="n_gaussian", d_min=0.9)
        reader = reflection_file_reader.any_reflection_file(str(wheel_file(MTZ_7N2L)))
        server = reflection_file_utils.reflection_file_server(
            crystal_symmetry=structure.crystal_symmetry(),
            reflection_files=[reader],
            err=null_out(),
        )
        f_obs = server.get_xray_data(
            file_name=None, labels=["FOBS,SIGFOBS"], ignore_all_zeros=True, parameter_scope=""
        )
        flags, test_value = server.get_r_free_flags(
            file_name=None,
            label="R-free-flags",
            test_flag_value=None,
            disable_suitability_test=False,
            parameter_scope="",
        )
        f_obs, flags = f_obs.common_sets(flags)
        self._f_model = mmtbx.f_model.manager(
            f_obs=f_obs,
            r_free_flags=flags.array(data=flags.data() == test_value),
            xray_structure=structure,
            target_name="ml",
        )
        self._f_model.update_all_scales()
        self._functor = self._f_model.target_functor()
        self.sites = structure.sites_cart().as_double().as_numpy_array().reshape(-1, 3)

    def gradients(self, sites: Any) -> Any:
        """The gradient at coordinates [N, 3], with what else a session tells: value and R factors."""
        f_model = self._f_model
        f_model.xray_structure.set_sites_cart(flex.vec3_double(flex.double(sites.ravel())))
        f_model.update_xray_structure(update_f_calc=True, update_f_mask=False)
        result = self._functor(compute_gradients=True)
        gradients = result.d_target_d_site_cart().as_double().as_numpy_array()
        return result.target_work(), f_model.r_work(), f_model.r_free(), gradients


def jittered(sites: Any, sigma: float, count: int, seed: int = 0) -> Any:
    """Conformers [count, N, 3] around coordinates."""
    return sites + np.random.default_rng(seed).normal(0, sigma, (count, *sites.shape))


def gradients_per_second(bare: BareGeometry, seconds: float, sigma: float) -> float:
    """How many gradients this process computes in a second, with so much jitter in Å."""
    conformers = jittered(bare.sites, sigma, 32)
    for conformer in conformers[:4]:
        bare.gradients(conformer)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        bare.gradients(conformers[done % len(conformers)])
        done += 1
    return done / (time.perf_counter() - began)
