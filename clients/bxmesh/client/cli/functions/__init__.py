"""`bxmesh functions`: code that the mesh keeps and executes."""

from __future__ import annotations

import click

from bxmesh.client.cli.functions import executions, stored

__all__ = ["functions"]


@click.group()
def functions() -> None:
    """Store functions, execute them, and see what became of it."""


for _command in (
    stored.create,
    stored.check,
    stored.list_functions,
    stored.show_function,
    stored.versions,
    stored.alias,
    stored.delete,
    executions.run,
    executions.list_executions,
    executions.show_execution,
    executions.cancel,
    executions.stats,
):
    functions.add_command(_command)
