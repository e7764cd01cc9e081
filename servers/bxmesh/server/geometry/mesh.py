"""What the RPCs of the geometry service work with."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from bxmesh.geometry.v1 import gradients_pb2, model_pb2
from bxmesh.server.bundles import BundleStore
from bxmesh.server.errors import MeshError, internal
from bxmesh.server.geometry.coordinates import handed_over
from bxmesh.server.geometry.inputs import model_spec
from bxmesh.server.geometry.routing import Router
from bxmesh.server.geometry.session_record import SessionRecords
from bxmesh.server.geometry.sharing import holder, seen_by, seen_by_caller
from bxmesh.server.interceptors import current_identity
from bxmesh.server.security.events import IGNORED, SecurityEvents
from bxmesh.server.security.quotas import UNLIMITED, Quotas
from bxmesh.server.settings import Settings
from bxmesh.server.streams import Submission, WorkClient, WorkQueue
from bxmesh.server.tasks import Tasks
from bxmesh.work.v1 import work_pb2

_M = TypeVar("_M", bound=Message)
_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class GeometryMesh:
    """The store, the queue and the workers, as the geometry service sees them."""

    settings: Settings
    store: BundleStore
    queue: WorkQueue
    client: WorkClient
    router: Router
    sessions: SessionRecords
    tasks: Tasks
    security: SecurityEvents = IGNORED
    """What is told of bundles that are deleted."""
    quotas: Quotas = UNLIMITED
    """How many bytes of bundles identities may hold."""

    @property
    def result_lifetime(self) -> timedelta:
        """How long computed results are kept."""
        return timedelta(seconds=self.settings.result_lifetime)

    def deadline(self, context: grpc.aio.ServicerContext[Any, Any]) -> float:
        """When the caller stops waiting, in Unix seconds."""
        remaining = context.time_remaining()
        limit = self.settings.calculation_timeout
        return time.time() + (limit if remaining is None else min(limit, remaining))

    async def events(
        self, submission: Submission, spec: model_pb2.ModelSpec, deadline: float
    ) -> AsyncGenerator[work_pb2.WorkEvent, None]:
        """The events of a submission until its outcome.

        Raises MeshError UNAVAILABLE when no worker is left to do it, DEADLINE_EXCEEDED after the
        deadline in Unix seconds.
        """
        ends = asyncio.get_running_loop().time() + deadline - time.time()
        async with contextlib.aclosing(submission.events(ends)) as events:
            while True:
                following = asyncio.ensure_future(anext(events, None))
                try:
                    while not (await asyncio.wait({following}, timeout=_LOOK_SECONDS))[0]:
                        await self._require_workers(spec)
                    event = following.result()
                finally:
                    if not following.done():
                        following.cancel()
                        await asyncio.wait({following})
                if event is None:
                    return
                yield event

    async def _require_workers(self, spec: model_pb2.ModelSpec) -> None:
        try:
            await self.router.workers(routing_key(spec))
        except MeshError as error:
            # Redis being away for a moment ends no wait: the work is safe there.
            if error.reason == "NO_WORKERS":
                raise

    async def outcome(
        self, submission: Submission, spec: model_pb2.ModelSpec, deadline: float
    ) -> work_pb2.WorkOutcome:
        """The outcome of a submission, without the progress; raises as `events` does."""
        async with contextlib.aclosing(self.events(submission, spec, deadline)) as events:
            async for event in events:
                if event.WhichOneof("event") == "outcome":
                    return event.outcome
        raise RuntimeError("the events of a submission end with its outcome")

    async def coordinates(
        self, given: gradients_pb2.Coordinates, lifetime: timedelta | None = None
    ) -> tuple[gradients_pb2.Coordinates, tuple[int, ...]]:
        """Coordinates of the caller as a worker gets them, and their shape; () for none.

        Those that go through the store are kept for `lifetime`, by default as long as results are.

        Raises MeshError for a bundle that the caller does not see, and for what is no such array.
        """
        if given.bundle_id:
            seen_by_caller(self.store, given.bundle_id)
        return await asyncio.to_thread(
            handed_over,
            self.store,
            given,
            max_bytes=self.settings.max_batch_bytes,
            holder=holder(current_identity()),
            lifetime=lifetime or self.result_lifetime,
        )

    def model(self, model_id: str) -> model_pb2.ModelSpec:
        """What a model that the caller sees is made of; raises MeshError NOT_FOUND."""
        identity = current_identity()
        return model_spec(self.store, model_id, lambda bundle: seen_by(identity, bundle))


def result_of(outcome: work_pb2.WorkOutcome, kind: type[_M]) -> _M:
    """The result in an outcome; raises the MeshError that it holds instead."""
    if outcome.status.code:
        raise MeshError.from_status(outcome.status)
    result = kind()
    if not outcome.result.Unpack(result):
        raise internal("A worker answered with something else than was asked for.")
    return result


def request_key(kind: str, request_id: str, work: Message) -> str:
    """By what a repeated request finds its answer; empty without an id."""
    # With the content, so that an id used again for something else never gets the first answer.
    if not request_id:
        return ""
    content = sha256(work.SerializeToString(deterministic=True)).hexdigest()
    return f"{caller()}:{kind}:{request_id}:{content}"


def caller() -> str:
    """The name of whoever calls."""
    return current_identity().id


def routing_key(spec: model_pb2.ModelSpec) -> str:
    """By what a model finds its worker: all that it is built from."""
    return sha256(spec.SerializeToString(deterministic=True)).hexdigest()
