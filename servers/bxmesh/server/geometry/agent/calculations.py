"""What a geometry worker does with the work it takes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextvars import copy_context
from datetime import timedelta
from typing import NamedTuple, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from bxmesh.geometry.v1 import bundle_pb2, geometry_work_pb2, gradients_pb2, model_pb2
from bxmesh.server.bundles import BundleStore
from bxmesh.server.errors import internal, invalid_argument, unimplemented
from bxmesh.server.geometry.agent.calculators import CALCULATORS
from bxmesh.server.geometry.agent.capabilities import (
    CALCULATIONS,
    CREATE_MODEL,
    GRADIENTS,
    MODEL,
)
from bxmesh.server.geometry.agent.evaluation import Array, Evaluation, gradient_dtype, stack
from bxmesh.server.geometry.agent.run import Calculator, Run
from bxmesh.server.geometry.agent.steps import Steps, UnobservedSteps
from bxmesh.server.geometry.agent.warm_models import WarmModels, engine_call
from bxmesh.server.geometry.conversions import atom_table, summary_message
from bxmesh.server.geometry.coordinates import load_coordinates
from bxmesh.server.geometry.engine import RestraintLibrary, as_samples
from bxmesh.server.geometry.inputs import named_bundles
from bxmesh.server.streams import Handler, WorkContext
from bxmesh.server.streams.queue import cancelled
from bxmesh.tensors import TensorError, from_message, to_buffer, to_spec

_MOST_LISTED_ATOMS = 50_000
_M = TypeVar("_M", bound=Message)
_T = TypeVar("_T")
IsOver = Callable[[int], bool]


class Commission(NamedTuple):
    """What a calculation is done for."""

    item_id: str
    """The work item."""
    identity: str
    """Who asked for it, and will hold the results."""
    lifetime: timedelta
    """How long these are kept."""


class Calculations:
    """The handlers for models and gradients. They compute in threads, one at a time."""

    def __init__(
        self,
        worker_id: str,
        models: WarmModels,
        store: BundleStore,
        library: RestraintLibrary,
        executor: Executor,
        *,
        result_lifetime: timedelta,
        max_batch_bytes: int,
    ) -> None:
        self._worker_id = worker_id
        self._models = models
        self._store = store
        self._library = library
        self._executor = executor
        self._result_lifetime = result_lifetime
        self._max_batch_bytes = max_batch_bytes

    @property
    def handlers(self) -> dict[str, Handler]:
        """The handlers by kind of work."""
        return {
            CREATE_MODEL: self.create_model,
            GRADIENTS: self.gradients,
            **dict.fromkeys(CALCULATIONS.values(), self.calculation),
        }

    async def in_thread(self, call: Callable[[], _T]) -> _T:
        """Runs a call in a thread, within the current trace."""
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: context.run(call)
        )

    async def create_model(self, context: WorkContext) -> geometry_work_pb2.CreateModelWorkResult:
        """Reads a model's inputs and says what is in them; keeps the model warm."""
        work = unpack(context.item.payload, geometry_work_pb2.CreateModelWork)
        steps = Steps(announcer(context, self._worker_id))
        return await self.in_thread(
            lambda: self._create_model(work, steps, self._commission(context))
        )

    def _commission(self, context: WorkContext) -> Commission:
        return Commission(context.item.item_id, context.item.identity, self._result_lifetime)

    def _create_model(
        self, work: geometry_work_pb2.CreateModelWork, steps: Steps, by: Commission
    ) -> geometry_work_pb2.CreateModelWorkResult:
        with self._models.held(MODEL, by.item_id, by.identity):
            model = self._models.get(work.spec, steps)
            summary = model.summary
            library = engine_call(self._library.describe) if not summary.unknown_residues else None
        result = geometry_work_pb2.CreateModelWorkResult(
            model=model_pb2.Model(
                model_id=work.model_id,
                spec=work.spec,
                summary=summary_message(summary, library.source if library else ""),
            )
        )
        if work.include_atoms and summary.atoms <= _MOST_LISTED_ATOMS:
            table = atom_table(model.atoms, model.atom_mask)
            bundle, _ = self._store.put(
                table.SerializeToString(),
                bundle_pb2.BUNDLE_KIND_MODEL,
                media_type="application/x-protobuf; type=bxmesh.geometry.v1.AtomTable",
                derived_from=(work.spec.macromolecule,),
                lifetime=self._result_lifetime,
                durable=False,
            )
            result.atoms_bundle_id = bundle.bundle_id
        return result

    async def gradients(self, context: WorkContext) -> geometry_work_pb2.GradientsWorkResult:
        """Computes a share of a batch."""
        work = unpack(context.item.payload, geometry_work_pb2.GradientsWork)
        steps = Steps(announcer(context, self._worker_id))
        return await self.in_thread(
            lambda: self.compute(
                work,
                steps,
                lambda done: context.cancelled,
                self._commission(context),
            )
        )

    async def calculation(self, context: WorkContext) -> geometry_work_pb2.CalculationWorkResult:
        """Does a calculation that has one answer."""
        work = unpack(context.item.payload, geometry_work_pb2.CalculationWork)
        steps = Steps(announcer(context, self._worker_id))
        tell = teller(context)
        return await self.in_thread(
            lambda: self.calculate(
                work,
                steps,
                tell,
                lambda: context.cancelled,
                self._commission(context),
            )
        )

    def calculate(
        self,
        work: geometry_work_pb2.CalculationWork,
        steps: Steps,
        tell: Callable[[Message], None],
        is_over: Callable[[], bool],
        by: Commission,
    ) -> geometry_work_pb2.CalculationWorkResult:
        """Does a calculation in the calling thread and stores its tensors."""
        request, calculator = _calculator(work.request)
        given: gradients_pb2.Coordinates | None = getattr(request, "coordinates", None)
        coordinates = None if given is None else self._coordinates(given)
        sources = [work.model_id, *named_bundles(request)]

        def keep(content: bytes, kind: bundle_pb2.BundleKind.ValueType, media_type: str) -> str:
            bundle, _ = self._store.put(
                content,
                kind,
                media_type=media_type,
                derived_from=sources,
                holder=bundle_pb2.BundleHolder(identity_id=by.identity),
                lifetime=by.lifetime,
                durable=False,
            )
            return bundle.bundle_id

        kind = CALCULATIONS[type(request)]
        with self._models.held(kind, by.item_id, by.identity):
            model = self._models.get(work.spec, steps)
            if coordinates is not None:
                coordinates = _one_sample(coordinates, len(model.atoms))
            summary, arrays = calculator(
                Run(
                    model,
                    request,
                    coordinates,
                    steps,
                    tell,
                    is_over,
                    self._models.give_way,
                    self._store.read,
                    keep,
                )
            )
            result = geometry_work_pb2.CalculationWorkResult()
            result.summary.Pack(summary)
            if arrays:
                with steps.step("store"):
                    result.bundle_id = self._store_arrays(arrays, tuple(sources), by)
                result.tensors.extend(to_spec(array, name) for name, array in arrays.items())
            result.step_times.extend(steps.times)
        return result

    def compute(
        self,
        work: geometry_work_pb2.GradientsWork,
        steps: Steps,
        is_over: IsOver,
        by: Commission,
    ) -> geometry_work_pb2.GradientsWorkResult:
        """Computes samples in the calling thread and stores their gradients.

        Before each part `is_over` is asked, with the number done, whether to give up.
        """
        coordinates = self._coordinates(work.coordinates)
        if coordinates is not None and coordinates.ndim == 3:
            coordinates = coordinates[work.sample_start : work.sample_stop]
        # Held for the whole share, short as it is, and while the result is stored too: a thread
        # that wants the interpreter while another one is in cctbx waits a whole evaluation each time.
        with self._models.held(GRADIENTS, by.item_id, by.identity):
            evaluation = Evaluation(self._models.get(work.spec, steps), work.options)
            evaluation.prepare(steps)
            with steps.step("gradients"):
                values, gradients = self._evaluate(work, evaluation, coordinates, steps, is_over)
            with steps.step("store"):
                dtype = gradient_dtype(
                    work.options, None if coordinates is None else coordinates.dtype
                )
                arrays = stack(evaluation, gradients, len(values), dtype)
                sources = filter(None, (work.model_id, work.coordinates.bundle_id))
                bundle_id = self._store_arrays(arrays, tuple(sources), by)
        specs = [
            to_spec(arrays[name], name, unit) for name, (_, unit) in evaluation.tensors.items()
        ]
        return geometry_work_pb2.GradientsWorkResult(
            samples=values,
            bundle_id=bundle_id,
            tensors=specs,
            step_times=steps.times,
            engine=evaluation.engine,
        )

    def _evaluate(
        self,
        work: geometry_work_pb2.GradientsWork,
        evaluation: Evaluation,
        coordinates: Array | None,
        steps: Steps,
        is_over: IsOver,
    ) -> tuple[list[gradients_pb2.SampleValue], list[dict[str, Array]]]:
        if coordinates is None:
            results = evaluation.evaluate_batch(None, steps)
        else:
            atoms = len(evaluation.model.atoms)
            samples = engine_call(lambda: as_samples(coordinates, atoms))
            # In a batch only the whole is timed: a step costs as much as some of the samples.
            inner = steps if len(samples) == 1 else UnobservedSteps()
            results = []
            for done in range(0, len(samples), evaluation.batch):
                if is_over(done):
                    raise cancelled()
                part = samples[done : done + evaluation.batch]
                results.extend(evaluation.evaluate_batch(part, inner))
        for number, (value, _) in enumerate(results, start=work.sample_start):
            value.sample = number
        values, gradients = [value for value, _ in results], [sample for _, sample in results]
        return values, gradients

    def _coordinates(self, given: gradients_pb2.Coordinates) -> Array | None:
        """The coordinates, [N, 3] or [samples, N, 3]; None for the model's own."""
        source = given.WhichOneof("source")
        if source is None:
            return None
        if source == "tensor":
            try:
                array = from_message(given.tensor, max_bytes=self._max_batch_bytes)
            except TensorError as error:
                raise invalid_argument("coordinates", str(error), reason=error.reason) from error
        else:
            array = load_coordinates(self._store, given.bundle_id)
        return array

    def _store_arrays(
        self,
        arrays: Mapping[str, Array],
        sources: tuple[str, ...],
        by: Commission,
    ) -> str:
        with self._store.writer(
            bundle_pb2.BUNDLE_KIND_GRADIENTS,
            media_type="application/octet-stream",
            derived_from=sources,
            holder=bundle_pb2.BundleHolder(identity_id=by.identity),
            lifetime=by.lifetime,
            durable=False,
        ) as writer:
            for array in arrays.values():
                writer.write(to_buffer(array))
            bundle, _ = writer.commit()
        return bundle.bundle_id


