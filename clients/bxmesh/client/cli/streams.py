"""`bxmesh streams`: what waits where."""

from __future__ import annotations

import click

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.tables import show
from bxmesh.client.cli.values import age, as_json, print_json

__all__ = ["streams"]


@click.group()
def streams() -> None:
    """See what waits in mailboxes and queues."""


@streams.command()
@click.option("--agent", "agent_id", default="", help="Only this agent's mailbox.")
@click.option("--capability", default="", help="Only the queue of this capability.")
@as_json
@connecting
def info(where: Where, agent_id: str, capability: str, as_json: bool) -> None:
    """Show the figures of mailboxes and queues."""
    if agent_id and capability:
        raise click.UsageError("Give --agent or --capability, not both.")
    with tracing("streams info"), where.connect() as mesh:
        found = list(mesh.queue_stats(agent_id=agent_id, capability=capability))
    if as_json:
        print_json(found)
        return
    show(
        (
            "queue",
            "waiting",
            "urgent",
            "in flight",
            "delayed",
            "dead",
            "oldest",
            "room",
            "readers",
            "per s",
            "done",
            "again",
            "expired",
        ),
        [
            (
                queue.queue,
                f"{sum(queue.waiting.values())}",
                f"{queue.waiting.get('critical', 0) + queue.waiting.get('high', 0)}",
                f"{queue.in_flight}",
                f"{queue.delayed}",
                f"{queue.dead_letters}",
                age(queue.oldest_age) if queue.oldest_age else "",
                f"{queue.capacity}",
                f"{queue.connections}",
                f"{queue.delivery_rate:.3g}",
                f"{queue.acknowledged}",
                f"{queue.redelivered}",
                f"{queue.expired}",
            )
            for queue in found
        ],
    )
