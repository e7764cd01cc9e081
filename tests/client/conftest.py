"""A small server of the contract whose misbehaviour can be arranged."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from bxmesh.client import AsyncMesh
from bxmesh.geometry.v1 import (
    bundle_pb2,
    calculations_pb2,
    geometry_service_pb2_grpc,
    gradients_pb2,
    model_pb2,
)
from bxmesh.registry.v1 import agent_pb2, registry_service_pb2_grpc
from bxmesh.tensors import TensorAssembler, from_message, to_chunks, to_message, to_spec

INLINE_BYTES = 2 * 1024 * 1024


def chunks_of(arrays: dict[str, Any]) -> Iterator[Any]:
    for name, array in arrays.items():
        yield from to_chunks(array, to_spec(array, name))


class GeometryServer(geometry_service_pb2_grpc.GeometryServiceServicer):
    """Bundles in memory; the gradient of any coordinates is their double."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.bundles: dict[str, bundle_pb2.Bundle] = {}
        self.requests: list[Any] = []
        self.metadata: dict[str, dict[str, str]] = {}
        self.calls: Counter[str] = Counter()
        self.open_streams: Counter[str] = Counter()
        self.unavailable: Counter[str] = Counter()
        """How often each method still answers UNAVAILABLE before it does anything."""
        self.break_download_at: list[int] = []
        """The lengths after which the next downloads break off."""
        self.break_session_after: list[int] = []
        """The numbers of steps after which the next streams of a session break off."""
        self.damage = b""
        """What downloads end with instead of the right bytes."""
        self.attached: list[str] = []
        self.steps: list[list[int]] = []
        self.closed_sessions = 0
        self.silent = False
        """Whether calculations and steps are left unanswered."""

    async def _enter(self, method: str, context: grpc.aio.ServicerContext) -> None:
        self.calls[method] += 1
        self.metadata[method] = dict(context.invocation_metadata() or ())
        if self.unavailable[method]:
            self.unavailable[method] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    async def ended(self, method: str) -> bool:
        """Returns whether every stream of a method came to its end, waiting for it a moment."""
        for _ in range(200):
            if not self.open_streams[method]:
                return True
            await asyncio.sleep(0.01)
        return False

    async def UploadBundle(self, requests, context):
        await self._enter("UploadBundle", context)
        data = bytearray()
        header = bundle_pb2.UploadBundleHeader()
        async for request in requests:
            if request.HasField("header"):
                header = request.header
            else:
                assert request.chunk.offset == len(data)
                data += request.chunk.data
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert header.bundle_id == digest
        assert header.size_bytes == len(data)
        bundle = bundle_pb2.Bundle(
            bundle_id=digest,
            kind=header.kind,
            size_bytes=len(data),
            display_name=header.display_name,
        )
        bundle.create_time.GetCurrentTime()
        bundle.expire_time.FromSeconds(bundle.create_time.seconds + 86400)
        self.contents[digest] = bytes(data)
        self.bundles[digest] = bundle
        return bundle_pb2.UploadBundleResponse(bundle=bundle)

    async def DownloadBundle(self, request, context):
        self.requests.append(request)
        await self._enter("DownloadBundle", context)
        self.open_streams["DownloadBundle"] += 1
        try:
            content = self.contents.get(request.bundle_id)
            if content is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such bundle")
            content = content[: len(content) - len(self.damage)] + self.damage
            stop = self.break_download_at.pop(0) if self.break_download_at else None
            yield bundle_pb2.DownloadBundleResponse(bundle=self.bundles[request.bundle_id])
            step = 128 * 1024
            for offset in range(request.offset, len(content), step):
                if stop is not None and offset - request.offset >= stop:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "broke off")
                data = content[offset : offset + step]
                chunk = bundle_pb2.BundleChunk(offset=offset, data=data)
                yield bundle_pb2.DownloadBundleResponse(chunk=chunk)
        finally:
            self.open_streams["DownloadBundle"] -= 1

    async def GetBundle(self, request, context):
        await self._enter("GetBundle", context)
        if request.bundle_id not in self.bundles:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such bundle")
        return bundle_pb2.GetBundleResponse(bundle=self.bundles[request.bundle_id])

    async def ListBundles(self, request, context):
        await self._enter("ListBundles", context)
        names = sorted(name for name in self.bundles if name > request.page_token)
        size = request.page_size or 100
        page = names[:size]
        return bundle_pb2.ListBundlesResponse(
            bundles=[self.bundles[name] for name in page],
            next_page_token=page[-1] if len(names) > size else "",
        )

    async def DeleteBundle(self, request, context):
        self.requests.append(request)
        await self._enter("DeleteBundle", context)
        self.bundles.pop(request.bundle_id, None)
        return bundle_pb2.DeleteBundleResponse()

    async def CreateModel(self, request, context):
        self.requests.append(request)
        await self._enter("CreateModel", context)
        summary = model_pb2.ModelSummary(atoms=4, residues=1, chains=1, space_group="P 1")
        summary.unit_cell.a = 10.0
        summary.notices.append("2 hydrogen atoms were set aside.")
        if request.spec.reflections:
            summary.reflections.d_min = 0.9
            summary.reflections.d_max = 20.0
            summary.reflections.data_labels = "FOBS,SIGFOBS"
        response = model_pb2.CreateModelResponse()
        response.model.model_id = request.spec.macromolecule
        response.model.spec.CopyFrom(request.spec)
        response.model.summary.CopyFrom(summary)
        if request.include_atoms:
            response.atoms.names.extend(["N", "CA", "C", "O"])
            response.atoms.atom_mask.CopyFrom(to_message(np.ones(4, bool), "atom_mask"))
            response.atoms.sites.CopyFrom(to_message(np.arange(12.0).reshape(4, 3), "sites"))
        return response

    async def ComputeGradients(self, request, context):
        self.requests.append(request)
        await self._enter("ComputeGradients", context)
        self.open_streams["ComputeGradients"] += 1
        try:
            if self.silent:
                await asyncio.Event().wait()
            source = request.coordinates.WhichOneof("source")
            if source == "tensor":
                sites = from_message(request.coordinates.tensor, max_bytes=1 << 30)
            elif source == "bundle_id":
                path = Path(self.scratch) / "coordinates.npy"
                path.write_bytes(self.contents[request.coordinates.bundle_id])
                sites = np.load(path)
            else:
                sites = np.arange(12.0).reshape(4, 3)
            yield gradients_pb2.ComputeGradientsResponse(
                progress=gradients_pb2.Progress(step="gradients", samples_total=1)
            )
            names = ["geometry_sites"]
            if request.options.target != gradients_pb2.TARGET_GEOMETRY:
                names += ["xray_sites", "combined_sites"]
            for sample in reversed(samples_of(sites, request.options.target)):
                yield gradients_pb2.ComputeGradientsResponse(
                    samples=gradients_pb2.SampleValues(samples=[sample])
                )
            for name in names:
                gradient = 2 * sites
                for chunk in to_chunks(gradient, to_spec(gradient, name)):
                    yield gradients_pb2.ComputeGradientsResponse(chunk=chunk)
            summary = gradients_pb2.GradientsSummary(engine=gradients_pb2.ENGINE_CCTBX)
            summary.step_times.add(step="build_restraints", seconds=0.5)
            summary.step_times.add(step="gradients", seconds=0.001)
            yield gradients_pb2.ComputeGradientsResponse(summary=summary)
        finally:
            self.open_streams["ComputeGradients"] -= 1

    async def ComputeStructureFactors(self, request, context):
        self.requests.append(request)
        await self._enter("ComputeStructureFactors", context)
        arrays = {"miller_indices": np.array([[0, 0, 1], [-1, 2, 3]], np.int32)}
        if calculations_pb2.STRUCTURE_FACTOR_KIND_F_MODEL not in request.kinds:
            arrays["f_calc"] = np.array([1 + 2j, -3j])
        summary = calculations_pb2.StructureFactorsSummary(reflections=2, k_overall=1.5)
        if request.as_mtz:
            summary.mtz_bundle_id = "sha256:" + "1" * 64
        response = calculations_pb2.ComputeStructureFactorsResponse
        for chunk in chunks_of(arrays):
            yield response(chunk=chunk)
        yield response(summary=summary)

    async def ComputeMap(self, request, context):
        self.requests.append(request)
        await self._enter("ComputeMap", context)
        response = calculations_pb2.ComputeMapResponse
        yield response(progress=gradients_pb2.Progress(step="map"))
        for chunk in chunks_of({"map": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}):
            yield response(chunk=chunk)
        if not self.silent:
            yield response(summary=calculations_pb2.MapSummary(mean=0.5, sigma=2.0))

    async def StreamGradients(self, requests, context):
        await self._enter("StreamGradients", context)
        self.open_streams["StreamGradients"] += 1
        try:
            async for response in self._session(requests, context):
                yield response
        finally:
            self.open_streams["StreamGradients"] -= 1

    async def _session(self, requests, context):
        limit = self.break_session_after.pop(0) if self.break_session_after else None
        steps: list[int] = []
        self.steps.append(steps)
        assembler, step = TensorAssembler(1 << 30), gradients_pb2.SessionStep()
        async for request in requests:
            message = request.WhichOneof("message")
            if message == "open":
                self.attached.append(request.open.session_id)
                opened = gradients_pb2.SessionOpened(session_id="session-1", atoms=4)
                yield gradients_pb2.StreamGradientsResponse(opened=opened)
                continue
            if message == "close":
                self.closed_sessions += 1
                return
            if message == "step":
                step = request.step
                steps.append(step.step_id)
                if limit is not None and len(steps) > limit:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "worker lost")
                if not step.HasField("coordinates"):
                    continue
                sites = from_message(step.coordinates, max_bytes=1 << 30)
            elif finished := assembler.feed(request.chunk):
                sites = finished.array
            else:
                continue
            if not self.silent:
                for response in answers(step, sites):
                    yield response


