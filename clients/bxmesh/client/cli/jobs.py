"""`bxmesh jobs`: calculations that go on without whoever asked for them."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from google.protobuf import json_format

from bxmesh.client.batches import BatchItem, read_manifest
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.inputs import Source
from bxmesh.client.cli.job_progress import JobLine
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import CONTENT, LABEL, as_json, moment, print_json
from bxmesh.client.errors import BxmeshError
from bxmesh.client.jobs import KINDS, Job
from bxmesh.client.sync import Mesh

__all__ = ["jobs"]

_STATES = ("pending", "running", "succeeded", "failed", "cancelled", "timed_out")
_kind = click.Choice(sorted(KINDS))


@click.group()
def jobs() -> None:
    """Start calculations that go on without you, and follow them."""


@jobs.command()
@click.argument("kind", type=_kind)
@click.argument("model", type=Source())
@click.option("--reflections", type=Source(), help="An MTZ file, or its bundle.")
@click.option("--restraints", type=Source(), multiple=True, help="A CIF; repeatable.")
@click.option("--options", type=CONTENT, help="Fields of the request: JSON, or @FILE.")
@click.option("--priority", type=click.Choice(["low", "medium", "high", "critical"]))
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds it may take.")
@click.option("--label", "labels", type=LABEL, multiple=True, help="NAME=VALUE; repeatable.")
@click.option("--wait", is_flag=True, help="Show its progress until it has ended.")
@as_json
@connecting
def submit(
    where: Where,
    kind: str,
    model: str,
    reflections: str | None,
    restraints: tuple[str, ...],
    options: Any,
    labels: tuple[tuple[str, str], ...],
    wait: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Start a calculation of a KIND for MODEL.

    With --wait the exit code is 1 unless it succeeds; an interrupt leaves the job to go on.
    """
    item = BatchItem(model, kind, reflections, restraints, options or {})
    with tracing("jobs submit"), where.connect() as mesh:
        made = mesh.create_model(model, reflections, restraints)
        job = mesh.jobs.create(item.request(made.model_id), labels=dict(labels), **chosen)
        if wait:
            try:
                job = _follow(mesh, job.job_id)
            except KeyboardInterrupt:
                click.echo(
                    f"\n{job.job_id} goes on; see `bxmesh jobs watch {job.job_id}`.", err=True
                )
                raise
    _end(job, as_json) if wait else click.echo(job.job_id)


@jobs.command("list")
@click.option("--state", type=click.Choice(_STATES), help="Only those.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@as_json
@connecting
def list_jobs(where: Where, state: Any, limit: int, as_json: bool) -> None:
    """List jobs, the newest first."""
    with tracing("jobs list"), where.connect() as mesh:
        found = list(islice(mesh.jobs.list(state=state), limit + 1))
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json([_plain(job) for job in found])
        return
    show(
        ("job", "kind", "state", "done", "owner", "made", "says"),
        [
            (
                job.job_id,
                job.kind,
                job.state.replace("_", " "),
                f"{job.fraction_done:.0%}",
                job.owner,
                moment(job.create_time),
                job.error.message if job.error else job.step,
            )
            for job in found
        ],
    )
    if more:
        click.echo(f"There are more than {limit}; see --limit.", err=True)


@jobs.command("show")
@click.argument("job_id")
@as_json
@connecting
def show_job(where: Where, job_id: str, as_json: bool) -> None:
    """Describe a job."""
    with tracing("jobs show"), where.connect() as mesh:
        job = mesh.jobs.get(job_id)
    if as_json:
        print_json(_plain(job))
        return
    facts(
        [
            ("job", job.job_id),
            ("kind", job.kind),
            ("state", job.state.replace("_", " ")),
            ("progress", f"{job.fraction_done:.0%} {job.step}".rstrip()),
            ("owner", job.owner),
            ("attempts", f"{job.attempts}"),
            ("labels", ", ".join(f"{name}={value}" for name, value in job.labels.items())),
            ("made", moment(job.create_time)),
            ("began", moment(job.start_time)),
            ("ended", moment(job.end_time)),
            ("results", "\n".join(job.result_bundle_ids)),
            ("error", f"{job.error.reason}: {job.error.message}" if job.error else ""),
        ]
    )


@jobs.command()
@click.argument("job_id")
@as_json
@connecting
def watch(where: Where, job_id: str, as_json: bool) -> None:
    """Follow a job to its end; the exit code is 1 unless it succeeds."""
    with tracing("jobs watch"), where.connect() as mesh:
        job = _follow(mesh, job_id)
    _end(job, as_json)


@jobs.command()
@click.argument("job_id")
@connecting
def cancel(where: Where, job_id: str) -> None:
    """Cancel a job; what a minimization has reached is kept."""
    with tracing("jobs cancel"), where.connect() as mesh:
        job = mesh.jobs.cancel(job_id)
    click.echo(f"{job_id} is {job.state.replace('_', ' ')}.", err=True)


@jobs.command()
@click.argument("job_id")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The directory to write to.",
)
@connecting
def download(where: Where, job_id: str, output: Path) -> None:
    """Write what came out of a job: tensors.npz, summary.json, and its files by their bundles."""
    output.mkdir(parents=True, exist_ok=True)
    with tracing("jobs download"), where.connect() as mesh:
        result = mesh.jobs.result(job_id)
        if result.tensors:
            arrays: dict[str, Any] = dict(result.tensors)
            np.savez(output / "tensors.npz", **arrays)
        (output / "summary.json").write_text(json_format.MessageToJson(result.summary))
        files = mesh.jobs.get(job_id).result_bundle_ids[bool(result.tensors) :]
        for bundle_id in files:
            mesh.bundles.download(bundle_id, output / bundle_id.removeprefix("sha256:")[:16])
    click.echo(f"{output} has it.", err=True)


