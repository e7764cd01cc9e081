"""Twinned data: which twin laws a crystal has room for, and the least-squares target under one.

mmtbx's f_model determines scales and twin fraction under a twin law, but has no target for it; and
the gradients of mmtbx.twinning's are not those of its value (one is over the work set, the other
over all reflections).
"""

import re
from typing import Any

from cctbx import sgtbx, xray
from cctbx.array_family import flex
from cctbx.sgtbx import lattice_symmetry
from mmtbx.refinement.targets import target_result_mixin

from bxmesh.server.geometry.engine.errors import EngineError

_FIELD = "options"
_MOST_DEGREES = 3.0
"""How far the lattice may be from having the law for a symmetry; as in xtriage."""


def check_law(law: str, f_obs: Any) -> None:
    """Raise EngineError TWIN_LAW_INVALID unless `law`, such as `h,-k,-l`, can twin this crystal."""
    operator = _operator(law)
    rotation = operator.r().as_double()
    laue_group = f_obs.space_group().build_derived_laue_group()
    if any(symmetry.r().as_double() == rotation for symmetry in laue_group):
        raise _invalid(law, f"{f_obs.space_group_info()} has it for a symmetry itself")
    to_primitive = f_obs.change_of_basis_op_to_niggli_cell()
    group = sgtbx.space_group()
    try:
        group.expand_smx(to_primitive.apply(operator).new_denominators(1, sgtbx.sg_t_den))
    except RuntimeError as error:
        raise _invalid(law, "no lattice falls on itself under it") from error
    cell = f_obs.unit_cell()
    degrees = lattice_symmetry.find_max_delta(cell.change_basis(to_primitive), group)
    if degrees > _MOST_DEGREES:
        raise _invalid(
            law,
            f"the lattice of this crystal is {degrees:.1f} degrees away from falling on itself under "
            f"it; {_MOST_DEGREES:g} are the most",
        )


def _operator(law: str) -> Any:
    if re.fullmatch(r"[-+hklHKL0-9*/., ]+", law) is None:
        raise _invalid(law, "it is not in terms of h, k and l")
    try:
        return sgtbx.rt_mx(symbol=law, r_den=sgtbx.cb_r_den, t_den=sgtbx.cb_t_den)
    except (ValueError, RuntimeError) as error:
        raise _invalid(law, "it is not three sums of h, k and l") from error


def _invalid(law: str, why: str) -> EngineError:
    return EngineError(
        "TWIN_LAW_INVALID",
        f"The twin law {law!r} cannot be used: {why}. Give one, such as 'h,-k,-l', that the lattice has"
        " for a symmetry and the crystal has not; an analysis of the data names those that there are.",
        field=_FIELD,
    )


class TwinnedLeastSquares:
    """A target functor, as cctbx's, for an f_model manager with a twin law.

    The target is that of ls_wunit_k1, with sqrt((1 - a) |F(h)|^2 + a |F(h')|^2) in the place of |F(h)|,
    where h' is the twin mate of h and a the twin fraction.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        f_obs = manager.f_obs()
        self._amplitudes = xray.target_functors.least_squares(
            compute_scale_using_all_data=False,
            f_obs=f_obs,
            r_free_flags=manager.r_free_flags(),
            weights=flex.double(f_obs.size(), 1.0),
            scale_factor=0,
        )

    def __call__(self, compute_gradients: bool = False) -> "_Result":
        """Return the target with the manager's structure factors."""
        twinned = self._manager.f_model()
        return _Result(
            self._manager,
            self._amplitudes(
                f_calc=twinned.array(data=flex.polar(twinned.data(), 0)),
                compute_gradients=compute_gradients,
            ),
        )


class _Result(target_result_mixin):  # type: ignore[misc]
    def __init__(self, manager: Any, of_amplitudes: Any) -> None:
        self.manager = manager
        self._of_amplitudes = of_amplitudes

    def target_work(self) -> Any:
        return self._of_amplitudes.target_work()

    def target_test(self) -> Any:
        return self._of_amplitudes.target_test()

    def d_target_d_f_calc_work(self) -> Any:
        """The derivative by the structure factors of both domains, over the indices of both."""
        arrays = self.manager.arrays
        fraction = arrays.twin_fraction
        twinned = arrays.f_model_work.data()
        dark = twinned <= 0
        slope = flex.real(self._of_amplitudes.gradients_work()) / twinned.set_selected(dark, 1.0)
        slope.set_selected(dark, 0.0)
        indices = flex.miller_index()
        derivatives = flex.complex_double()
        for domain, share in ((arrays.core, 1 - fraction), (arrays.core_twin, fraction)):
            scale = domain.k_isotropic * domain.k_anisotropic
            of_domain = domain.f_model.data() * scale
            indices.extend(domain.f_model.indices().select(arrays.work_sel))
            derivatives.extend(of_domain.select(arrays.work_sel) * (slope * share))
        return arrays.f_obs.customized_copy(indices=indices, data=derivatives, sigmas=None)