def samples_of(sites: np.ndarray, target: int) -> list[gradients_pb2.SampleValue]:
    """Returns a value per sample; one with NaN is not finite."""
    samples = []
    for index, one in enumerate(sites if sites.ndim == 3 else sites[None]):
        finite = bool(np.isfinite(one).all())
        sample = gradients_pb2.SampleValue(
            sample=index,
            status=gradients_pb2.SAMPLE_STATUS_OK
            if finite
            else gradients_pb2.SAMPLE_STATUS_NON_FINITE,
        )
        if finite:
            sample.geometry.energy = float((one**2).sum())
            sample.geometry.gradient_norm = float(np.linalg.norm(2 * one))
            sample.geometry.terms.add(name="bond", energy=1.5, count=3)
            if target != gradients_pb2.TARGET_GEOMETRY:
                sample.xray.target = gradients_pb2.XRAY_TARGET_ML
                sample.xray.r_work, sample.xray.r_free = 0.184, 0.213
                sample.xray.reflections = 3437
                sample.combined.xray_weight = 2.0
        samples.append(sample)
    return samples


def answers(
    step: gradients_pb2.SessionStep, sites: np.ndarray
) -> Iterator[gradients_pb2.StreamGradientsResponse]:
    """Yields the answer to a step, in chunks where it is large. Sites of one atom are refused."""
    result = gradients_pb2.StepResult(step_id=step.step_id)
    if sites.shape[-2] == 1:
        result.error.CopyFrom(status_pb2.Status(code=3, message="4 atoms are expected, not 1"))
        yield gradients_pb2.StreamGradientsResponse(result=result)
        return
    result.samples.extend(samples_of(sites, gradients_pb2.TARGET_GEOMETRY))
    gradient = 2 * sites
    if gradient.nbytes <= INLINE_BYTES:
        result.gradients.append(to_message(gradient, "geometry_sites"))
        yield gradients_pb2.StreamGradientsResponse(result=result)
        return
    result.chunked.append("geometry_sites")
    yield gradients_pb2.StreamGradientsResponse(result=result)
    for chunk in to_chunks(gradient, to_spec(gradient, "geometry_sites")):
        yield gradients_pb2.StreamGradientsResponse(chunk=chunk)


