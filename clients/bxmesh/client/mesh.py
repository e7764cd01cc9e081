"""The mesh, for asyncio."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bxmesh.client.agents.calls import AgentCalls
from bxmesh.client.batches import BatchItem, Outcome, run_batch
from bxmesh.client.bundles import AsyncBundles, BundleKind
from bxmesh.client.calculation import Answer, calculate, compute_gradients
from bxmesh.client.chains import AsyncChains
from bxmesh.client.connection import Connection, Timeouts
from bxmesh.client.content import BUNDLE_ID
from bxmesh.client.conversations import AsyncConversations
from bxmesh.client.data_quality import DataReport
from bxmesh.client.definitions import AsyncDefinitions
from bxmesh.client.endpoint import resolve
from bxmesh.client.functions import AsyncFunctions
from bxmesh.client.gradients import Gradients, as_coordinates
from bxmesh.client.health import check_health
from bxmesh.client.jobs import AsyncJobs
from bxmesh.client.layouts import Atom37
from bxmesh.client.maps import MAP_KINDS, DensityMap, MapKind
from bxmesh.client.minimization import Minimization, MinimizationStep, OnStep
from bxmesh.client.models import (
    HYDROGENS,
    SCATTERING_TABLES,
    HydrogenPolicy,
    Model,
    ScatteringTable,
)
from bxmesh.client.options import ALGORITHMS, Algorithm, GradientOptions, to_message
from bxmesh.client.real_space import INTERPOLATIONS, Interpolation, RealSpaceGradients
from bxmesh.client.security import AsyncSecurity
from bxmesh.client.sessions import AsyncSession
from bxmesh.client.signatures import SignatureMode
from bxmesh.client.signatures import signing_key as load_signing_key
from bxmesh.client.structure_factors import (
    STRUCTURE_FACTOR_KINDS,
    StructureFactorKind,
    StructureFactors,
)
from bxmesh.client.trace import traced
from bxmesh.client.validation import Validation
from bxmesh.client.values import Progress
from bxmesh.geometry.v1 import calculations_pb2, gradients_pb2, model_pb2
from bxmesh.restraints import Restraints
from bxmesh.tensors import to_message as to_tensor

__all__ = ["AsyncMesh", "MeshOptions", "Source"]

Source = str | Path | bytes
"""A file's path, its bytes, or the name of a bundle."""

_INLINE_BYTES = 2 * 1024 * 1024


class MeshOptions(TypedDict, total=False):
    """What AsyncMesh is made with."""

    address: str | None
    """HOST:PORT or unix:PATH."""
    api_key: str | None
    """The key that says who the caller is."""
    tls: bool | None
    """Whether to use TLS."""
    root_certificates: bytes | str | Path | None
    """The certificates to trust (PEM)."""
    client_certificate: str | Path | None
    """The file of a certificate that says who the caller is (PEM), where servers ask for one."""
    client_key: str | Path | None
    """The file of its private key (PEM)."""
    state_dir: str | Path | None
    """The state directory of a mesh on this machine."""
    timeouts: Timeouts | None
    """How long calls may take."""
    retries: int
    """How often calls are repeated while the mesh is unavailable."""
    signing_key: str | Path | None
    """The file of the private key that signs messages, `BXMESH_SIGNING_KEY`; None signs nothing."""
    signatures: SignatureMode
    """What is asked of messages that come: `accept` verifies those that are signed, `require`
    refuses others, `ignore` looks at none."""


