"""Batches: one calculation for each line of a manifest, as jobs, resumed where they broke off."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from google.protobuf.message import Message

from bxmesh.client.errors import BxmeshError, NotFound
from bxmesh.client.jobs import KINDS, Job
from bxmesh.client.names import invalid

if TYPE_CHECKING:
    from bxmesh.client.mesh import AsyncMesh

__all__ = ["BatchItem", "Outcome", "read_manifest", "run_batch"]

_MOST_OPEN = 64
_INPUTS = ("model", "reflections", "restraints")


@dataclass(frozen=True)
class BatchItem:
    """A line of a manifest."""

    model: str
    """A file, or the name of a bundle."""
    kind: str
    """What to compute: gradients, validation, minimization, …."""
    reflections: str | None = None
    """Likewise."""
    restraints: tuple[str, ...] = ()
    """Likewise."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the request, as in its JSON form."""
    model_options: Mapping[str, Any] = field(default_factory=dict)
    """What `AsyncMesh.create_model` takes besides."""
    name: str = ""
    """For people."""

    @property
    def inputs(self) -> str:
        """By what items of one model are known."""
        return json.dumps([self.model, self.reflections, self.restraints, self.model_options])

    @property
    def key(self) -> str:
        """By what the item is known in another run."""
        content = json.dumps([self.inputs, self.kind, self.options, self.name], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def request(self, model_id: str) -> Message:
        """Returns the request for a model. Raises InvalidInput for options that it does not have."""
        request = KINDS[self.kind]()
        try:
            json_format.ParseDict({**self.options, "modelId": model_id}, request)
        except json_format.ParseError as error:
            raise invalid("options", f"{self.name or self.model}: {error}") from error
        return request


@dataclass(frozen=True)
class Outcome:
    """How an item ended."""

    item: BatchItem
    job: Job | None
    """Its job; None when it was done in an earlier run, or there never was one."""
    state: str
    """succeeded, failed, cancelled, timed_out."""
    result_bundle_ids: tuple[str, ...]
    """The bundles it produced."""
    error: str
    """Why it failed."""


def read_manifest(lines: Iterable[str], kind: str | None = None) -> list[BatchItem]:
    """Returns the items of a manifest in JSON Lines; `kind` is that of lines without one.

    Each line is an object with model, kind, and what else `BatchItem` has. Raises InvalidInput that
    names the line.
    """
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            item = BatchItem(**{"kind": kind, **values})
        except (ValueError, TypeError, RecursionError) as error:
            raise invalid("manifest", f"line {number} is no item: {error}") from error
        if item.kind not in KINDS:
            raise invalid("manifest", f"line {number}: kind is none of {', '.join(KINDS)}")
        if not isinstance(item.model, str):
            raise invalid("manifest", f"line {number} names no model")
        item.request("sha256:" + "0" * 64)
        items.append(item)
    # One model after the other, so that its worker builds it once.
    return sorted(items, key=lambda item: item.inputs)


async def run_batch(
    mesh: AsyncMesh, items: Iterable[BatchItem], results: Path, *, most_open: int = _MOST_OPEN
) -> AsyncGenerator[Outcome, None]:
    """Yields how items end, as they do; what `results` says has ended is not done again.

    Of each item a line is added to `results` when it has its job, and when that has ended: a run
    that broke off goes on where it was. Raises OSError for a file of no use.
    """
    log = _Log(results)
    room = asyncio.Semaphore(most_open)
    models: dict[str, asyncio.Task[str]] = {}

    async def one(item: BatchItem) -> Outcome:
        known = log.known.get(item.key, {})
        if "state" in known:
            return _told(item, known)
        async with room:
            try:
                job = await _attached(mesh, known)
                if job is None:
                    if item.inputs not in models:
                        models[item.inputs] = asyncio.create_task(_model(mesh, item))
                    model_id = await models[item.inputs]
                    job = await mesh.jobs.create(item.request(model_id), request_id=item.key)
                    log.add(item, job_id=job.job_id)
                job = await mesh.jobs.wait(job.job_id)
            except BxmeshError as error:
                # Not in the log: another run tries it again.
                return Outcome(item, None, "failed", (), str(error))
        reason = str(job.error) if job.error else ""
        log.add(
            item,
            job_id=job.job_id,
            state=job.state,
            result_bundle_ids=job.result_bundle_ids,
            error=reason,
        )
        return Outcome(item, job, job.state, job.result_bundle_ids, reason)

    running = [asyncio.create_task(one(item)) for item in items]
    try:
        for ended in asyncio.as_completed(running):
            yield await ended
    finally:
        for task in (*running, *models.values()):
            task.cancel()
        await asyncio.gather(*running, *models.values(), return_exceptions=True)


async def _attached(mesh: AsyncMesh, known: Mapping[str, Any]) -> Job | None:
    """The job of an earlier run; None when there is none, or no longer."""
    if "job_id" not in known:
        return None
    try:
        return await mesh.jobs.get(known["job_id"])
    except NotFound:
        return None


async def _model(mesh: AsyncMesh, item: BatchItem) -> str:
    model = await mesh.create_model(
        item.model, item.reflections, item.restraints, **item.model_options
    )
    return model.model_id


def _told(item: BatchItem, known: Mapping[str, Any]) -> Outcome:
    return Outcome(
        item,
        None,
        str(known["state"]),
        tuple(known.get("result_bundle_ids", ())),
        str(known.get("error", "")),
    )


class _Log:
    """A file of JSON Lines, of which the last of each item counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known = {line["key"]: line for line in _lines(path)}

    def add(self, item: BatchItem, **values: Any) -> None:
        line = {"key": item.key, "name": item.name or item.model, "kind": item.kind, **values}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            # A run was killed while it wrote.
            continue
        if isinstance(values, dict) and "key" in values:
            yield values
