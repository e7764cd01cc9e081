"""CreateModel."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc

from bxmesh.geometry.v1 import bundle_pb2, geometry_work_pb2, model_pb2
from bxmesh.server.geometry.agent.capabilities import CREATE_MODEL
from bxmesh.server.geometry.inputs import naming
from bxmesh.server.geometry.mesh import GeometryMesh, caller, result_of, routing_key
from bxmesh.server.geometry.sharing import holder, seen_by_caller
from bxmesh.server.interceptors import current_identity
from bxmesh.server.security.addresses import address_of


class ModelRpcs:
    """The RPCs about models."""

    _mesh: GeometryMesh

    async def CreateModel(
        self,
        request: model_pb2.CreateModelRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> model_pb2.CreateModelResponse:
        """Lets a worker read the inputs, and remembers what the model is made of."""
        mesh = self._mesh
        for name, bundle_id in _inputs(request.spec):
            with naming(name, bundle_id):
                seen_by_caller(mesh.store, bundle_id)
        if request.spec.reflections:
            current_identity().require("experimental_data_processing")
        content = request.spec.SerializeToString(deterministic=True)
        work = geometry_work_pb2.CreateModelWork(
            spec=request.spec, include_atoms=request.include_atoms
        )
        worker_id = mesh.router.choose(await mesh.router.workers(routing_key(request.spec)))
        request_id = f"{caller()}:model:{request.request_id}" if request.request_id else ""
        deadline = mesh.deadline(context)
        with mesh.router.occupied(worker_id):
            async with mesh.client.submit(
                mesh.queue,
                CREATE_MODEL,
                work,
                lane=worker_id,
                request_id=request_id,
                deadline=deadline,
                identity=caller(),
            ) as submission:
                outcome = await mesh.outcome(submission, request.spec, deadline)
        result = result_of(outcome, geometry_work_pb2.CreateModelWorkResult)
        with mesh.quotas.telling(
            caller(),
            "/bxmesh.geometry.v1.GeometryService/CreateModel",
            address=address_of(context.peer()),
        ):
            bundle, _ = await asyncio.to_thread(
                mesh.store.put,
                content,
                bundle_pb2.BUNDLE_KIND_MODEL,
                media_type="application/x-protobuf; type=bxmesh.geometry.v1.ModelSpec",
                derived_from=[bundle_id for _, bundle_id in _inputs(request.spec)],
                holder=holder(current_identity()),
                allowance=mesh.quotas.allowance("max_bundle_bytes", caller()),
            )
        result.model.model_id = bundle.bundle_id
        response = model_pb2.CreateModelResponse(model=result.model)
        if result.atoms_bundle_id:
            response.atoms.ParseFromString(mesh.store.read(result.atoms_bundle_id))
        return response


def _inputs(spec: model_pb2.ModelSpec) -> Iterator[tuple[str, str]]:
    yield "macromolecule", spec.macromolecule
    if spec.reflections:
        yield "reflections", spec.reflections
    for bundle_id in spec.restraints:
        yield "restraints", bundle_id