@jobs.command()
@click.argument("manifest", type=click.File())
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file that says what has ended; the same file resumes a batch.",
)
@click.option("--kind", type=_kind, help="What to compute for lines that do not say it.")
@click.option("--at-once", type=click.IntRange(min=1), default=64, show_default=True)
@connecting
def batch(where: Where, manifest: Any, results: Path, kind: str | None, at_once: int) -> None:
    """Do a calculation for each line of MANIFEST, a file of JSON Lines.

    A line has model (a file or bundle), and may have kind, reflections, restraints, options (fields
    of the request), model_options and name. Jobs of one model go to the worker that has it. An
    interrupt leaves the jobs to go on; the same command picks them up. The exit code is 1 unless
    all succeed.
    """
    with tracing("jobs batch"):
        items = read_manifest(manifest, kind)
        with where.connect() as mesh:
            failed = _run(mesh, items, results, at_once)
    if failed:
        click.echo(f"{failed} of {len(items)} did not succeed; see {results}.", err=True)
        sys.exit(1)


def _run(mesh: Mesh, items: list[BatchItem], results: Path, at_once: int) -> int:
    failed = 0
    outcomes = mesh.batch(items, results, most_open=at_once)
    for number, outcome in enumerate(outcomes, start=1):
        ok = outcome.state == "succeeded"
        failed += not ok
        text = f"{number}/{len(items)} {outcome.item.name or outcome.item.model} {outcome.state}"
        click.echo(text if ok else f"{text}: {outcome.error}", err=True)
    return failed


def _follow(mesh: Mesh, job_id: str) -> Job:
    with JobLine() as line:
        for job in mesh.jobs.watch(job_id):
            line.show(job)
            if job.done:
                return job
    return mesh.jobs.get(job_id)


def _end(job: Job, as_json: bool) -> None:
    if as_json:
        print_json(_plain(job))
    elif job.state == "succeeded":
        click.echo(job.job_id)
        click.echo(f"Fetch it: bxmesh jobs download {job.job_id} --output DIR", err=True)
    else:
        error: BxmeshError | None = job.error
        reason = f": {error.message}" if error else ""
        click.echo(f"{job.job_id} {job.state.replace('_', ' ')}{reason}", err=True)
    if job.state != "succeeded":
        sys.exit(1)


def _plain(job: Job) -> Any:
    return json.loads(json_format.MessageToJson(job.message, preserving_proto_field_name=True))
