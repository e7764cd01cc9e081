"""`bxmesh messages`: send to agents, and deliver again what they had."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import click

from bxmesh.client.agents.messages import Message
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.values import CONTENT, MOMENT, as_json, counted, plain, print_json
from bxmesh.client.sync import Mesh

__all__ = ["messages", "priority"]

priority = click.option(
    "--priority",
    type=click.Choice(["low", "medium", "high", "critical"]),
    help="Its place among what waits.",
)


@click.group()
def messages() -> None:
    """Send messages to agents."""


@messages.command()
@click.argument("payload", type=CONTENT, required=False)
@click.option("--to", "recipient", help="The agent that gets it.")
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    help="All agents that offer this get it; repeatable.",
)
@click.option("--agent-type", help="All agents of this type get it.")
@click.option("--type", "message_type", required=True, help="What it is, such as greeting.request.")
@click.option(
    "--wait", type=click.FloatRange(min=0, min_open=True, max=3600), help="Seconds for a reply."
)
@click.option("--direct", is_flag=True, help="At once to whoever is connected, kept nowhere.")
@click.option("--hold", is_flag=True, help="Keep it for an agent that is not there yet.")
@click.option("--sender", help="The agent that sends it, one of your own.")
@click.option(
    "--expires-in", type=click.FloatRange(min=0, min_open=True), help="Seconds it makes sense for."
)
@priority
@as_json
@connecting
def send(
    where: Where,
    payload: Any,
    recipient: str | None,
    capabilities: tuple[str, ...],
    agent_type: str | None,
    message_type: str,
    wait: float | None,
    direct: bool,
    hold: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Send a message with PAYLOAD to an agent, or to all that fit.

    PAYLOAD is JSON, @FILE for a file that holds it, or - for stdin. Exit code 1 when it
    reaches nobody, or a mailbox is full.
    """
    many = bool(capabilities or agent_type)
    if many == bool(recipient):
        raise click.UsageError("Say who gets it: --to, or --capability and --agent-type.")
    if many and (wait or hold):
        raise click.UsageError("--wait and --hold are for a message to one agent.")
    if direct and hold:
        raise click.UsageError("A direct message cannot be held.")
    chosen = {name: value for name, value in options.items() if value is not None}
    chosen["mode"] = "direct" if direct else "durable"
    with tracing("messages send"), where.connect() as mesh:
        if many:
            wanted = {"capabilities": capabilities, "agent_type": agent_type or ""}
            reached = _broadcast(mesh, message_type, payload, as_json, **wanted, **chosen)
        elif wait:
            if hold:
                chosen["hold"] = True
            reply = mesh.request(recipient or "", message_type, payload, timeout=wait, **chosen)
            _print_reply(reply, as_json)
            reached = True
        else:
            reached = _send(mesh, recipient or "", message_type, payload, as_json, hold, **chosen)
    if not reached:
        sys.exit(1)


def _send(
    mesh: Mesh,
    recipient: str,
    message_type: str,
    payload: Any,
    as_json: bool,
    hold: bool,
    **options: Any,
) -> bool:
    receipt = mesh.send(recipient, message_type, payload, hold=hold, **options)
    direct = options["mode"] == "direct"
    if as_json:
        print_json(receipt)
    elif direct:
        reached = counted(receipt.receivers, "connection")
        click.echo(f"{receipt.message_id} reached {reached} of {recipient}")
    elif receipt.quarantined:
        click.echo(f"{receipt.message_id} is held in quarantine until somebody releases it")
    elif receipt.held:
        click.echo(f"{receipt.message_id} is held until {recipient} comes")
    else:
        click.echo(f"{receipt.message_id} is in the mailbox of {recipient}")
    return bool(receipt.receivers) or not direct


def _broadcast(mesh: Mesh, message_type: str, payload: Any, as_json: bool, **options: Any) -> bool:
    receipt = mesh.broadcast(message_type, payload, **options)
    if as_json:
        print_json(receipt)
    else:
        went = "is held in quarantine for" if receipt.quarantined else "went to"
        click.echo(f"{receipt.message_id} {went} {counted(receipt.recipients, 'agent')}")
        for agent_id in receipt.refused:
            click.echo(f"the mailbox of {agent_id} is full; it does not get it", err=True)
    return bool(receipt.recipients) and not receipt.refused


def _print_reply(reply: Message, as_json: bool) -> None:
    if as_json:
        print_json(reply)
        return
    click.echo(f"{reply.sender} answers with {reply.type}:", err=True)
    click.echo(json.dumps(plain(reply)["payload"], indent=2, ensure_ascii=False))


@messages.command()
@click.argument("agent_id")
@click.option("--since", type=MOMENT, help="From this time on: 2026-01-31T12:00, or 15m ago.")
@click.option("--from-entry", help="From this entry of the mailbox on.")
@click.option("--until", type=MOMENT, help="Before this time.")
@click.option(
    "--type", "message_types", multiple=True, help='Only this type, or "prefix*"; repeatable.'
)
@click.option("--limit", type=click.IntRange(1, 10_000), help="At most so many; 1000.")
@as_json
@connecting
def replay(
    where: Where,
    agent_id: str,
    since: datetime | None,
    from_entry: str | None,
    until: datetime | None,
    message_types: tuple[str, ...],
    limit: int | None,
    as_json: bool,
) -> None:
    """Deliver messages to AGENT_ID again that it has handled, as far as they are kept."""
    if (since is None) == (from_entry is None):
        raise click.UsageError("Say from where: --since or --from-entry.")
    with tracing("messages replay"), where.connect() as mesh:
        found = mesh.replay_messages(
            agent_id,
            start_time=since,
            start_entry_id=from_entry or "",
            end_time=until,
            message_types=message_types,
            limit=limit or 0,
        )
    if as_json:
        print_json({"replayed": found.replayed, "next_entry_id": found.next_entry_id})
        return
    click.echo(f"{counted(found.replayed, 'message')} delivered to {agent_id} again")
    if found.next_entry_id:
        click.echo(f"there are more: --from-entry {found.next_entry_id}")
