"""The commands that look at what is kept of conversations, and delete it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import click
from google.protobuf import json_format

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.conversations.options import filtering
from bxmesh.client.cli.conversations.talk import agreed, said
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import MOMENT, age, as_json, counted, moment, plain, print_json
from bxmesh.client.conversations import Conversation, ConversationFilter, SearchMode
from bxmesh.client.conversations.archived import MODES

__all__ = [
    "delete",
    "export",
    "list_conversations",
    "purge",
    "search",
    "show_conversation",
    "stats",
]

_DAY = 86400.0

_limit = click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)


@click.command("show")
@click.argument("conversation_id", metavar="CONVERSATION")
@as_json
@connecting
def show_conversation(where: Where, conversation_id: str, as_json: bool) -> None:
    """Show a conversation: who took part, what was said, and what came out."""
    with tracing("conversation show"), where.connect() as mesh:
        found = mesh.conversations.get(conversation_id)
    if as_json:
        print_json(found)
        return
    facts(
        [
            ("conversation", found.conversation_id),
            ("title", found.title),
            ("state", found.state),
            ("error", f"{found.error.reason}: {found.error.message}" if found.error else ""),
            ("owner", found.owner),
            ("begun", moment(found.create_time)),
            ("ended", moment(found.end_time)),
            ("took", _took(found)),
            ("trace", found.trace_id),
            ("bundles", " ".join(found.bundle_ids)),
            ("participants", ", ".join(f"{one.id} ({one.source})" for one in found.participants)),
            ("question", found.question),
        ]
    )
    click.echo()
    show(
        ("turn", "who", "sure", "tokens", "says"),
        [
            (
                f"{turn.turn}",
                turn.participant_id or found.owner,
                "" if turn.confidence is None else f"{turn.confidence:.0%}",
                f"{turn.input_tokens + turn.output_tokens or ''}",
                said(turn),
            )
            for turn in found.turns
        ],
    )
    if found.consensus is not None:
        click.echo()
        click.echo("\n".join(agreed(found.consensus)))


def _took(conversation: Conversation) -> str:
    return "" if conversation.duration is None else age(conversation.duration)


@click.command("list")
@filtering
@_limit
@as_json
@connecting
def list_conversations(where: Where, which: ConversationFilter, limit: int, as_json: bool) -> None:
    """List conversations, the newest first."""
    with tracing("conversation list"), where.connect() as mesh:
        pages = mesh.conversations.list(page_size=min(limit + 1, 1000), **which)
        found, more = _first(list(islice(pages, limit + 1)), limit)
    if as_json:
        print_json(found)
        return
    show(
        ("conversation", "state", "owner", "begun", "took", "sure", "title"),
        [
            (
                one.conversation_id,
                one.state,
                one.owner,
                moment(one.create_time),
                _took(one),
                f"{one.consensus.confidence:.0%}" if one.consensus else "",
                one.title,
            )
            for one in found
        ],
    )
    _say_more(more, limit)


@click.command()
@click.argument("query")
@click.option("--mode", type=click.Choice(MODES.choices), help="By words, meaning, or both.")
@filtering
@_limit
@as_json
@connecting
def search(
    where: Where,
    query: str,
    mode: SearchMode | None,
    which: ConversationFilter,
    limit: int,
    as_json: bool,
) -> None:
    """Find what was said, the best first."""
    with tracing("conversation search"), where.connect() as mesh:
        pages = mesh.conversations.search(query, mode=mode, page_size=min(limit + 1, 1000), **which)
        found, more = _first(list(islice(pages, limit + 1)), limit)
    if as_json:
        print_json(found)
        return
    show(
        ("conversation", "begun", "turn", "who", "score", "says"),
        [
            (
                one.conversation.conversation_id,
                moment(one.conversation.create_time),
                f"{one.turn}",
                one.participant_id or one.conversation.owner,
                f"{one.score:.3g}",
                " ".join(one.snippet.split()),
            )
            for one in found
        ],
    )
    if any(one.degraded for one in found):
        click.echo("By words alone: the mesh's embedding model or its vectors are away.", err=True)
    _say_more(more, limit)


def _first(found: Sequence[Any], limit: int) -> tuple[Sequence[Any], bool]:
    return found[:limit], len(found) > limit


def _say_more(more: bool, limit: int) -> None:
    if more:
        click.echo(f"There are more than {limit}; see --limit.", err=True)


@click.command()
@filtering
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; stdout."
)
@click.option("--resume", "resume_token", default="", help="Go on after what broke off; appends.")
@connecting
def export(where: Where, which: ConversationFilter, output: Path | None, resume_token: str) -> None:
    """Write whole conversations as JSON Lines, the oldest first, in the contract's JSON form.

    One that breaks off says with what --resume it goes on.
    """
    token, count = resume_token, 0
    try:
        with (
            click.open_file(str(output or "-"), "a" if token else "w", encoding="utf-8") as file,
            tracing("conversation export"),
            where.connect() as mesh,
        ):
            for one in mesh.conversations.export(resume_token=token, **which):
                fields = json_format.MessageToDict(
                    one.conversation.message, preserving_proto_field_name=True
                )
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
                token, count = one.resume_token, count + 1
    except BaseException:
        if token:
            click.echo(f"{counted(count, 'conversation')}; go on with --resume {token}", err=True)
        raise
    if output is not None:
        click.echo(f"{counted(count, 'conversation')} written to {output}", err=True)


@click.command()
@click.argument("conversation_ids", metavar="CONVERSATION...", nargs=-1, required=True)
@connecting
def delete(where: Where, conversation_ids: tuple[str, ...]) -> None:
    """Delete conversations that have ended, with all that was said and remembered."""
    with tracing("conversation delete"), where.connect() as mesh:
        for conversation_id in conversation_ids:
            mesh.conversations.delete(conversation_id)
            click.echo(f"{conversation_id} deleted")


@click.command()
@click.option("--before", type=MOMENT, required=True, help="Begun before: a time, or 90d for ago.")
@click.option("--owner", default="", help="Begun by this identity.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@connecting
def purge(
    where: Where, before: datetime, owner: str, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Delete old conversations that have ended, everybody's. Takes an operator."""
    which = ConversationFilter(before=before, owner=owner)
    with tracing("conversation purge"), where.connect() as mesh:
        purged = mesh.conversations.purge(dry_run=True, **which)
        if not dry_run:
            if not yes:
                many = counted(purged.conversations, "conversation")
                click.confirm(f"Delete {many} for good?", abort=True, err=True)
            purged = mesh.conversations.purge(**which)
    if as_json:
        print_json(purged)
        return
    stores = ", ".join(f"{count} in {store}" for store, count in purged.deleted_by_store.items())
    what = "would be deleted" if dry_run else "deleted"
    click.echo(
        f"{counted(purged.conversations, 'conversation')} {what}"
        + (f": {stores}" if stores else "")
    )