class AsyncMesh(AgentCalls):
    """A connection to the mesh.

    The address is the argument's, that of `BXMESH_ADDRESS`, the local server's or 127.0.0.1:50051;
    the key the argument's, that of `BXMESH_API_KEY` or the local admin key. Every method raises
    BxmeshError; calls are repeated `retries` times while the mesh is unavailable.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: bool | None = None,
        root_certificates: bytes | str | Path | None = None,
        client_certificate: str | Path | None = None,
        client_key: str | Path | None = None,
        state_dir: str | Path | None = None,
        timeouts: Timeouts | None = None,
        retries: int = 4,
        signing_key: str | Path | None = None,
        signatures: SignatureMode = "accept",
    ) -> None:
        endpoint = resolve(
            address,
            api_key=api_key,
            tls=tls,
            root_certificates=root_certificates,
            client_certificate=client_certificate,
            client_key=client_key,
            state_dir=state_dir,
        )
        self._connection = Connection(
            endpoint, timeouts or Timeouts(), retries, load_signing_key(signing_key), signatures
        )
        self.bundles = AsyncBundles(self._connection)
        """Bundles: upload, download, get, list, delete."""
        self.jobs = AsyncJobs(self._connection, self.bundles)
        """Jobs: create, follow, cancel, and read what came out."""
        self.functions = AsyncFunctions(self._connection)
        """Stored functions: create, execute, and look at what became of it."""
        self.chains = AsyncChains(self._connection)
        """Chains: start, follow, cancel, and look at how they ran."""
        self.conversations = AsyncConversations(self._connection)
        """Conversations: hold, follow, continue, and look for what was said."""
        self.definitions = AsyncDefinitions(self._connection)
        """Definitions of agents: create, change, start and stop them."""
        self.security = AsyncSecurity(self._connection)
        """Identities, keys, policies, violations and the audit log."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    @property
    def address(self) -> str:
        """Where the mesh is."""
        return self._connection.endpoint.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls under way are cancelled."""
        await self._connection.close()

    async def create_model(
        self,
        macromolecule: Source,
        reflections: Source | None = None,
        restraints: Sequence[Source] = (),
        *,
        hydrogens: HydrogenPolicy | None = None,
        scattering_table: ScatteringTable | None = None,
        data_labels: str = "",
        r_free_flags_label: str = "",
        generate_r_free_flags: bool = False,
        d_min: float = 0.0,
        d_max: float = 0.0,
        include_atoms: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> Model:
        """Makes a model of a macromolecule, optionally with reflections and restraint dictionaries.

        Inputs are uploaded unless they are names of bundles. Labels and limits (in angstrom) that
        are left out are found in the data. InvalidInput names the input that could not be read.
        """
        spec = model_pb2.ModelSpec(
            macromolecule=await self._bundle_id(macromolecule, "macromolecule"),
            restraints=[await self._bundle_id(source, "restraints") for source in restraints],
            options=model_pb2.ModelOptions(
                hydrogens=HYDROGENS.number(hydrogens),
                scattering_table=SCATTERING_TABLES.number(scattering_table),
                data_labels=data_labels,
                r_free_flags_label=r_free_flags_label,
                generate_r_free_flags=generate_r_free_flags,
                d_min=d_min,
                d_max=d_max,
            ),
        )
        if reflections is not None:
            spec.reflections = await self._bundle_id(reflections, "reflections")
        request = model_pb2.CreateModelRequest(
            request_id=uuid4().hex, spec=spec, include_atoms=include_atoms
        )
        connection = self._connection
        timeout = timeout or connection.timeouts.calculation
        response = await connection.unary(connection.geometry.CreateModel, request, timeout)
        return Model.from_message(response)

    async def gradients(
        self,
        model: Model | str,
        coordinates: ArrayLike | None = None,
        *,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
        **options: Unpack[GradientOptions],
    ) -> Gradients:
        """Computes energies and gradients at the model's coordinates or at given ones.

        Coordinates are float32 or float64, [N, 3] or [B, N, 3] in angstrom, of any size. A sample
        that cannot be computed has its own status and zero gradients.
        """
        with traced("gradients") as trace_id:
            request = gradients_pb2.ComputeGradientsRequest(
                request_id=uuid4().hex, model_id=_model_id(model), options=to_message(options)
            )
            if coordinates is not None:
                request.coordinates.CopyFrom(await self._coordinates(as_coordinates(coordinates)))
            timeout = timeout or self._connection.timeouts.calculation
            return await compute_gradients(
                self._connection, request, timeout, on_progress, trace_id
            )

    async def minimize(
        self,
        model: Model | str,
        coordinates: ArrayLike | None = None,
        *,
        max_evaluations: int = 0,
        macro_cycles: int = 0,
        gradient_tolerance: float = 0.0,
        on_step: OnStep | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
        **options: Unpack[GradientOptions],
    ) -> Minimization:
        """Minimizes a target from the model's coordinates, or from others, [N, 3] in angstrom.

        At most 500 evaluations in each of one round unless it is told otherwise; each round begins
        with X-ray scales of its own. It has converged when the root mean square gradient is below
        the tolerance, by default a thousandth of the first. Cancelling it loses what it has reached:
        a job keeps that.
        """
        with traced("minimize") as trace_id:
            request = calculations_pb2.MinimizeRequest(
                request_id=uuid4().hex,
                model_id=_model_id(model),
                options=to_message(options),
                max_evaluations=max_evaluations,
                macro_cycles=macro_cycles,
                gradient_tolerance=gradient_tolerance,
            )
            if coordinates is not None:
                request.coordinates.CopyFrom(await self._coordinates(as_coordinates(coordinates)))

            def tell(event: Any) -> None:
                if on_step is not None:
                    on_step(MinimizationStep.from_message(event))

            answer = await calculate(
                self._connection,
                self._connection.geometry.Minimize,
                request,
                timeout or self._connection.timeouts.calculation,
                on_progress=on_progress,
                on_event=tell,
                trace_id=trace_id,
            )
        return Minimization.from_message(answer.closing, answer.tensors["sites"])

    async def structure_factors(
        self,
        model: Model | str,
        coordinates: ArrayLike | None = None,
        *,
        kinds: Sequence[StructureFactorKind] = (),
        algorithm: Algorithm | None = None,
        d_min: float = 0.0,
        as_mtz: bool = False,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> StructureFactors:
        """Computes structure factors at the model's coordinates or at others, [N, 3] in angstrom.

        All kinds unless some are named; scales are determined at the coordinates. A model without
        reflections has F_calc alone, and needs `d_min`, its resolution in angstrom. `as_mtz` keeps
        them as a file too, whose bundle the answer names.
        """
        with traced("structure_factors") as trace_id:
            request = calculations_pb2.ComputeStructureFactorsRequest(
                request_id=uuid4().hex,
                model_id=_model_id(model),
                kinds=[STRUCTURE_FACTOR_KINDS.number(kind) for kind in kinds],
                algorithm=ALGORITHMS.number(algorithm),
                d_min=d_min,
                as_mtz=as_mtz,
            )
            answer = await self._calculated(
                self._connection.geometry.ComputeStructureFactors,
                request,
                coordinates,
                on_progress=on_progress,
                timeout=timeout,
                trace_id=trace_id,
            )
        return StructureFactors.from_message(answer.closing, answer.tensors)

    async def map(
        self,
        model: Model | str,
        kind: MapKind,
        coordinates: ArrayLike | None = None,
        *,
        resolution_factor: float = 0.0,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> DensityMap:
        """Computes a map with phases of the model's coordinates or of others, [N, 3] in angstrom.

        `resolution_factor` is how many grid points there are per high resolution limit, 2 to 10;
        4 unless it is given. Scales are determined at the coordinates.
        """
        with traced("map") as trace_id:
            request = calculations_pb2.ComputeMapRequest(
                request_id=uuid4().hex,
                model_id=_model_id(model),
                kind=MAP_KINDS.number(kind),
                resolution_factor=resolution_factor,
            )
            answer = await self._calculated(
                self._connection.geometry.ComputeMap,
                request,
                coordinates,
                on_progress=on_progress,
                timeout=timeout,
                trace_id=trace_id,
            )
        return DensityMap.from_message(answer.closing, answer.tensors["map"])

    async def real_space_gradients(
        self,
        model: Model | str,
        density: Source,
        coordinates: ArrayLike | None = None,
        *,
        interpolation: Interpolation | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> RealSpaceGradients:
        """Computes how much density of a map the atoms are in, and its gradients by coordinates.

        The map is a CCP4 or MRC file, or its bundle, over the whole unit cell of the model.
        """
        with traced("real_space_gradients") as trace_id:
            request = calculations_pb2.ComputeRealSpaceGradientsRequest(
                request_id=uuid4().hex,
                model_id=_model_id(model),
                map_bundle_id=await self._bundle_id(density, "map"),
                interpolation=INTERPOLATIONS.number(interpolation),
            )
            answer = await self._calculated(
                self._connection.geometry.ComputeRealSpaceGradients,
                request,
                coordinates,
                on_progress=on_progress,
                timeout=timeout,
                trace_id=trace_id,
            )
        return RealSpaceGradients(
            answer.closing.value, answer.tensors["gradients"], answer.tensors["density"]
        )

    async def validate(
        self,
        model: Model | str,
        coordinates: ArrayLike | None = None,
        *,
        html: str | Path | None = None,
        before: Validation | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> Validation:
        """Says how good a model is at its coordinates, or at others, [N, 3] in angstrom.

        Deviations from the restraints, the backbone, close contacts, and R factors where it has
        reflections; with `html` it also writes a page with plots to that file, which compares with
        the figures of the validation `before`. `compare` of bxmesh.client does so here.
        """
        with traced("validate"):
            request = calculations_pb2.ValidateModelRequest(
                request_id=uuid4().hex,
                model_id=_model_id(model),
                as_html=html is not None,
                before=before.figures if before else None,
            )
            if coordinates is not None:
                request.coordinates.CopyFrom(await self._coordinates(as_coordinates(coordinates)))
            connection = self._connection
            timeout = timeout or connection.timeouts.calculation
            answer = await connection.unary(connection.geometry.ValidateModel, request, timeout)
            if html is not None:
                await self.bundles.download(answer.html_bundle_id, html)
        return Validation.from_message(answer)

    async def restraints(
        self,
        model: Model | str,
        *,
        on_progress: Callable[[Progress], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> Restraints:
        """Returns the built restraints of a model, for evaluation on this machine without cctbx.

        Give them to `bxmesh.restraints.Evaluator`, or keep them with `save`. Raises RestraintsError
        when the mesh is newer than this client and has more to say than it understands.
        """
        with traced("restraints") as trace_id:
            request = calculations_pb2.ExportRestraintsRequest(
                request_id=uuid4().hex, model_id=_model_id(model)
            )
            answer = await self._calculated(
                self._connection.geometry.ExportRestraints,
                request,
                None,
                on_progress=on_progress,
                timeout=timeout,
                trace_id=trace_id,
            )
        return Restraints(answer.tensors)

    async def analyze_data(
        self,
        model: Model | str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> DataReport:
        """Says how good the reflections of a model are: completeness, Wilson B, twinning and the like.

        Raises FailedPrecondition for a model without reflections.
        """
        with traced("analyze_data"):
            request = calculations_pb2.AnalyzeDataRequest(
                request_id=uuid4().hex, model_id=_model_id(model)
            )
            connection = self._connection
            timeout = timeout or connection.timeouts.calculation
            answer = await connection.unary(connection.geometry.AnalyzeData, request, timeout)
        return DataReport.from_message(answer.report)

    async def batch(
        self, items: Iterable[BatchItem], results: Path, *, most_open: int = 64
    ) -> AsyncGenerator[Outcome, None]:
        """Does a calculation for each item as a job, at most so many at once; yields how they end.

        See `bxmesh.client.batches`: the file of results resumes what broke off.
        """
        async with aclosing(run_batch(self, items, results, most_open=most_open)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    def session(
        self,
        model: Model | str,
        *,
        window: int = 8,
        timeout: float | None = None,
        layout: Atom37 | None = None,
        **options: Unpack[GradientOptions],
    ) -> AsyncSession:
        """Returns a session on a warm worker: coordinates in, gradients out, step after step.

        Open it with `async with`. At most `window` steps are under way at once; the timeout, in
        seconds, is that of the opening and of each step. Coordinates and gradients are in the order
        of the model's file unless a layout is given.
        """
        timeout = timeout or self._connection.timeouts.calculation
        opening = gradients_pb2.OpenSession(
            model_id=_model_id(model),
            options=to_message(options),
            atom37=None if layout is None else layout.to_message(),
        )
        return AsyncSession(self._connection, opening, window=window, timeout=timeout)

    async def health(self) -> dict[str, str]:
        """Returns the state of each service and dependency: serving, not_serving or unknown."""
        return await check_health(self._connection)

    async def _bundle_id(self, source: Source, kind: BundleKind) -> str:
        if isinstance(source, str) and BUNDLE_ID.fullmatch(source):
            return source
        return (await self.bundles.upload(source, kind=kind)).bundle_id

    async def _calculated(
        self,
        method: Any,
        request: Any,
        coordinates: ArrayLike | None,
        *,
        on_progress: Callable[[Progress], object] | None,
        timeout: float | None,  # noqa: ASYNC109 - it becomes the call's deadline
        trace_id: str,
    ) -> Answer:
        if coordinates is not None:
            request.coordinates.CopyFrom(await self._coordinates(as_coordinates(coordinates)))
        return await calculate(
            self._connection,
            method,
            request,
            timeout or self._connection.timeouts.calculation,
            on_progress=on_progress,
            trace_id=trace_id,
        )

    async def _coordinates(self, array: NDArray[Any]) -> gradients_pb2.Coordinates:
        if array.nbytes <= _INLINE_BYTES:
            return gradients_pb2.Coordinates(tensor=to_tensor(array, "coordinates", "angstrom"))
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        bundle = await self.bundles.upload(
            buffer.getvalue(), kind="coordinates", name="coordinates.npy"
        )
        return gradients_pb2.Coordinates(bundle_id=bundle.bundle_id)


def _model_id(model: Model | str) -> str:
    return model.model_id if isinstance(model, Model) else model
