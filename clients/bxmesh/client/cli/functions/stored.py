"""The commands that store functions and look at what is stored."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

import click

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.functions.options import harmless, limiting, size
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import CONTENT, LABEL, as_json, counted, moment, print_json
from bxmesh.client.functions import Function, FunctionLimits, FunctionOptions

__all__ = [
    "alias",
    "check",
    "create",
    "delete",
    "list_functions",
    "show_function",
    "versions",
]

_limit = click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
_version = click.option("--version", default="", help="A version, digest or alias; the latest.")


def _read(ctx: click.Context, param: click.Parameter, file: str | None) -> Any:
    """Reads the JSON in a file; for `callback`."""
    return None if file is None else CONTENT.convert(f"@{file}", param, ctx)


def _describing(command: Callable[..., None]) -> Callable[..., None]:
    """Adds FILE and what can be said about it; the command gets `code` and `options`."""

    @click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
    @click.option("--entry-point", default="", help="What is called; main.")
    @click.option("--description", help="For people and models.")
    @click.option(
        "--input-schema", metavar="FILE", callback=_read, help="JSON Schema of what it takes."
    )
    @click.option(
        "--output-schema", metavar="FILE", callback=_read, help="JSON Schema of what it answers."
    )
    @click.option("--import", "imports", multiple=True, help="What it may import; repeatable.")
    @click.option(
        "--host-function",
        "host_functions",
        multiple=True,
        help="What it may call of the mesh, such as mesh.request; repeatable.",
    )
    @click.option("--example", type=CONTENT, help="An input to try it on: JSON, or @FILE.")
    @click.option(
        "--container", "engine", flag_value="container", help="Full Python, where the server can."
    )
    @click.option("--version", help="Such as 1.4.0; the server counts on.")
    @click.option("--label", "labels", type=LABEL, multiple=True, help="NAME=VALUE; repeatable.")
    @click.option("--public", "visibility", flag_value="all", help="Everybody sees it.")
    @click.option("--team", "visibility", flag_value="team", help="Your team sees it.")
    @limiting
    @wraps(command)
    def call(
        *arguments: Any,
        file: str,
        entry_point: str,
        description: str | None,
        input_schema: Any,
        output_schema: Any,
        imports: tuple[str, ...],
        host_functions: tuple[str, ...],
        example: Any,
        engine: Any,
        version: str | None,
        labels: tuple[tuple[str, str], ...],
        visibility: Any,
        limits: FunctionLimits | None,
        **others: Any,
    ) -> None:
        options = FunctionOptions(
            entry_point=entry_point,
            description=description or "",
            input_schema=input_schema,
            output_schema=output_schema,
            limits=limits,
            imports=imports,
            host_functions=host_functions,
            example=example,
            engine=engine,
            visibility=visibility,
            labels=dict(labels),
            version=version or "",
        )
        command(*arguments, code=_code(file), options=options, **others)

    return call


def _code(file: str) -> str | Path:
    if file != "-":
        return Path(file)
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise click.UsageError("the code on stdin is not UTF-8 text") from error


@click.command()
@click.option("--name", required=True, help="Its name, such as geometry.score.")
@click.option("--alias", "aliases", multiple=True, help="A name of this version, too; repeatable.")
@_describing
@as_json
@connecting
def create(
    where: Where,
    name: str,
    aliases: tuple[str, ...],
    code: str | Path,
    options: FunctionOptions,
    as_json: bool,
) -> None:
    """Store the function in FILE (- is stdin), or a new version of it, once it has been checked."""
    with tracing("functions create"), where.connect() as mesh:
        function = mesh.functions.create(name, code, aliases=aliases, **options)
    if as_json:
        print_json(function)
        return
    also = ", ".join(function.aliases)
    what = "was there already, and is" if function.existed else "is"
    click.echo(f"{function.name} {function.version} {what} {also}")


@click.command()
@click.option("--name", default="checked", help="Its name, where that matters.")
@_describing
@as_json
@connecting
def check(
    where: Where, name: str, code: str | Path, options: FunctionOptions, as_json: bool
) -> None:
    """Check the function in FILE (- is stdin), and store nothing."""
    with tracing("functions check"), where.connect() as mesh:
        function = mesh.functions.validate(name, code, **options)
    if as_json:
        print_json(function)
    else:
        tried = "and does its example" if function.example is not None else "and has no example"
        click.echo(f"{function.entry_point} can be stored, {tried}")


@click.command("list")
@click.option("--label", "labels", type=LABEL, multiple=True, help="NAME=VALUE; repeatable.")
@_limit
@as_json
@connecting
def list_functions(
    where: Where, labels: tuple[tuple[str, str], ...], limit: int, as_json: bool
) -> None:
    """List the latest version of each function."""
    with tracing("functions list"), where.connect() as mesh:
        pages = mesh.functions.list(labels=dict(labels), page_size=min(limit + 1, 1000))
        _print_list(pages, limit, as_json)


@click.command()
@click.argument("name")
@_limit
@as_json
@connecting
def versions(where: Where, name: str, limit: int, as_json: bool) -> None:
    """List the versions of a function, the highest first."""
    with tracing("functions versions"), where.connect() as mesh:
        pages = mesh.functions.versions(name, page_size=min(limit + 1, 1000))
        _print_list(pages, limit, as_json)


def _print_list(pages: Iterator[Function], limit: int, as_json: bool) -> None:
    found = list(islice(pages, limit + 1))
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json(found)
        return
    show(
        ("function", "version", "aliases", "owner", "seen by", "stored", "description"),
        [
            (
                function.name,
                function.version,
                ", ".join(function.aliases),
                function.owner,
                function.visibility,
                moment(function.create_time),
                function.description,
            )
            for function in found
        ],
    )
    if more:
        click.echo(f"There are more than {limit}; see --limit.", err=True)


@click.command("show")
@click.argument("name")
@_version
@click.option("--code", "code_alone", is_flag=True, help="Print its code, and nothing else.")
@as_json
@connecting
def show_function(where: Where, name: str, version: str, code_alone: bool, as_json: bool) -> None:
    """Describe a function, with its code."""
    with tracing("functions show"), where.connect() as mesh:
        function = mesh.functions.get(name, version)
    if code_alone:
        click.echo(function.code, nl=False)
        return
    if as_json:
        print_json(function)
        return
    limits = function.limits
    facts(
        [
            ("function", function.name),
            ("version", function.version),
            ("aliases", ", ".join(function.aliases)),
            ("digest", function.digest),
            ("calls", f"{'async ' if function.is_async else ''}{function.entry_point}"),
            ("imports", ", ".join(function.allowed_imports)),
            ("of the mesh", ", ".join(function.host_functions)),
            ("timeout", f"{limits.timeout:g} s" if limits.timeout else ""),
            ("memory", size(limits.memory) if limits.memory else ""),
            ("recursion", f"{limits.recursion}" if limits.recursion else ""),
            ("output", size(limits.output) if limits.output else ""),
            ("owner", function.owner),
            ("seen by", function.visibility),
            ("labels", ", ".join(f"{name}={value}" for name, value in function.labels.items())),
            ("stored", moment(function.create_time)),
            ("description", function.description),
        ]
    )
    for title, value in (
        ("takes", function.input_schema),
        ("answers", function.output_schema),
        ("example", function.example),
    ):
        if value is not None:
            click.echo(f"\n{title}\n{json.dumps(value, indent=2, ensure_ascii=False)}")
    click.echo(f"\n{harmless(function.code)}", nl=not function.code.endswith("\n"))


@click.command()
@click.argument("name")
@click.argument("alias")
@click.argument("version", required=False, default="")
@connecting
def alias(where: Where, name: str, alias: str, version: str) -> None:
    """Let ALIAS mean VERSION of a function, or nothing any more."""
    with tracing("functions alias"), where.connect() as mesh:
        function = mesh.functions.alias(name, alias, version)
    means = f"means {function.version}" if version else f"means {function.version} no longer"
    click.echo(f"{alias} of {name} {means}")


@click.command()
@click.argument("name")
@click.option("--version", default="", help="This version only.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connecting
def delete(where: Where, name: str, version: str, yes: bool) -> None:
    """Delete a function, or one version of it; its executions remain."""
    with tracing("functions delete"), where.connect() as mesh:
        if not version and not yes:
            there = counted(sum(1 for _ in mesh.functions.versions(name)), "version")
            click.confirm(f"Delete {name} with {there} for good?", abort=True, err=True)
        mesh.functions.delete(name, version)
    click.echo(f"deleted {name} {version}".rstrip())
