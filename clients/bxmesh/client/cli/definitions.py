"""`bxmesh definitions`: agents as data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.functions.options import harmless
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import LABEL, as_json, counted, moment, print_json
from bxmesh.client.definitions import Definition
from bxmesh.client.definitions.files import from_text, read, to_text
from bxmesh.client.sync import Mesh

__all__ = ["definitions"]

_limit = click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
_file = click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))


@click.group()
def definitions() -> None:
    """Write agents as data, and start and stop them; `bxmesh host` runs them."""


@definitions.command()
@_file
@click.option("--activate", is_flag=True, help="Have hosts run it at once.")
@as_json
@connecting
def create(where: Where, file: str, activate: bool, as_json: bool) -> None:
    """Store the definition in FILE, YAML or JSON (- is stdin), as a draft."""
    content = _content(file)
    with tracing("definitions create"), where.connect() as mesh:
        definition = mesh.definitions.create(content)
        if activate:
            definition = mesh.definitions.activate(definition.definition_id)
    _said(definition, as_json)


@definitions.command()
@_file
@click.option("--activate", is_flag=True, help="Have hosts run the new version at once.")
@click.option(
    "--expected-revision", type=click.IntRange(min=0), default=0, help="Change only this."
)
@as_json
@connecting
def update(where: Where, file: str, activate: bool, expected_revision: int, as_json: bool) -> None:
    """Make a new version, in which what FILE says differs from the newest (- is stdin).

    What the file does not name stays as it is; null empties a field.
    """
    content = _content(file)
    with tracing("definitions update"), where.connect() as mesh:
        definition = mesh.definitions.update(content, expected_revision=expected_revision)
        if activate:
            definition = mesh.definitions.activate(definition.definition_id)
    _said(definition, as_json)


def _content(file: str) -> dict[str, Any]:
    if file != "-":
        return read(Path(file))
    try:
        return from_text(sys.stdin.buffer.read().decode(), "stdin")
    except UnicodeDecodeError as error:
        raise click.UsageError("what is on stdin is not UTF-8 text") from error


def _said(definition: Definition, as_json: bool) -> None:
    if as_json:
        print_json(definition)
        return
    version = definition.active_version or definition.version
    click.echo(f"{definition.definition_id} {version} is {definition.state}")


@definitions.command("show")
@click.argument("definition_id")
@click.option("--version", type=click.IntRange(min=1), default=None, help="The newest.")
@click.option("--file", "as_file", is_flag=True, help="Print it as a file for `update`.")
@as_json
@connecting
def show_definition(
    where: Where, definition_id: str, version: int | None, as_file: bool, as_json: bool
) -> None:
    """Describe a definition."""
    with tracing("definitions show"), where.connect() as mesh:
        definition = mesh.definitions.get(definition_id, version or 0)
    if as_file:
        click.echo(to_text(definition.message), nl=False)
        return
    if as_json:
        print_json(definition)
        return
    limits, model = definition.limits, definition.model
    facts(
        [
            ("definition", definition.definition_id),
            ("name", definition.display_name),
            ("description", definition.description),
            ("version", _version(definition)),
            ("state", definition.state),
            ("behaviour", definition.behaviour),
            ("model", model.model if model else ""),
            ("server", model.base_url if model else ""),
            ("offers", ", ".join(definition.capabilities)),
            ("may call", ", ".join(one.function or one.capability for one in definition.tools)),
            ("replicas", f"{definition.replicas}"),
            ("timeout", f"{limits.timeout:g} s" if limits.timeout else ""),
            ("at a time", f"{limits.max_concurrent_tasks}"),
            ("tool calls", f"{limits.max_tool_calls}"),
            ("tokens", f"{limits.max_tokens or ''}"),
            ("depth", f"{definition.max_chain_depth}"),
            ("labels", ", ".join(f"{name}={value}" for name, value in definition.labels.items())),
            ("owner", definition.owner),
            ("changed", moment(definition.update_time)),
        ]
    )
    for rule in definition.rules:
        reply = f" → {rule.reply_type}" if rule.reply_type else ""
        facts(
            [("rule", f"{rule.message_type}: {rule.call.function or rule.call.capability}{reply}")]
        )
    if definition.chain is not None:
        click.echo(f"\nchain\n{harmless(definition.chain.to_yaml())}", nl=False)
    if definition.system_prompt:
        click.echo(f"\n{harmless(definition.system_prompt)}")


def _version(definition: Definition) -> str:
    active = definition.active_version
    return f"{definition.version}{f', {active} is active' if active else ''}"


@definitions.command("list")
@click.option(
    "--state", type=click.Choice(["draft", "active", "draining", "inactive"]), help="In this state."
)
@click.option("--capability", default="", help="Offers this.")
@click.option("--label", "labels", type=LABEL, multiple=True, help="NAME=VALUE; repeatable.")
@_limit
@as_json
@connecting
def list_definitions(
    where: Where,
    state: Any,
    capability: str,
    labels: tuple[tuple[str, str], ...],
    limit: int,
    as_json: bool,
) -> None:
    """List definitions in their newest versions."""
    with tracing("definitions list"), where.connect() as mesh:
        pages = mesh.definitions.list(
            state=state,
            capability=capability,
            labels=dict(labels),
            page_size=min(limit + 1, 1000),
        )
        _print_list(pages, limit, as_json)


@definitions.command()
@click.argument("definition_id")
@_limit
@as_json
@connecting
def versions(where: Where, definition_id: str, limit: int, as_json: bool) -> None:
    """List the versions of a definition, the newest first."""
    with tracing("definitions versions"), where.connect() as mesh:
        pages = mesh.definitions.versions(definition_id, page_size=min(limit + 1, 1000))
        _print_list(pages, limit, as_json)


def _print_list(pages: Iterator[Definition], limit: int, as_json: bool) -> None:
    found = list(islice(pages, limit + 1))
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json(found)
        return
    show(
        (
            "definition",
            "version",
            "state",
            "behaviour",
            "replicas",
            "owner",
            "changed",
            "description",
        ),
        [
            (
                one.definition_id,
                _version(one),
                one.state,
                one.behaviour,
                f"{one.replicas}",
                one.owner,
                moment(one.update_time),
                one.description,
            )
            for one in found
        ],
    )
    if more:
        click.echo(f"There are more than {limit}; see --limit.", err=True)


@definitions.command()
@click.argument("definition_id")
@click.option("--version", type=click.IntRange(min=1), default=None, help="The newest.")
@connecting
def activate(where: Where, definition_id: str, version: int | None) -> None:
    """Have hosts run a version, in the place of any other."""
    with tracing("definitions activate"), where.connect() as mesh:
        _said(mesh.definitions.activate(definition_id, version or 0), as_json=False)


def _ending(name: str, summary: str, call: Callable[[Mesh, str], Definition]) -> None:
    @definitions.command(name, help=summary)
    @click.argument("definition_id")
    @connecting
    def command(where: Where, definition_id: str) -> None:
        with tracing(f"definitions {name}"), where.connect() as mesh:
            definition = call(mesh, definition_id)
        click.echo(f"{definition_id} is {definition.state}")


_ending(
    "drain",
    "Let its agents finish what they have, and leave.",
    lambda mesh, one: mesh.definitions.drain(one),
)
_ending(
    "stop",
    "Stop its agents at once; what they are at goes back.",
    lambda mesh, one: mesh.definitions.stop(one),
)


@definitions.command()
@click.argument("definition_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connecting
def delete(where: Where, definition_id: str, yes: bool) -> None:
    """Delete a definition that is not active, with its versions."""
    with tracing("definitions delete"), where.connect() as mesh:
        if not yes:
            there = counted(sum(1 for _ in mesh.definitions.versions(definition_id)), "version")
            click.confirm(f"Delete {definition_id} with {there} for good?", abort=True, err=True)
        mesh.definitions.delete(definition_id)
    click.echo(f"deleted {definition_id}")