@click.command()
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True, max=90),
    default=1.0,
    show_default=True,
    help="Over so many days until now.",
)
@as_json
@connecting
def stats(where: Where, days: float, as_json: bool) -> None:
    """Count conversations, answers, errors and times."""
    with tracing("conversation stats"), where.connect() as mesh:
        figures = mesh.conversations.stats(period=max(60.0, days * _DAY))
    if as_json:
        print_json(plain(figures))
        return
    facts(
        [
            ("conversations", f"{figures.total_conversations}"),
            ("today (UTC)", f"{figures.today_conversations}"),
            ("recent", f"{figures.recent_conversations}"),
            ("running", f"{figures.running_conversations}"),
            ("on average", age(figures.average_duration)),
            ("agreed", f"{figures.success_rate:.0%}"),
            ("answers", f"{figures.answers}"),
            ("failed", f"{figures.errors} ({figures.error_rate:.0%})"),
            ("mean answer", age(figures.average_latency)),
            ("half within", age(figures.latency_p50)),
            ("95% within", age(figures.latency_p95)),
            ("99% within", age(figures.latency_p99)),
            ("not tried now", ", ".join(figures.open_circuits)),
        ]
    )
    if figures.models:
        click.echo()
        show(
            ("model", "answers", "failed", "on average", "tokens"),
            [
                (
                    name,
                    f"{one.answers}",
                    f"{one.errors}",
                    age(one.average_duration),
                    f"{one.tokens}",
                )
                for name, one in figures.models.items()
            ],
        )
