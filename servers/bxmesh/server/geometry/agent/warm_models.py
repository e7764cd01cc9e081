"""The models that a worker keeps built, least recently used first to go."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

from bxmesh.geometry.v1 import model_pb2
from bxmesh.server.bundles import BundleStore
from bxmesh.server.errors import invalid_argument
from bxmesh.server.geometry.agent.capabilities import SESSION
from bxmesh.server.geometry.agent.steps import Steps
from bxmesh.server.geometry.conversions import error_of, model_options
from bxmesh.server.geometry.engine import EngineError, ModelInputs, RestraintLibrary, SampleError
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.inputs import naming
from bxmesh.server.occupation import Occupation

_BUILD_SECONDS = 30.0
_GIVE_WAY_SECONDS = 1e-4
_BUILD_SECONDS_PER_MEGABYTE = 10.0


class WarmModels:
    """Builds models on demand and keeps them within bounds.

    cctbx is not for several threads at a time: whoever touches a model holds `lock`.
    """

    def __init__(
        self,
        store: BundleStore,
        library: RestraintLibrary,
        occupation: Occupation,
        *,
        most_models: int,
        most_bytes: int,
        most_atoms: int,
        most_seconds: float,
    ) -> None:
        self.lock = threading.RLock()
        self._store = store
        self._library = library
        self._occupation = occupation
        self._most_models = most_models
        self._most_bytes = most_bytes
        self._most_atoms = most_atoms
        self._most_seconds = most_seconds
        self._models: OrderedDict[str, BuiltModel] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    def __contains__(self, model_id: str) -> bool:
        return model_id in self._models

    def warm_up(self) -> None:
        """Loads what every build needs, before the first request."""
        with self.lock:
            self._library.load()
            _freeze()

    @contextlib.contextmanager
    def held(self, capability: str, item_id: str, identity_id: str = "") -> Iterator[None]:
        """Holds `lock` for a piece of work, which ends the process when it takes far too long.

        Nothing else interrupts cctbx. The work is then a vanished worker's: it is tried again a few
        times, and given up. The parent process sees what is under way, and has limits of its own.
        """
        with self.lock, self._occupation.at(capability, item_id, identity_id):
            _limit(self._most_seconds)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def stepping(self, session_id: str, identity_id: str) -> Iterator[None]:
        """Holds `lock` for a step of a session, likewise but for the end of the process."""
        with self.lock, self._occupation.at(SESSION, session_id, identity_id):
            yield

    def give_way(self) -> None:
        """Lets whoever waits have the engine; within `held`, whose time begins anew."""
        faulthandler.cancel_dump_traceback_later()
        with self._occupation.away():
            self.lock.release()
            try:
                # Without this the thread would mostly take it again before another wakes up.
                time.sleep(_GIVE_WAY_SECONDS)
            finally:
                self.lock.acquire()
        _limit(self._most_seconds)

    def get(self, spec: model_pb2.ModelSpec, steps: Steps) -> BuiltModel:
        """The built model of a spec; call it, and use what it returns, while holding `lock`.

        Raises MeshError for inputs that are gone or cannot be read.
        """
        key = hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()
        model = self._models.get(key)
        if model is not None:
            self._models.move_to_end(key)
            return model
        model = self._build(spec, steps)
        self._models[key] = model
        self._evict()
        _freeze()
        return model

    def _build(self, spec: model_pb2.ModelSpec, steps: Steps) -> BuiltModel:
        with steps.step("read_bundles"):
            inputs = ModelInputs(
                macromolecule=self._read(spec.macromolecule, "macromolecule"),
                reflections=(
                    self._read(spec.reflections, "reflections") if spec.reflections else None
                ),
                restraints=tuple(
                    self._read(bundle_id, "restraints") for bundle_id in spec.restraints
                ),
                options=model_options(spec.options),
            )
        size = len(inputs.macromolecule) + len(inputs.reflections or b"")
        size += sum(map(len, inputs.restraints))
        _limit(_BUILD_SECONDS + size / 1e6 * _BUILD_SECONDS_PER_MEGABYTE)
        model = engine_call(
            lambda: build(inputs, self._library, steps.step, most_atoms=self._most_atoms)
        )
        _limit(self._most_seconds)
        return model

    def _read(self, bundle_id: str, name: str) -> bytes:
        with naming(name, bundle_id):
            return self._store.read(bundle_id)

    def _evict(self) -> None:
        while len(self._models) > 1 and (
            len(self._models) > self._most_models
            or sum(model.nbytes_estimate for model in self._models.values()) > self._most_bytes
        ):
            self._models.popitem(last=False)


_T = TypeVar("_T")


def engine_call(call: Callable[[], _T]) -> _T:
    """Calls the engine and gives its errors the caller's form."""
    try:
        return call()
    except EngineError as error:
        raise error_of(error) from error


def one_sample_call(call: Callable[[], _T]) -> _T:
    """Calls the engine where its one set of coordinates is all there is: a bad one is an error."""
    try:
        return engine_call(call)
    except SampleError as error:
        raise invalid_argument(
            "coordinates", error.message, reason=f"SAMPLE_{error.status.name}"
        ) from error


def _limit(seconds: float) -> None:
    # Its thread needs no interpreter, which cctbx may not give away for hours.
    faulthandler.dump_traceback_later(seconds, exit=True)


def _freeze() -> None:
    # Collections of a large heap cost a worker 100 ms now and then; what is long-lived leaves the heap
    # that is looked through. Evicted models are garbage in cycles, so it is looked through once here.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
