"""Between the contract's messages and the engine's types."""

from __future__ import annotations

import grpc
import numpy as np

from bxmesh.geometry.v1 import gradients_pb2, model_pb2
from bxmesh.server.errors import MeshError, invalid_argument
from bxmesh.server.geometry.engine import (
    AtomTable,
    DataSummary,
    EngineError,
    GeometryResult,
    ModelOptions,
    ModelSummary,
    SampleStatus,
    XrayOptions,
    XrayResult,
)
from bxmesh.server.geometry.engine.types import Parameter, ScatteringTable, TargetName
from bxmesh.tensors import to_message

_HYDROGENS = {
    model_pb2.HYDROGEN_POLICY_UNSPECIFIED: "auto",
    model_pb2.HYDROGEN_POLICY_KEEP: "keep",
    model_pb2.HYDROGEN_POLICY_STRIP: "strip",
}
_TABLES: dict[model_pb2.ScatteringTable.ValueType, ScatteringTable] = {
    model_pb2.SCATTERING_TABLE_UNSPECIFIED: "auto",
    model_pb2.SCATTERING_TABLE_N_GAUSSIAN: "n_gaussian",
    model_pb2.SCATTERING_TABLE_WK1995: "wk1995",
    model_pb2.SCATTERING_TABLE_IT1992: "it1992",
    model_pb2.SCATTERING_TABLE_ELECTRON: "electron",
    model_pb2.SCATTERING_TABLE_NEUTRON: "neutron",
}
_TABLES_BACK = {name: value for value, name in _TABLES.items()}
_XRAY_TARGETS: dict[gradients_pb2.XrayTarget.ValueType, TargetName] = {
    gradients_pb2.XRAY_TARGET_ML: "ml",
    gradients_pb2.XRAY_TARGET_LS: "ls",
    gradients_pb2.XRAY_TARGET_MLHL: "mlhl",
    gradients_pb2.XRAY_TARGET_TWIN_LS: "twin_ls",
}
_TARGETS_BY_NAME = {
    "ml": gradients_pb2.XRAY_TARGET_ML,
    "ls_wunit_k1": gradients_pb2.XRAY_TARGET_LS,
    "mlhl": gradients_pb2.XRAY_TARGET_MLHL,
    "twin_lsq_f": gradients_pb2.XRAY_TARGET_TWIN_LS,
}
_PARAMETERS: dict[gradients_pb2.Parameter.ValueType, Parameter] = {
    gradients_pb2.PARAMETER_SITES: "sites",
    gradients_pb2.PARAMETER_ADP_ISO: "adp_iso",
    gradients_pb2.PARAMETER_OCCUPANCY: "occupancy",
    gradients_pb2.PARAMETER_ADP_ANISO: "adp_aniso",
}
_STATUSES = {
    SampleStatus.OK: gradients_pb2.SAMPLE_STATUS_OK,
    SampleStatus.NON_FINITE: gradients_pb2.SAMPLE_STATUS_NON_FINITE,
    SampleStatus.OUT_OF_RANGE: gradients_pb2.SAMPLE_STATUS_OUT_OF_RANGE,
    SampleStatus.EXPLODED: gradients_pb2.SAMPLE_STATUS_EXPLODED,
    SampleStatus.DEGENERATE: gradients_pb2.SAMPLE_STATUS_DEGENERATE,
    SampleStatus.FAILED: gradients_pb2.SAMPLE_STATUS_FAILED,
}
# What no change of the input files helps against, but a change of the call or of the mesh does.
_PRECONDITIONS = frozenset(
    {
        "LIBRARY_MISSING",
        "LIBRARY_UNREADABLE",
        "NO_CRYSTAL_SYMMETRY",
        "NO_PHASE_PROBABILITIES",
        "NO_REFLECTIONS",
        "NO_R_FREE_FLAGS",
        "UNKNOWN_RESIDUES",
    }
)
_UNITS = {
    "sites": "1/angstrom",
    "adp_iso": "1/angstrom^2",
    "adp_aniso": "1/angstrom^2",
    "occupancy": "1",
}


def error_of(error: EngineError) -> MeshError:
    """The caller's form of what the engine refused."""
    precondition = error.reason in _PRECONDITIONS
    return MeshError(
        grpc.StatusCode.FAILED_PRECONDITION if precondition else grpc.StatusCode.INVALID_ARGUMENT,
        error.reason,
        error.message,
        metadata={"input": error.field, "subjects": ",".join(error.subjects)[:200]},
        field_violations=() if precondition else [(error.field, error.message)],
        precondition_violations=(
            [(error.reason, error.field, error.message)] if precondition else ()
        ),
    )


def status_of(status: SampleStatus) -> gradients_pb2.SampleStatus.ValueType:
    """The contract's word for what became of a sample."""
    return _STATUSES[status]


def unit_of(parameter: str) -> str:
    """The unit of a gradient with respect to a parameter."""
    return _UNITS[parameter]


