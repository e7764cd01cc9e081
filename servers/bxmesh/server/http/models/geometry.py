"""How good a model is."""

from __future__ import annotations

from pydantic import Field

from bxmesh.client.data_quality import DataReport
from bxmesh.client.models import HydrogenPolicy, ModelSummary, ScatteringTable
from bxmesh.client.validation import Validation
from bxmesh.server.http.models.base import Asked, Told

__all__ = ["GeometryReport", "ReportQuery"]

_Label = Field(default="", max_length=128)


class ReportQuery(Asked):
    """How the files are read, and how much is told."""

    hydrogens: HydrogenPolicy | None = None
    """Whether hydrogen atoms take part."""
    scattering_table: ScatteringTable | None = None
    """The form factors."""
    data_labels: str = _Label
    """The columns of the reflections, such as "FOBS,SIGFOBS"."""
    r_free_flags_label: str = _Label
    """The column with the free flags."""
    d_min: float = Field(default=0, ge=0, le=1000)
    """The high resolution limit in angstrom; 0 means that of the data."""
    per_residue: bool = True
    """Whether to tell the Ramachandran plot and the worst restraint of each residue."""


class GeometryReport(Told):
    """How good a model is, and its reflections where there are any."""

    model_id: str
    """The model; calculations refer to it for an hour."""
    summary: ModelSummary
    """What was found in the files."""
    validation: Validation
    """How good the model is."""
    data: DataReport | None = None
    """How good the reflections are; left out without any."""
    trace_id: str
    """The trace of the calculation."""
