"""X-ray targets: scales fixed once, target and gradients evaluated often."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mmtbx.f_model
import numpy as np
from cctbx import xray
from cctbx.array_family import flex

from bxmesh.server.geometry.engine.errors import EngineError, SampleError
from bxmesh.server.geometry.engine.macromolecule import Macromolecule
from bxmesh.server.geometry.engine.order import AtomOrder
from bxmesh.server.geometry.engine.reflections import Reflections
from bxmesh.server.geometry.engine.twinning import TwinnedLeastSquares, check_law
from bxmesh.server.geometry.engine.types import (
    Floats,
    SampleStatus,
    ScatteringTable,
    StepFactory,
    XrayOptions,
    XrayResult,
)
from bxmesh.server.geometry.engine.words import words

_TARGETS = {"ml": "ml", "ls": "ls_wunit_k1", "mlhl": "mlhl", "twin_ls": "twin_lsq_f"}
_LIKELIHOODS = ("ml", "mlhl")


class XrayTarget:
    """The X-ray targets of one model and its reflections.

    Scales, bulk solvent and the likelihood's error parameters are determined once, at the
    deposited coordinates, so that value and gradients belong to one fixed function of the
    coordinates until the scales are refreshed.
    """

    reflections: Reflections

    def __init__(
        self, model: Macromolecule, reflections: Reflections, table: ScatteringTable
    ) -> None:
        self.reflections = reflections
        self._order = AtomOrder(model.order, len(model.atoms))
        self._scaled_sites = model.atoms.sites
        self._scaled: dict[XrayOptions, tuple[Any, Any]] = {}
        self._structure = xray_structure(model, reflections.f_obs.d_min(), table)

    def prepare(self, options: XrayOptions, on_step: StepFactory) -> None:
        """Scale the data for `options` unless that is done; raises EngineError."""
        key = _scaling(options)
        if key in self._scaled:
            return
        if options.target in _LIKELIHOODS and self.reflections.r_free_flags is None:
            raise EngineError(
                "NO_R_FREE_FLAGS",
                "The maximum-likelihood target needs R-free flags and the reflections have none; "
                "give them with the data, ask for flags to be generated, or use the "
                "least-squares target.",
                field="reflections",
            )
        if options.target == "mlhl" and self.reflections.phases is None:
            raise EngineError(
                "NO_PHASE_PROBABILITIES",
                "The target mlhl needs Hendrickson-Lattman coefficients (such as HLA, HLB, HLC, HLD) "
                "and the reflections have none; use the target ml.",
                field="reflections",
            )
        if options.target == "twin_ls":
            check_law(options.twin_law, self.reflections.f_obs)
        with on_step("scale"):
            try:
                self._scaled[key] = self._scale(options)
            except Exception as error:
                raise EngineError(
                    "SCALING_FAILED",
                    f"The data cannot be scaled to the model: {words(error)}",
                    field="reflections",
                ) from error

    def refresh_scales(self, sites: Floats) -> None:
        """Determine the scales anew at `sites` [N, 3], for the next evaluation."""
        self._scaled_sites = sites.copy()
        self._scaled.clear()

    def f_model(self, sites: Floats, options: XrayOptions, on_step: StepFactory) -> Any:
        """Return cctbx's f_model manager with these scales and its atoms at `sites` [N, 3].

        It is lent until the next call. Raises EngineError, and SampleError when only these
        coordinates are at fault.
        """
        self.prepare(options, on_step)
        manager, _ = self._scaled[_scaling(options)]
        with on_step("structure_factors"):
            try:
                self._move(manager, sites)
            except (RuntimeError, AssertionError, ValueError) as error:
                raise SampleError(
                    SampleStatus.FAILED,
                    f"Structure factors cannot be computed: {words(error)}",
                ) from error
        return manager

    def evaluate(self, sites: Floats, options: XrayOptions, on_step: StepFactory) -> XrayResult:
        """Return target, R factors and gradients at `sites` [N, 3].

        Raises EngineError, and SampleError when only these coordinates are at fault.
        """
        self.prepare(options, on_step)
        manager, functor = self._scaled[_scaling(options)]
        with on_step("xray_target"):
            try:
                self._move(manager, sites)
                result = functor(compute_gradients=bool(options.with_respect_to))
                gradients = self._gradients(manager, result, options)
                value = result.target_work()
            except (RuntimeError, AssertionError, ValueError) as error:
                raise SampleError(
                    SampleStatus.FAILED, f"The X-ray target cannot be evaluated: {words(error)}"
                ) from error
        if not np.isfinite(value + sum(array.sum() for array in gradients.values())):
            raise SampleError(
                SampleStatus.NON_FINITE, "The X-ray target or its gradients are not finite."
            )
        free = self.reflections.r_free_flags is not None
        return XrayResult(
            target=_TARGETS[options.target],
            value=value,
            value_free=result.target_test() if free else None,
            r_work=manager.r_work(),
            r_free=manager.r_free() if free else None,
            reflections=manager.f_obs().size(),
            gradients=gradients,
            atom_mask=self._order.mask,
            twin_fraction=manager.twin_fraction if options.target == "twin_ls" else None,
        )

    def _move(self, manager: Any, sites: Floats) -> None:
        manager.xray_structure.set_sites_cart(self._order.to_flex(sites))
        manager.update_xray_structure(update_f_calc=True, update_f_mask=False)

    def _scale(self, options: XrayOptions) -> tuple[Any, Any]:
        structure = self._structure.deep_copy_scatterers()
        structure.set_sites_cart(self._order.to_flex(self._scaled_sites))
        parameters = mmtbx.f_model.sf_and_grads_accuracy_master_params.extract()
        parameters.algorithm = options.algorithm
        f_obs = self.reflections.f_obs
        manager = mmtbx.f_model.manager(
            f_obs=f_obs,
            r_free_flags=self.reflections.r_free_flags,
            f_mask=None if options.bulk_solvent else _no_solvent(f_obs),
            xray_structure=structure,
            sf_and_grads_accuracy_params=parameters,
            abcd=self.reflections.phases if options.target == "mlhl" else None,
            target_name=_TARGETS[options.target],
            twin_law=options.twin_law or None,
        )
        manager.update_all_scales()
        twinned = options.target == "twin_ls"
        return manager, TwinnedLeastSquares(manager) if twinned else manager.target_functor()

    def _gradients(self, manager: Any, result: Any, options: XrayOptions) -> Mapping[str, Floats]:
        scatterers = manager.xray_structure.scatterers()
        gradients = {}
        if "sites" in options.with_respect_to:
            sites = result.d_target_d_site_cart().as_double().as_numpy_array().reshape(-1, 3)
            gradients["sites"] = self._order.to_file(sites)
        if "adp_iso" in options.with_respect_to:
            gradients["adp_iso"] = self._order.to_file(_adp_gradients(scatterers, result))
        if "adp_aniso" in options.with_respect_to:
            gradients["adp_aniso"] = self._order.to_file(_tensor_gradients(scatterers, result))
        if "occupancy" in options.with_respect_to:
            xray.set_scatterer_grad_flags(scatterers=scatterers, occupancy=True)
            occupancy = result.gradients_wrt_atomic_parameters(occupancy=True).as_numpy_array()
            gradients["occupancy"] = self._order.to_file(occupancy)
        return gradients


def _scaling(options: XrayOptions) -> XrayOptions:
    """What the scales depend on: all but what is differentiated."""
    return replace(options, with_respect_to=frozenset())


def scattering_table(model: Macromolecule, table: ScatteringTable) -> ScatteringTable:
    """Return the table to use: the one asked for, else by the experiment in the header."""
    if table != "auto":
        return table
    if "ELECTRON" in model.experiment:
        return "electron"
    if "NEUTRON" in model.experiment and "X-RAY" not in model.experiment:
        return "neutron"
    return "n_gaussian"


def xray_structure(model: Macromolecule, d_min: float, table: ScatteringTable) -> Any:
    """Return the model as cctbx's xray structure, with form factors good up to `d_min` in Å.

    Raises EngineError UNKNOWN_SCATTERERS.
    """
    table = scattering_table(model, table)
    try:
        structure = model.hierarchy.extract_xray_structure(crystal_symmetry=model.symmetry)
        structure.scattering_type_registry(table=table, d_min=d_min)
    except Exception as error:
        raise EngineError(
            "UNKNOWN_SCATTERERS",
            f"Not every atom has a scattering factor in the table {table}: {words(error)} "
            "Correct the element symbols.",
            field="macromolecule",
        ) from error
    return structure


def _adp_gradients(scatterers: Any, result: Any) -> Floats:
    xray.set_scatterer_grad_flags(scatterers=scatterers, u_iso=True)
    isotropic: Floats = result.gradients_wrt_atomic_parameters(u_iso=True).as_numpy_array()
    anisotropic = scatterers.extract_use_u_aniso().as_numpy_array()
    if not anisotropic.any():
        return isotropic
    traces: Floats = _tensor_gradients(scatterers, result)[:, :3].sum(axis=1)
    return np.where(anisotropic, traces, isotropic)


def _tensor_gradients(scatterers: Any, result: Any) -> Floats:
    anisotropic = scatterers.extract_use_u_aniso().as_numpy_array()
    xray.set_scatterer_grad_flags(scatterers=scatterers, u_aniso=True)
    tensors = result.gradients_wrt_atomic_parameters(u_aniso=True).as_double().as_numpy_array()
    return np.where(anisotropic[:, None], tensors.reshape(-1, 6), 0.0)


def _no_solvent(f_obs: Any) -> Any:
    return f_obs.array(data=flex.complex_double(f_obs.size(), 0))
