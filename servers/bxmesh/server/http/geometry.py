"""How good a model is, in one request."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from uuid import uuid4

from pydantic import BaseModel

from bxmesh.client.bundles import AsyncBundles, BundleKind
from bxmesh.client.data_quality import DataReport
from bxmesh.client.models import HYDROGENS, SCATTERING_TABLES, Model
from bxmesh.client.trace import current_trace_id
from bxmesh.client.validation import Validation
from bxmesh.geometry.v1 import calculations_pb2, model_pb2
from bxmesh.server.http.bodies import MODEL, REFLECTIONS
from bxmesh.server.http.models.geometry import GeometryReport, ReportQuery
from bxmesh.server.http.operations import Call

__all__ = ["report"]

# Whoever wants more of it has an hour; after that nothing of the files is left.
_LIFETIME = timedelta(hours=1)


async def report(call: Call) -> BaseModel:
    """Stores the files for an hour, makes a model of them, and validates it."""
    query: ReportQuery = call.query
    connection = call.mesh.connection
    spec = model_pb2.ModelSpec(
        macromolecule=await _stored(call, MODEL, "macromolecule"),
        options=model_pb2.ModelOptions(
            hydrogens=HYDROGENS.number(query.hydrogens),
            scattering_table=SCATTERING_TABLES.number(query.scattering_table),
            data_labels=query.data_labels,
            r_free_flags_label=query.r_free_flags_label,
            d_min=query.d_min,
        ),
    )
    if REFLECTIONS in call.files:
        spec.reflections = await _stored(call, REFLECTIONS, "reflections")
    seconds = connection.timeouts.calculation
    model = Model.from_message(
        await connection.unary(
            connection.geometry.CreateModel,
            model_pb2.CreateModelRequest(request_id=uuid4().hex, spec=spec),
            seconds,
        )
    )
    request = calculations_pb2.ValidateModelRequest(request_id=uuid4().hex, model_id=model.model_id)
    validation = Validation.from_message(
        await connection.unary(connection.geometry.ValidateModel, request, seconds)
    )
    if not query.per_residue:
        validation = dataclasses.replace(validation, ramachandran=(), residues=())
    return GeometryReport(
        model_id=model.model_id,
        summary=model.summary,
        validation=validation,
        data=await _data(call, model) if spec.reflections else None,
        trace_id=current_trace_id(),
    )


async def _stored(call: Call, part: str, kind: BundleKind) -> str:
    file = call.files[part]
    bundles = AsyncBundles(call.mesh.connection)
    stored = await bundles.upload(file.content, kind=kind, name=file.name, lifetime=_LIFETIME)
    return stored.bundle_id


async def _data(call: Call, model: Model) -> DataReport | None:
    connection = call.mesh.connection
    request = calculations_pb2.AnalyzeDataRequest(request_id=uuid4().hex, model_id=model.model_id)
    answer = await connection.unary(
        connection.geometry.AnalyzeData, request, connection.timeouts.calculation
    )
    return DataReport.from_message(answer.report)
