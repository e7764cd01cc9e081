"""`bxmesh agents minions`: what minions are at."""

from __future__ import annotations

from collections.abc import Iterable

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bxmesh.client.agents.minion_info import MinionEvent, MinionInfo
from bxmesh.client.agents.supervisor import Supervisor
from bxmesh.client.blocking import Blocking, blocking, iterating
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.tables import show, table
from bxmesh.client.cli.values import as_json, moment, print_json
from bxmesh.client.sync import Mesh

__all__ = ["minions"]

_HEADER = ("minion", "status", "load", "tasks", "done", "failed", "cancelled", "last error")
_PER_SECOND = 4


class _Supervision(Blocking[Supervisor]):
    """What a supervisor sees of minions."""

    minions = blocking(Supervisor.minions)
    watch_minions = iterating(Supervisor.watch_minions)


@click.command("minions")
@click.option("--capability", "capabilities", multiple=True, help="Offers this; repeatable.")
@click.option("--type", "agent_type", default="", help="Is of this type.")
@click.option("--watch", is_flag=True, help="Follow them until it is interrupted.")
@as_json
@connecting
def minions(
    where: Where, capabilities: tuple[str, ...], agent_type: str, watch: bool, as_json: bool
) -> None:
    """List the minions: what they are at, and what became of what they did."""
    with tracing("agents minions"), where.connect() as mesh:
        supervision = _supervision(mesh)
        if watch:
            events = supervision.watch_minions(*capabilities, agent_type=agent_type)
            _follow(events, as_json=as_json)
            return
        found = supervision.minions(*capabilities, agent_type=agent_type)
    if as_json:
        print_json(found)
        return
    show(_HEADER, map(_row, found))


def _supervision(mesh: Mesh) -> _Supervision:
    return _Supervision(mesh._loop, Supervisor(mesh._target))


def _follow(events: Iterable[MinionEvent], *, as_json: bool) -> None:
    console = Console(highlight=False)
    if as_json or not console.is_terminal:
        tell = print_json if as_json else _tell
        for event in events:
            tell(event)
        return
    alive: dict[str, MinionInfo] = {}

    def now() -> Table:
        # It is drawn by a thread of its own.
        rows = [_row(minion) for _, minion in sorted(alive.copy().items())]
        return table(_HEADER, rows)

    with Live(get_renderable=now, console=console, refresh_per_second=_PER_SECOND):
        for event in events:
            if event.kind == "left":
                alive.pop(event.minion.agent_id, None)
            else:
                alive[event.minion.agent_id] = event.minion


def _tell(event: MinionEvent) -> None:
    facts = zip(_HEADER[1:], _row(event.minion)[1:], strict=True)
    text = ", ".join(f"{name} {value}" for name, value in facts if value)
    time = moment(event.minion.update_time)
    click.echo(f"{time}  {event.kind:8}  {event.minion.agent_id}  {text}")


def _row(minion: MinionInfo) -> tuple[str, ...]:
    state = minion.state
    last = state.errors[-1] if state.errors else None
    return (
        minion.agent_id,
        minion.status,
        f"{state.load:.0%}",
        f"{round(state.load * minion.agent.max_concurrent_tasks)}"
        f"/{minion.agent.max_concurrent_tasks}",
        f"{state.done}",
        f"{state.failed}",
        f"{state.cancelled}",
        f"{last.reason} in {last.task_id} ({moment(last.time)})" if last else "",
    )
