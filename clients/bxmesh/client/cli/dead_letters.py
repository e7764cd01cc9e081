"""`bxmesh dead-letters`: what could not be handled."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from itertools import islice
from typing import Any

import click

from bxmesh.client.agents.dead_letters import DeadLetter, DeadLetterFilter
from bxmesh.client.agents.messages import Message
from bxmesh.client.agents.tasks import Task
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import MOMENT, as_json, moment, plain, print_json

__all__ = ["dead_letters"]

_MOST_COUNTED = 1000
_OPTIONS = (
    click.option("--agent", "agent_id", default="", help="Out of this agent's mailbox."),
    click.option("--capability", default="", help="Out of the queue of this capability."),
    click.option("--type", "type", default="", help="Of this message or task type."),
    click.option("--reason", default="", help="With this reason."),
    click.option("--since", "start_time", type=MOMENT, help="Given up since: a time, or 15m ago."),
    click.option("--until", "end_time", type=MOMENT, help="Given up before."),
)
_ids = click.argument("dead_letter_ids", nargs=-1)


def _filtering(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that pick letters; the command gets them as `which`."""

    @wraps(command)
    def call(*arguments: Any, **options: Any) -> None:
        which = {}
        for name in DeadLetterFilter.__annotations__:
            value = options.pop(name, None)
            if value:
                which[name] = value
        command(*arguments, which=which, **options)

    for option in reversed(_OPTIONS):
        call = option(call)
    return call


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at what could not be handled, try it again, throw it away."""


@dead_letters.command("list")
@_filtering
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@as_json
@connecting
def list_letters(where: Where, which: DeadLetterFilter, limit: int, as_json: bool) -> None:
    """List dead letters, the newest first."""
    with tracing("dead-letters list"), where.connect() as mesh:
        pages = mesh.dead_letters(page_size=min(limit + 1, 1000), **which)
        found = list(islice(pages, limit + 1))
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json(found)
        return
    show(
        ("dead letter", "given up", "origin", "type", "tries", "reason", "says"),
        [
            (
                letter.dead_letter_id,
                moment(letter.last_time),
                letter.origin,
                _type(letter),
                f"{letter.attempts}",
                letter.error.reason,
                letter.error.message,
            )
            for letter in found
        ],
    )
    if more:
        click.echo(f"There are more than {limit}; see --limit.", err=True)


def _type(letter: DeadLetter) -> str:
    match letter.content:
        case Message() as message:
            return message.type
        case Task() as task:
            return task.task_type
    return "(unreadable)"


@dead_letters.command("show")
@click.argument("dead_letter_id")
@as_json
@connecting
def show_letter(where: Where, dead_letter_id: str, as_json: bool) -> None:
    """Describe a dead letter."""
    with tracing("dead-letters show"), where.connect() as mesh:
        letter = next(mesh.dead_letters(dead_letter_ids=[dead_letter_id]), None)
    if letter is None:
        raise click.ClickException(
            f"There is no dead letter {dead_letter_id}."
            "\n  remedy: `bxmesh dead-letters list` shows what is there."
        )
    if as_json:
        print_json(letter)
        return
    facts(
        [
            ("dead letter", letter.dead_letter_id),
            ("type", _type(letter)),
            ("reason", letter.error.reason),
            ("says", letter.error.message),
            ("tries", f"{letter.attempts}"),
            ("first try", moment(letter.first_time)),
            ("given up", moment(letter.last_time)),
            ("given up by", letter.agent_id),
            ("origin", f"{letter.origin} {letter.origin_entry_id}".rstrip()),
            ("trace", letter.trace_context.get("traceparent", "")),
        ]
    )
    click.echo()
    click.echo(json.dumps(plain(letter)["content"], indent=2, ensure_ascii=False))


@dead_letters.command()
@_ids
@_filtering
@click.option("--limit", type=click.IntRange(1, 10_000), help="At most so many; 1000.")
@as_json
@connecting
def replay(where: Where, which: DeadLetterFilter, limit: int | None, as_json: bool) -> None:
    """Put dead letters back to where they came from, with all their tries ahead.

    Name them, or say which with the options. Exit code 1 when some are still there.
    """
    _require_something(which)
    with tracing("dead-letters replay"), where.connect() as mesh:
        found = mesh.replay_dead_letters(limit=limit or 0, **which)
    if as_json:
        print_json({"replayed": found.replayed, "remaining": found.remaining})
    else:
        click.echo(f"{found.replayed} put back")
        if found.remaining:
            click.echo(
                f"{found.remaining} are still there: they cannot be read, are beyond the limit,"
                " or their mailbox is full",
                err=True,
            )
    if found.remaining:
        sys.exit(1)


@dead_letters.command()
@_ids
@_filtering
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@connecting
def purge(where: Where, which: DeadLetterFilter, yes: bool, as_json: bool) -> None:
    """Delete dead letters for good.

    Name them, or say which with the options.
    """
    _require_something(which)
    with tracing("dead-letters purge"), where.connect() as mesh:
        if not yes:
            pages = mesh.dead_letters(page_size=_MOST_COUNTED, **which)
            count = sum(1 for _ in islice(pages, _MOST_COUNTED + 1))
            many = f"more than {_MOST_COUNTED}" if count > _MOST_COUNTED else f"{count}"
            click.confirm(f"Delete {many} dead letters for good?", abort=True, err=True)
        purged = mesh.purge_dead_letters(**which)
    if as_json:
        print_json({"purged": purged})
    else:
        click.echo(f"{purged} deleted")


def _require_something(which: DeadLetterFilter) -> None:
    if not which:
        raise click.UsageError("Say which: name dead letters, or give an option such as --agent.")
