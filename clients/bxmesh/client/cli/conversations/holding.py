"""The commands that hold conversations."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.conversations.options import MESSAGE, asking
from bxmesh.client.cli.conversations.talk import Talk
from bxmesh.client.cli.values import as_json, print_json
from bxmesh.client.conversations import ConversationEvent, ConversationOptions

__all__ = ["cancel", "follow", "hold", "send", "start"]


@click.command()
@asking
@as_json
@connecting
def hold(
    where: Where, message: str, request_id: str, options: ConversationOptions, as_json: bool
) -> None:
    """Ask MESSAGE (@FILE, or - for stdin) and show who answers what, to the end.

    With --json only the conversation is printed, at its end. The exit code is 1 unless it is
    completed. An interrupt leaves it to go on.
    """
    with tracing("conversation hold"), where.connect() as mesh:
        events = mesh.conversations.stream(message, request_id=request_id, **options)
        _told(events, whole=as_json)


@click.command()
@asking
@as_json
@connecting
def start(
    where: Where, message: str, request_id: str, options: ConversationOptions, as_json: bool
) -> None:
    """Begin a conversation about MESSAGE (@FILE, or - for stdin) and print its name."""
    with tracing("conversation start"), where.connect() as mesh:
        conversation = mesh.conversations.start(message, request_id=request_id, **options)
    if as_json:
        print_json(conversation)
    else:
        click.echo(conversation.conversation_id)


@click.command()
@click.argument("conversation_id", metavar="CONVERSATION")
@click.option("--after", type=click.IntRange(min=0), default=0, help="After this revision.")
@as_json
@connecting
def follow(where: Where, conversation_id: str, after: int, as_json: bool) -> None:
    """Follow a conversation to its end, from the beginning. Exit code 1 unless it is completed.

    With --json each event is a line.
    """
    with tracing("conversation follow"), where.connect() as mesh:
        _told(mesh.conversations.follow(conversation_id, after_revision=after), each=as_json)


@click.command()
@click.argument("conversation_id", metavar="CONVERSATION")
@click.argument("message", type=MESSAGE)
@click.option("--turns", type=click.IntRange(1, 100), help="So many turns; as many as before.")
@click.option("--detach", is_flag=True, help="Do not wait for its end.")
@as_json
@connecting
def send(
    where: Where,
    conversation_id: str,
    message: str,
    turns: int | None,
    detach: bool,
    as_json: bool,
) -> None:
    """Continue a conversation that has ended with another MESSAGE, and show it as `hold` does."""
    with tracing("conversation send"), where.connect() as mesh:
        sent = mesh.conversations.send(conversation_id, message, turns=turns or 0)
        if not detach:
            after = max(0, sent.revision - 1)
            events = mesh.conversations.follow(conversation_id, after_revision=after)
            _told(events, whole=as_json)
        elif as_json:
            print_json(sent)


@click.command()
@click.argument("conversation_ids", metavar="CONVERSATION...", nargs=-1, required=True)
@as_json
@connecting
def cancel(where: Where, conversation_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel conversations and what is asked in them. One that has ended is left as it is."""
    with tracing("conversation cancel"), where.connect() as mesh:
        for conversation_id in conversation_ids:
            conversation = mesh.conversations.cancel(conversation_id)
            if as_json:
                print_json(conversation)
            else:
                click.echo(f"{conversation_id} {conversation.state}")


def _told(events: Iterator[ConversationEvent], *, each: bool = False, whole: bool = False) -> None:
    """Tells events for people, each as JSON, or only the whole at its end as JSON."""
    talk, name, ended = Talk(), "", None
    try:
        for event in events:
            name = event.conversation_id
            ended = event.ended or ended
            if each:
                print_json(event)
            elif not whole:
                talk.tell(event)
    except KeyboardInterrupt:
        if name:
            click.echo(f"\n{name} goes on; see `bxmesh conversation follow {name}`.", err=True)
        raise
    if whole and ended is not None:
        print_json(ended)
    if ended is None or ended.state != "completed":
        sys.exit(1)
