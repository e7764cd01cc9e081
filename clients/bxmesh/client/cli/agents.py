"""`bxmesh agents`: who is in the mesh."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from bxmesh.client.agents.live_agents import AgentInfo
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.minions import minions
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import as_json, moment, print_json
from bxmesh.client.errors import NotFound

__all__ = ["agents", "show_agents"]

_capability = click.option(
    "--capability", "capabilities", multiple=True, help="Offers this; repeatable."
)
_type = click.option("--type", "agent_type", default="", help="Is of this type.")


@click.group()
def agents() -> None:
    """See who is in the mesh."""


agents.add_command(minions)


@agents.command("list")
@_capability
@_type
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice(["active", "busy", "draining"]),
    help="Has this status; repeatable.",
)
@as_json
@connecting
def list_agents(where: Where, as_json: bool, **which: Any) -> None:
    """List the live agents."""
    with tracing("agents list"), where.connect() as mesh:
        found = mesh.agents(**which)
    if as_json:
        print_json(found)
        return
    show_agents(found)


def show_agents(found: Iterable[AgentInfo]) -> None:
    """Writes agents as a table to stdout."""
    show(
        ("agent", "type", "status", "load", "tasks", "capabilities"),
        [
            (
                agent.agent_id,
                agent.agent_type,
                agent.status,
                f"{agent.current_load:.0%}",
                f"{agent.active_tasks}/{agent.max_concurrent_tasks}",
                ", ".join(agent.capabilities),
            )
            for agent in found
        ],
    )


@agents.command("show")
@click.argument("agent_id")
@as_json
@connecting
def show_agent(where: Where, agent_id: str, as_json: bool) -> None:
    """Describe a live agent: its registration, its mailbox and its state."""
    with tracing("agents show"), where.connect() as mesh:
        agent, state = mesh.agent(agent_id), mesh.state(agent_id)
        try:
            queue = next(mesh.queue_stats(agent_id=agent_id))
        except NotFound:
            # It left between the two calls.
            queue = None
    if as_json:
        print_json({"agent": agent, "queue": queue, "state": state})
        return
    facts(_facts(agent))
    if queue is not None:
        waiting = ", ".join(f"{count} {name}" for name, count in queue.waiting.items() if count)
        facts(
            [
                ("waiting", waiting or "nothing"),
                ("in flight", f"{queue.in_flight}"),
                ("delayed", f"{queue.delayed}"),
                ("dead letters", f"{queue.dead_letters}"),
                ("connections", f"{queue.connections}"),
            ]
        )
    if state.revision:
        facts([("state", f"revision {state.revision}, {moment(state.update_time)}")])
        for name, value in state.value.items():
            click.echo(f"  {name}: ", nl=False)
            print_json(value)


def _facts(agent: AgentInfo) -> list[tuple[str, str]]:
    rows = [
        ("agent", agent.agent_id),
        ("type", f"{agent.agent_type} {agent.version}".rstrip()),
        ("status", f"{agent.status}, load {agent.current_load:.0%}"),
        ("tasks", f"{agent.active_tasks}/{agent.max_concurrent_tasks}"),
        ("identity", agent.identity),
        ("definition", agent.definition_id),
        ("registered", moment(agent.register_time)),
        ("heartbeat", moment(agent.heartbeat_time)),
    ]
    rows += [("capability", name) for name in agent.capabilities]
    return rows + [(name, value) for name, value in sorted(agent.metadata.items())]


@agents.command("watch")
@_capability
@_type
@as_json
@connecting
def watch_agents(where: Where, as_json: bool, **which: Any) -> None:
    """Tell who joins, changes and leaves, until it is interrupted."""
    with tracing("agents watch"), where.connect() as mesh:
        for event in mesh.watch_agents(**which):
            if as_json:
                print_json(event)
                continue
            agent = event.agent
            says = {
                "joined": ", ".join(agent.capabilities),
                "changed": f"{agent.status}, load {agent.current_load:.0%},"
                f" tasks {agent.active_tasks}/{agent.max_concurrent_tasks}",
                "left": f"{event.leave_reason.replace('_', ' ')} {event.message}".rstrip(),
            }
            text = says.get(event.kind, "")
            click.echo(f"{moment(event.event_time)}  {event.kind:8}  {agent.agent_id}  {text}")
