"""ExportRestraints: the built restraints as tensors, and as one file of them all."""

from __future__ import annotations

import io

from bxmesh.geometry.v1 import bundle_pb2
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.restraints import LAYOUT_VERSION, Restraints
from bxmesh.server.geometry.agent.run import Answer, Run
from bxmesh.server.geometry.agent.warm_models import one_sample_call
from bxmesh.server.geometry.engine.export import export
from bxmesh.tensors import to_spec

__all__ = ["restraints"]


def restraints(run: Run[pb.ExportRestraintsRequest]) -> Answer:
    """Exports the restraints of a model."""
    tensors = one_sample_call(lambda: export(run.model, run.steps.step))
    with run.steps.step("write"):
        file = io.BytesIO()
        Restraints(tensors).save(file)
        bundle_id = run.keep(
            file.getvalue(), bundle_pb2.BUNDLE_KIND_RESTRAINT_TENSORS, "application/x-npz"
        )
    header = pb.RestraintsHeader(
        layout_version=LAYOUT_VERSION,
        atoms=len(run.model.atoms),
        tensors=[to_spec(tensor, name) for name, tensor in tensors.items()],
        bundle_id=bundle_id,
    )
    return header, tensors
