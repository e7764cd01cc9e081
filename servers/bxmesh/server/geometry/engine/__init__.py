"""The crystallographic engine: the only place that imports cctbx.

Results, options and errors come from here without importing cctbx; `engine.model`, which builds
models, imports it.
"""

from bxmesh.server.geometry.engine.coordinates import as_samples, check_sample
from bxmesh.server.geometry.engine.errors import EngineError, SampleError
from bxmesh.server.geometry.engine.library import RestraintLibrary
from bxmesh.server.geometry.engine.types import (
    AtomTable,
    DataSummary,
    GeometryResult,
    LibraryDescription,
    ModelInputs,
    ModelOptions,
    ModelSummary,
    SampleCheck,
    SampleStatus,
    Term,
    XrayOptions,
    XrayResult,
)

__all__ = [
    "AtomTable",
    "DataSummary",
    "EngineError",
    "GeometryResult",
    "LibraryDescription",
    "ModelInputs",
    "ModelOptions",
    "ModelSummary",
    "RestraintLibrary",
    "SampleCheck",
    "SampleError",
    "SampleStatus",
    "Term",
    "XrayOptions",
    "XrayResult",
    "as_samples",
    "check_sample",
]
