"""`bxmesh security`: who may do what, and who did; its commands are loaded when they are called."""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["security"]

_HERE = "bxmesh.client.cli.security"
_COMMANDS = {
    "whoami": (f"{_HERE}.identities", "Say who you are and what you may do."),
    "identities": (f"{_HERE}.identities", "See, make and delete those who may call."),
    "grant": (f"{_HERE}.identities", "Give roles and permissions."),
    "revoke": (f"{_HERE}.identities", "Take roles and permissions."),
    "roles": (f"{_HERE}.roles", "See, make and change roles, and see what permissions there are."),
    "keys": (f"{_HERE}.keys", "Make, see, rotate and revoke API keys."),
    "tokens": (f"{_HERE}.tokens", "Issue and revoke short-lived tokens."),
    "signing": (f"{_HERE}.signing", "Make, see and remove the keys that sign messages."),
    "policy": (f"{_HERE}.policy", "See the policy in force and those before it."),
    "apply": (f"{_HERE}.policy", "Put a policy into force, after showing what changes."),
    "blocks": (f"{_HERE}.policy", "See addresses that are refused for a while, and admit them."),
    "report": (f"{_HERE}.report", "Sum up a period: violations, expiring keys, unused rights."),
    "violations": (f"{_HERE}.violations", "See and follow what was refused."),
    "audit": (f"{_HERE}.audit", "Read, check and export the audit log."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        loaded: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name)
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=_LazyGroup)
def security() -> None:
    """Say who may do what, and see who did."""
