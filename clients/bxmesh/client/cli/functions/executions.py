"""The commands that execute functions and look at what became of it."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import click

from bxmesh.client.agents.retry import RetryPolicy
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.functions.options import harmless, limiting, size
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import CONTENT, LABEL, age, as_json, moment, print_json, shown
from bxmesh.client.functions import ExecuteOptions, Execution, FunctionLimits
from bxmesh.client.sync import Mesh

__all__ = ["cancel", "list_executions", "run", "show_execution", "stats"]

_STATES = ("pending", "running", "completed", "failed", "cancelled", "limit_exceeded")


@click.command()
@click.argument("name")
@click.argument("pairs", type=LABEL, nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--input", "given", type=CONTENT, help="All arguments: JSON, @FILE, or - for stdin.")
@click.option("--version", default="", help="A version, digest or alias; the latest.")
@click.option("--durable", is_flag=True, help="It survives a restart, and is tried again.")
@click.option("--attempts", type=click.IntRange(1, 100), help="How often, when it is durable.")
@click.option("--parent", "parent_task_id", default="", help="The task on whose behalf.")
@click.option("--detach", is_flag=True, help="Do not wait for its end (durable only).")
@limiting
@as_json
@connecting
def run(
    where: Where,
    name: str,
    pairs: tuple[tuple[str, str], ...],
    given: Any,
    version: str,
    durable: bool,
    attempts: int | None,
    parent_task_id: str,
    detach: bool,
    limits: FunctionLimits | None,
    as_json: bool,
) -> None:
    """Call a function and print its value; what it prints goes to stderr.

    A VALUE is JSON, or text where it is none. The exit code is 1 unless it is completed. An interrupt
    cancels it, unless it is durable.
    """
    if pairs and given is not None and not isinstance(given, dict):
        raise click.UsageError("--input must be an object, for NAME=VALUE to go into it.")
    arguments = given
    if pairs or given is None:
        arguments = {**(given or {}), **{name: _value(text) for name, text in pairs}}
    options = ExecuteOptions(
        version=version,
        limits=limits,
        durable=durable,
        retry=RetryPolicy(max_attempts=attempts) if attempts else None,
        parent_task_id=parent_task_id,
    )
    with tracing("functions run"), where.connect() as mesh:
        if detach:
            execution = mesh.functions.execute(name, arguments, detach=True, **options)
        else:
            execution = _followed(mesh, name, arguments, options)
        if as_json:
            print_json(execution)
        elif detach:
            click.echo(execution.execution_id)
        if not detach:
            value = execution.value
            if not as_json:
                click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _followed(mesh: Mesh, name: str, arguments: Any, options: ExecuteOptions) -> Execution:
    execution: Execution | None = None
    try:
        for event in mesh.functions.stream(name, arguments, **options):
            execution = event.execution or execution
            if event.kind == "printed":
                click.echo(harmless(event.printed), nl=False, err=True)
            elif event.kind == "progress":
                click.echo(f"progress {shown(event.progress)}", err=True)
    except KeyboardInterrupt:
        if execution and options.get("durable"):
            click.echo(
                f"\n{execution.execution_id} goes on; see "
                f"`bxmesh functions execution {execution.execution_id}`.",
                err=True,
            )
        raise
    assert execution is not None, "a stream ends with its execution"
    return execution


@click.command("executions")
@click.argument("name", required=False, default="")
@click.option("--version", default="", help="Of this version.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Its state; repeatable."
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@as_json
@connecting
def list_executions(
    where: Where, name: str, version: str, states: Any, limit: int, as_json: bool
) -> None:
    """List executions, of one function or all, the newest first."""
    with tracing("functions executions"), where.connect() as mesh:
        pages = mesh.functions.executions(
            name, version=version, states=states, page_size=min(limit + 1, 1000)
        )
        found = list(islice(pages, limit + 1))
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json(found)
        return
    show(
        ("execution", "function", "version", "state", "called", "took", "says"),
        [
            (
                execution.execution_id,
                execution.function_name,
                execution.function_version,
                execution.state.replace("_", " "),
                moment(execution.create_time),
                _took(execution),
                execution.error.message if execution.error else shown(execution.output),
            )
            for execution in found
        ],
    )
    if more:
        click.echo(f"There are more than {limit}; see --limit.", err=True)


def _took(execution: Execution) -> str:
    return "" if execution.duration is None else age(execution.duration)


@click.command("execution")
@click.argument("execution_id")
@as_json
@connecting
def show_execution(where: Where, execution_id: str, as_json: bool) -> None:
    """Describe an execution, with what it printed and returned."""
    with tracing("functions execution"), where.connect() as mesh:
        execution = mesh.functions.execution(execution_id)
    if as_json:
        print_json(execution)
        return
    error = execution.error
    facts(
        [
            ("execution", execution.execution_id),
            ("function", f"{execution.function_name} {execution.function_version}"),
            ("state", execution.state.replace("_", " ")),
            ("error", f"{error.reason}: {error.message}" if error else ""),
            ("attempts", f"{execution.attempts}"),
            ("owner", execution.owner),
            ("called", moment(execution.create_time)),
            ("began", moment(execution.start_time)),
            ("ended", moment(execution.end_time)),
            ("took", _took(execution)),
            ("computed", age(execution.cpu_time) if execution.cpu_time else ""),
            ("memory", size(execution.peak_memory) if execution.peak_memory else ""),
        ]
    )
    if execution.printed:
        click.echo(f"\nprinted\n{harmless(execution.printed).rstrip()}")
    if execution.state == "completed":
        click.echo(f"\nreturned\n{json.dumps(execution.output, indent=2, ensure_ascii=False)}")


@click.command()
@click.argument("execution_ids", nargs=-1, required=True)
@as_json
@connecting
def cancel(where: Where, execution_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel executions. One that has ended is left as it is."""
    with tracing("functions cancel"), where.connect() as mesh:
        for execution_id in execution_ids:
            execution = mesh.functions.cancel(execution_id)
            if as_json:
                print_json(execution)
            else:
                click.echo(f"{execution_id} {execution.state.replace('_', ' ')}")


@click.command()
@click.argument("name")
@click.option("--version", default="", help="Of this version, digest or alias; of all.")
@as_json
@connecting
def stats(where: Where, name: str, version: str, as_json: bool) -> None:
    """Count the executions of a function that are kept, and their times."""
    with tracing("functions stats"), where.connect() as mesh:
        figures = mesh.functions.stats(name, version)
    if as_json:
        print_json(figures)
        return
    others = figures.executions - figures.completed - figures.limit_exceeded
    facts(
        [
            ("ended", f"{figures.executions}"),
            ("completed", f"{figures.completed}"),
            ("over a limit", f"{figures.limit_exceeded}"),
            ("others", f"{others}"),
            ("half within", age(figures.duration_p50)),
            ("95% within", age(figures.duration_p95)),
            ("99% within", age(figures.duration_p99)),
            ("last ended", moment(figures.last_time)),
        ]
    )