class RegistryServer(registry_service_pb2_grpc.RegistryServiceServicer):
    """Three workers on pages of two."""

    async def ListAgents(self, request, context):
        names = [name for name in ("worker-1", "worker-2", "worker-3") if name > request.page_token]
        agents = [
            agent_pb2.Agent(
                agent_id=name,
                agent_type="geometry.worker",
                capabilities=[agent_pb2.Capability(name="geometry.gradients")],
                status=agent_pb2.AGENT_STATUS_ACTIVE,
                max_concurrent_tasks=1,
            )
            for name in names[:2]
        ]
        token = agents[-1].agent_id if len(names) > 2 else ""
        return agent_pb2.ListAgentsResponse(agents=agents, next_page_token=token)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty state directory and no settings from outside; returns the directory."""
    monkeypatch.delenv("BXMESH_ADDRESS", raising=False)
    monkeypatch.delenv("BXMESH_API_KEY", raising=False)
    monkeypatch.setenv("BXMESH_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[GeometryServer]:
    """The server on a unix socket; `address` says where."""
    geometry = GeometryServer()
    geometry.scratch = tmp_path
    geometry.address = f"unix:{tmp_path}/s"
    grpc_server = grpc.aio.server()
    geometry_service_pb2_grpc.add_GeometryServiceServicer_to_server(geometry, grpc_server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryServer(), grpc_server)
    health = HealthServicer()
    await health.set("bxmesh.geometry.v1.GeometryService", health_pb2.HealthCheckResponse.SERVING)
    await health.set("dependency:redis", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, grpc_server)
    grpc_server.add_insecure_port(geometry.address)
    await grpc_server.start()
    yield geometry
    await grpc_server.stop(None)


@pytest_asyncio.fixture
async def mesh(server: GeometryServer) -> AsyncIterator[AsyncMesh]:
    """A client of the server."""
    async with AsyncMesh(server.address, api_key="bxm_secret") as mesh:
        yield mesh