def unpack(payload: AnyMessage, kind: type[_M]) -> _M:
    """The payload of a work item; raises MeshError INTERNAL for another kind of message."""
    message = kind()
    if not payload.Unpack(message):
        raise internal(f"The work holds {payload.type_url!r}.", reason="UNREADABLE")
    return message


def _calculator(packed: AnyMessage) -> tuple[Message, Calculator]:
    for kind, calculator in CALCULATORS.items():
        if packed.TypeName() == kind.DESCRIPTOR.full_name:
            return unpack(packed, kind), calculator
    name = packed.TypeName().rpartition(".")[2].removesuffix("Request")
    raise unimplemented(f"This worker does no {name}.", reason="METHOD_NOT_OFFERED")


def _one_sample(coordinates: Array, atoms: int) -> Array:
    samples: Array = engine_call(lambda: as_samples(coordinates, atoms))
    if len(samples) != 1:
        raise invalid_argument(
            "coordinates", f"{len(samples)} samples are given; one is taken.", reason="ONE_SAMPLE"
        )
    one: Array = samples[0]
    return one


def teller(context: WorkContext) -> Callable[[Message], None]:
    """Sends messages to whoever waits for the item, from any thread."""
    loop = asyncio.get_running_loop()

    async def send(message: Message) -> None:
        with contextlib.suppress(Exception):
            await context.progress(message)

    def tell(message: Message) -> None:
        asyncio.run_coroutine_threadsafe(send(message), loop)

    return tell


def announcer(context: WorkContext, worker_id: str) -> Callable[[str], None]:
    """Tells whoever waits for the item which step begins, from any thread."""
    tell = teller(context)
    return lambda step: tell(gradients_pb2.Progress(step=step, worker_id=worker_id))
