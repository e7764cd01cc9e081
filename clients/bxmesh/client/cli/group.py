"""The command `bxmesh`, whose subcommands are loaded when they are called."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import click

from bxmesh.client.cli.failures import Failure, ServerMissing
from bxmesh.client.errors import BxmeshError

__all__ = ["main"]


class _Command(NamedTuple):
    module: str
    summary: str


_COMMANDS = {
    "gradients": _Command("bxmesh.client.cli.gradients", "Compute energies and gradients."),
    "validate": _Command("bxmesh.client.cli.validate", "Say how good a model is."),
    "data": _Command("bxmesh.client.cli.data", "Report how good reflections are."),
    "minimize": _Command("bxmesh.client.cli.minimize", "Move a model to better coordinates."),
    "structure-factors": _Command(
        "bxmesh.client.cli.structure_factors", "Compute structure factors, as an MTZ file."
    ),
    "map": _Command("bxmesh.client.cli.map", "Compute an electron-density map, as a CCP4 file."),
    "real-space": _Command(
        "bxmesh.client.cli.real_space", "Compute how a model lies in a map, and its gradients."
    ),
    "jobs": _Command("bxmesh.client.cli.jobs", "Start calculations that go on without you."),
    "bundles": _Command("bxmesh.client.cli.bundles", "Look at, fetch and store bundles."),
    "status": _Command("bxmesh.client.cli.status", "Say how the mesh is and who is in it."),
    "agents": _Command("bxmesh.client.cli.agents", "See who is in the mesh."),
    "messages": _Command("bxmesh.client.cli.messages", "Send messages to agents."),
    "tasks": _Command("bxmesh.client.cli.tasks", "Give work to agents and follow it."),
    "functions": _Command("bxmesh.client.cli.functions", "Store functions and execute them."),
    "chains": _Command("bxmesh.client.cli.chains", "Run chains of functions and agents."),
    "conversation": _Command(
        "bxmesh.client.cli.conversations", "Let several agents find one answer together."
    ),
    "definitions": _Command(
        "bxmesh.client.cli.definitions", "Write agents as data, and start and stop them."
    ),
    "host": _Command("bxmesh.client.cli.host", "Run definitions as agents."),
    "dead-letters": _Command("bxmesh.client.cli.dead_letters", "See what could not be handled."),
    "streams": _Command("bxmesh.client.cli.streams", "See what waits in mailboxes and queues."),
    "security": _Command("bxmesh.client.cli.security", "Say who may do what, and see who did."),
    "tls": _Command("bxmesh.server.cli", "Make certificates for development."),
    "serve": _Command("bxmesh.server.cli", "Start the mesh."),
    "http": _Command("bxmesh.server.http.cli", "Serve HTTP for people and browsers."),
    "demo": _Command("bxmesh.server.cli", "Run the main job on a real crystal structure."),
    "doctor": _Command("bxmesh.server.cli", "Check what people get stuck on."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = _COMMANDS.get(cmd_name)
        if command is None:
            return None
        try:
            module = import_module(command.module)
        except ModuleNotFoundError as error:
            if not command.module.startswith("bxmesh.server"):
                raise
            raise ServerMissing(f"`bxmesh {cmd_name}`", error) from error
        loaded: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BxmeshError as error:
            raise Failure(error) from error


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bxmesh")
def main() -> None:
    """Crystallography next to a model server: PDB and MTZ in, gradient tensors out."""
