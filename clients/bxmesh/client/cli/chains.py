"""`bxmesh chains`: run chains of functions, capabilities and agents."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

import click

from bxmesh.client.chains import Chain, ChainRun, ChainSource, StepRun
from bxmesh.client.cli.chain_progress import ChainLine, course, told
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import CONTENT, age, as_json, counted, moment, print_json, shown
from bxmesh.client.errors import from_status
from bxmesh.client.sync import Mesh

__all__ = ["chains"]

_STATES = ("pending", "running", "completed", "failed", "cancelled", "timed_out")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def chains() -> None:
    """Run chains of functions, capabilities and agents."""


@chains.command()
@click.argument("file", type=_FILE)
def check(file: Path) -> None:
    """Check the chain in a FILE without a mesh.

    Whether its functions and agents are there, and fit together, is seen when it starts.
    """
    chain = Chain.read(file).to_message()
    try:
        from bxmesh.server.chains.graph import ChainGraph
        from bxmesh.server.definitions.checks import MOST_DEPTH
        from bxmesh.server.errors import MeshError
    except ModuleNotFoundError:
        click.echo("It can be read; its graph and expressions need the server to be checked.")
        return
    try:
        ChainGraph.of(chain, max_depth=MOST_DEPTH)
    except MeshError as error:
        raise from_status(error.to_status()) from error
    click.echo(f"{counted(len(chain.steps), 'step')}, in an order and with expressions that can be")


def _starting(command: Callable[..., None]) -> Callable[..., None]:
    """Adds FILE and what a run begins with; the command gets `source` and `options`."""

    @click.argument("file", type=_FILE, required=False)
    @click.option("--definition", help="An active definition with a chain, instead of FILE.")
    @click.option("--input", "content", type=CONTENT, help="JSON, @FILE, or - for stdin; {}.")
    @click.option("--on-behalf-of", default="", help="The identity for which it is done.")
    @click.option("--parent", "parent_task_id", default="", help="The task on whose behalf.")
    @wraps(command)
    def call(
        *arguments: Any,
        file: Path | None,
        definition: str | None,
        content: Any,
        on_behalf_of: str,
        parent_task_id: str,
        **others: Any,
    ) -> None:
        source = file or definition
        if source is None or (file and definition):
            raise click.UsageError("Give either a FILE or --definition.")
        options = {
            "input": content,
            "on_behalf_of": on_behalf_of,
            "parent_task_id": parent_task_id,
        }
        command(*arguments, source=source, options=options, **others)

    return call


@chains.command()
@_starting
@click.option("--watch", is_flag=True, help="Follow it to its end.")
@as_json
@connecting
def start(
    where: Where, source: ChainSource, options: dict[str, Any], watch: bool, as_json: bool
) -> None:
    """Begin a run of the chain in FILE, in YAML or JSON, and print its name.

    With --watch the exit code is 1 unless it is completed.
    """
    with tracing("chains start"), where.connect() as mesh:
        run = mesh.chains.start(source, **options)
        if watch:
            if not as_json:
                click.echo(run.run_id)
            _follow(mesh, run.run_id, as_json)
        elif as_json:
            print_json(run)
        else:
            click.echo(run.run_id)


@chains.command("run")
@_starting
@as_json
@connecting
def run_chain(where: Where, source: ChainSource, options: dict[str, Any], as_json: bool) -> None:
    """Run the chain in FILE, show how it goes on stderr, and print its output as JSON.

    The exit code is 1 unless it is completed. An interrupt leaves it to go on.
    """
    with tracing("chains run"), where.connect() as mesh:
        run = mesh.chains.start(source, **options)
        try:
            with ChainLine() as line:
                for change in mesh.chains.watch(run.run_id):
                    line.show(change)
                    run = change.run or run
        except KeyboardInterrupt:
            click.echo(f"\n{run.run_id} goes on; see `bxmesh chains watch {run.run_id}`.", err=True)
            raise
        if as_json:
            print_json(run)
        value = run.value
        if not as_json:
            click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@chains.command("list")
@click.option("--definition", "definition_id", default="", help="Of this definition.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Its state; repeatable."
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@as_json
@connecting
def list_chains(where: Where, definition_id: str, states: Any, limit: int, as_json: bool) -> None:
    """List runs, the newest first."""
    with tracing("chains list"), where.connect() as mesh:
        pages = mesh.chains.list(
            definition_id=definition_id, states=states, page_size=min(limit + 1, 1000)
        )
        found = list(islice(pages, limit + 1))
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json(found)
        return
    show(
        ("run", "of", "state", "owner", "begun", "took", "says"),
        [
            (
                run.run_id,
                _of(run),
                run.state.replace("_", " "),
                run.owner,
                moment(run.create_time),
                "" if run.duration is None else age(run.duration),
                run.error.message if run.error else "",
            )
            for run in found
        ],
    )
    if more:
        click.echo(f"There are more than {limit}; see --limit.", err=True)


def _of(run: ChainRun) -> str:
    if run.definition_id:
        return f"{run.definition_id} {run.definition_version}"
    return counted(len(run.chain.steps), "step")


@chains.command("show")
@click.argument("run_id", metavar="RUN")
@as_json
@connecting
def show_chain(where: Where, run_id: str, as_json: bool) -> None:
    """Describe a run and its steps."""
    with tracing("chains show"), where.connect() as mesh:
        run = mesh.chains.get(run_id)
    if as_json:
        print_json(run)
        return
    facts(
        [
            ("run", run.run_id),
            ("of", _of(run)),
            ("state", run.state.replace("_", " ")),
            ("error", f"{run.error.reason}: {run.error.message}" if run.error else ""),
            ("owner", run.owner),
            ("begun", moment(run.create_time)),
            ("ended", moment(run.end_time)),
            ("took", "" if run.duration is None else age(run.duration)),
            ("trace", run.trace_id),
            ("input", shown(run.input)),
        ]
    )
    click.echo()
    show(
        ("step", "course", "says"),
        [(step.step_id, course(step), _says(step)) for step in run.steps],
    )
    if run.state == "completed":
        click.echo(f"\noutput\n{json.dumps(run.output, indent=2, ensure_ascii=False)}")


def _says(step: StepRun) -> str:
    if step.error:
        return step.error.message
    return shown(step.output) if step.state == "completed" else ""


@chains.command("watch")
@click.argument("run_id", metavar="RUN")
@as_json
@connecting
def watch_chain(where: Where, run_id: str, as_json: bool) -> None:
    """Follow a run to its end. Exit code 1 unless it is completed."""
    with tracing("chains watch"), where.connect() as mesh:
        _follow(mesh, run_id, as_json)


def _follow(mesh: Mesh, run_id: str, as_json: bool) -> None:
    state = ""
    for change in mesh.chains.watch(run_id):
        if as_json:
            print_json(change)
        else:
            click.echo("\n".join(told(change, first=not state)))
        state = change.run.state if change.run else state
    if state != "completed":
        sys.exit(1)


@chains.command()
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@as_json
@connecting
def cancel(where: Where, run_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel runs and what they are at. One that has ended is left as it is."""
    with tracing("chains cancel"), where.connect() as mesh:
        for run_id in run_ids:
            run = mesh.chains.cancel(run_id)
            if as_json:
                print_json(run)
            else:
                click.echo(f"{run_id} {run.state.replace('_', ' ')}")


@chains.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--format",
    "kind",
    type=click.Choice(("svg", "mermaid")),
    help="By default what the file's name says, or svg.",
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; stdout."
)
@connecting
def picture(where: Where, run_id: str, kind: str | None, output: Path | None) -> None:
    """Draw a run: its steps with their states, times and errors, and what waits for what."""
    from bxmesh.client.cli.chain_picture import mermaid, svg

    with tracing("chains picture"), where.connect() as mesh:
        message = mesh.chains.get(run_id).message
    if kind is None and output is not None and output.suffix in (".mmd", ".mermaid"):
        kind = "mermaid"
    text = mermaid(message) if kind == "mermaid" else svg(message)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
