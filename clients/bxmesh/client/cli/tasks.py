"""`bxmesh tasks`: give work to agents and follow it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

from bxmesh.client.agents.tasks import Task
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.messages import priority
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.task_progress import TaskLine
from bxmesh.client.cli.values import CONTENT, LABEL, MOMENT, as_json, moment, plain, print_json
from bxmesh.client.sync import Mesh

__all__ = ["tasks"]

_STATES = ("pending", "assigned", "running", "completed", "failed", "cancelled", "timed_out")
_label = click.option(
    "--label", "labels", type=LABEL, multiple=True, help="NAME=VALUE; repeatable."
)


@click.group()
def tasks() -> None:
    """Give work to agents and follow it."""


@tasks.command()
@click.argument("parameters", type=CONTENT, required=False)
@click.option("--type", "task_type", required=True, help="What kind of task.")
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    help="What an agent must offer, by default the type; repeatable.",
)
@click.option("--agent", "agent_id", help="The agent that shall do it.")
@click.option("--description", help="For people.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds it may take.")
@click.option("--parent", "parent_task_id", help="The task on whose behalf it is done.")
@click.option("--sticky-key", help="The same key goes to the same agent.")
@click.option("--wait-for-agent", is_flag=True, help="Keep it until somebody can do it.")
@_label
@priority
@click.option("--wait", is_flag=True, help="Show its progress, and its result at the end.")
@as_json
@connecting
def submit(
    where: Where,
    parameters: Any,
    task_type: str,
    capabilities: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    wait_for_agent: bool,
    wait: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Give a task with PARAMETERS to an agent that can do it.

    PARAMETERS are JSON, @FILE for a file that holds them, or - for stdin. With --wait the exit
    code is 1 unless it is completed; an interrupt leaves the task to go on.
    """
    chosen = {name: value for name, value in options.items() if value is not None}
    if capabilities:
        chosen["capabilities"] = capabilities
    with tracing("tasks submit"), where.connect() as mesh:
        task = mesh.assign_task(
            task_type, parameters, wait_for_agent=wait_for_agent, labels=dict(labels), **chosen
        )
        if wait:
            try:
                task = _wait(mesh, task)
            except KeyboardInterrupt:
                click.echo(
                    f"\n{task.task_id} goes on; see `bxmesh tasks watch {task.task_id}`.", err=True
                )
                raise
    if as_json:
        print_json(task)
    elif wait:
        _print_end(task)
    else:
        where_it_is = f"is with {task.agent_id}" if task.agent_id else "waits for an agent"
        click.echo(f"{task.task_id} {where_it_is}")
    if wait and task.state != "completed":
        sys.exit(1)


def _wait(mesh: Mesh, task: Task) -> Task:
    with TaskLine() as line:
        for change in mesh.watch_task(task.task_id):
            task = change
            line.show(task)
            if task.done:
                break
    return task


def _print_end(task: Task) -> None:
    if task.state == "completed":
        click.echo(json.dumps(plain(task)["result"], indent=2, ensure_ascii=False))
        return
    click.echo(f"{task.task_id} {task.state.replace('_', ' ')}", err=True)
    if task.error:
        click.echo(f"  {task.error.reason}: {task.error.message}", err=True)


def _percent(task: Task) -> str:
    return "100%" if task.state == "completed" else f"{task.progress.percent:.0f}%"


@tasks.command("list")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Its state; repeatable."
)
@click.option("--type", "task_type", default="", help="Its type.")
@click.option("--agent", "agent_id", default="", help="The agent that has it.")
@click.option("--parent", "parent_task_id", default="", help="On whose behalf it is done.")
@_label
@click.option("--since", "start_time", type=MOMENT, help="Made since: a time, or 15m for that ago.")
@click.option("--until", "end_time", type=MOMENT, help="Made before.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@as_json
@connecting
def list_tasks(
    where: Where, labels: tuple[tuple[str, str], ...], limit: int, as_json: bool, **which: Any
) -> None:
    """List tasks, the newest first."""
    with tracing("tasks list"), where.connect() as mesh:
        pages: Iterator[Task] = mesh.tasks(
            labels=dict(labels), page_size=min(limit + 1, 1000), **which
        )
        found = list(islice(pages, limit + 1))
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json(found)
        return
    show(
        ("task", "type", "state", "done", "agent", "made", "says"),
        [
            (
                task.task_id,
                task.task_type,
                task.state.replace("_", " "),
                _percent(task),
                task.agent_id,
                moment(task.create_time),
                task.error.message if task.error else task.progress.message,
            )
            for task in found
        ],
    )
    if more:
        click.echo(f"There are more than {limit}; see --limit.", err=True)


@tasks.command("show")
@click.argument("task_id")
@as_json
@connecting
def show_task(where: Where, task_id: str, as_json: bool) -> None:
    """Describe a task."""
    with tracing("tasks show"), where.connect() as mesh:
        task = mesh.task(task_id)
    if as_json:
        print_json(task)
        return
    values = plain(task)
    progress = f"{_percent(task)} {task.progress.message}".rstrip()
    facts(
        [
            ("task", task.task_id),
            ("type", task.task_type),
            ("state", task.state.replace("_", " ")),
            ("progress", progress),
            ("agent", task.agent_id),
            ("attempts", f"{task.attempts}"),
            ("needs", ", ".join(task.required_capabilities)),
            ("owner", task.owner),
            ("parent", task.parent_task_id),
            ("children", ", ".join(task.child_task_ids)),
            ("labels", ", ".join(f"{name}={value}" for name, value in task.labels.items())),
            ("made", moment(task.create_time)),
            ("began", moment(task.start_time)),
            ("ended", moment(task.end_time)),
            ("description", task.description),
            ("error", f"{task.error.reason}: {task.error.message}" if task.error else ""),
        ]
    )
    for name in ("parameters", "result"):
        if values[name] is not None:
            click.echo(f"\n{name}")
            click.echo(json.dumps(values[name], indent=2, ensure_ascii=False))


@tasks.command("watch")
@click.argument("task_id")
@as_json
@connecting
def watch_task(where: Where, task_id: str, as_json: bool) -> None:
    """Follow a task to its end. Exit code 1 unless it is completed."""
    state = ""
    with tracing("tasks watch"), where.connect() as mesh:
        for task in mesh.watch_task(task_id):
            state = task.state
            if as_json:
                print_json(task)
                continue
            says = task.error.message if task.error else task.progress.message
            click.echo(
                f"{moment(task.update_time)}  {state.replace('_', ' '):9}"
                f"  {_percent(task):>4}  {task.agent_id}  {says}".rstrip()
            )
    if state != "completed":
        sys.exit(1)


@tasks.command()
@click.argument("task_ids", nargs=-1, required=True)
@click.option("--reason", default="", help="What the agent is told.")
@click.option("--children", is_flag=True, help="What was assigned on its behalf, too.")
@as_json
@connecting
def cancel(
    where: Where, task_ids: tuple[str, ...], reason: str, children: bool, as_json: bool
) -> None:
    """Cancel tasks; their agents are told. One that has ended is left as it is."""
    with tracing("tasks cancel"), where.connect() as mesh:
        for task_id in task_ids:
            task = mesh.cancel_task(task_id, reason, cancel_children=children)
            if as_json:
                print_json(task)
            else:
                click.echo(f"{task_id} {task.state.replace('_', ' ')}")