def model_options(options: model_pb2.ModelOptions) -> ModelOptions:
    """How the engine is to read the inputs."""
    return ModelOptions(
        hydrogens=_HYDROGENS[options.hydrogens],  # type: ignore[arg-type]
        generate_r_free_flags=options.generate_r_free_flags,
        data_labels=options.data_labels or None,
        r_free_labels=options.r_free_flags_label or None,
        d_min=options.d_min or None,
        d_max=options.d_max or None,
        scattering_table=_TABLES[options.scattering_table],
    )


def xray_options(options: gradients_pb2.GradientOptions) -> XrayOptions:
    """Which X-ray target the engine is to compute; MeshError for options that are at odds."""
    default = (
        gradients_pb2.XRAY_TARGET_TWIN_LS if options.twin_law else gradients_pb2.XRAY_TARGET_ML
    )
    target = _XRAY_TARGETS[options.xray_target or default]
    if target == "twin_ls" and not options.twin_law:
        raise invalid_argument(
            "options.twin_law",
            "the target twin_ls needs a twin law, such as 'h,-k,-l'.",
            reason="TWIN_LAW_MISSING",
        )
    if target != "twin_ls" and options.twin_law:
        raise invalid_argument(
            "options.twin_law",
            f"the target {target} has no twin law: twinned data have the target twin_ls only. Use that, "
            "or leave the law out.",
            reason="TWIN_LAW_NOT_IN_TARGET",
        )
    names = frozenset(_PARAMETERS[parameter] for parameter in options.with_respect_to)
    direct = options.algorithm == gradients_pb2.STRUCTURE_FACTOR_ALGORITHM_DIRECT
    return XrayOptions(
        target=target,
        algorithm="direct" if direct else "fft",
        with_respect_to=names or frozenset({"sites"}),
        twin_law=options.twin_law,
    )


def geometry_value(result: GeometryResult) -> gradients_pb2.GeometryValue:
    """The geometry of one sample."""
    return gradients_pb2.GeometryValue(
        energy=result.energy,
        gradient_norm=result.gradient_norm,
        terms=[
            gradients_pb2.EnergyTerm(name=name, energy=term.energy, count=term.count)
            for name, term in result.terms.items()
        ],
    )


def xray_value(result: XrayResult, gradient_norm: float) -> gradients_pb2.XrayValue:
    """The X-ray target of one sample."""
    value = gradients_pb2.XrayValue(
        target=_TARGETS_BY_NAME[result.target],
        value=result.value,
        r_work=result.r_work,
        reflections=result.reflections,
        gradient_norm=gradient_norm,
    )
    if result.r_free is not None:
        value.r_free = result.r_free
    if result.twin_fraction is not None:
        value.twin_fraction = result.twin_fraction
    return value


def summary_message(summary: ModelSummary, library: str) -> model_pb2.ModelSummary:
    """What was found in a model's inputs."""
    message = model_pb2.ModelSummary(
        atoms=summary.atoms,
        residues=summary.residues,
        chains=summary.chains,
        hydrogens=summary.hydrogens,
        atoms_set_aside=summary.hydrogens_stripped,
        alternative_locations=bool(summary.altlocs),
        space_group=summary.space_group or "",
        unknown_residues=summary.unknown_residues,
        notices=summary.notices,
        restraint_library=library,
    )
    if summary.unit_cell is not None:
        names = ("a", "b", "c", "alpha", "beta", "gamma")
        message.unit_cell.CopyFrom(
            model_pb2.UnitCell(**dict(zip(names, summary.unit_cell, strict=True)))
        )
    if summary.data is not None:
        message.reflections.CopyFrom(_reflections(summary.data))
    return message


def _reflections(data: DataSummary) -> model_pb2.ReflectionsSummary:
    return model_pb2.ReflectionsSummary(
        data_labels=data.labels,
        from_intensities=data.kind == "intensities",
        anomalous_merged=data.anomalous_merged,
        reflections=data.reflections,
        free_reflections=data.free,
        r_free_flags_label=data.r_free_labels or "",
        r_free_test_value=data.r_free_test_value or 0,
        d_min=data.d_min,
        d_max=data.d_max,
        scattering_table=_TABLES_BACK[data.scattering_table],  # type: ignore[index]
    )


def atom_table(atoms: AtomTable, mask: object) -> model_pb2.AtomTable:
    """The atoms in the file's order."""
    numbers = zip(atoms.resseq, atoms.icode, strict=True)
    return model_pb2.AtomTable(
        names=atoms.name.tolist(),
        residue_names=atoms.resname.tolist(),
        chain_ids=atoms.chain.tolist(),
        residue_numbers=[f"{number}{code}".strip() for number, code in numbers],
        alternative_locations=atoms.altloc.tolist(),
        elements=atoms.element.tolist(),
        atom_mask=to_message(np.asarray(mask), "atom_mask"),
        sites=to_message(atoms.sites, "sites", "angstrom"),
    )
