"""`bxmesh conversation`: several agents, one answer."""

from __future__ import annotations

import click

from bxmesh.client.cli.conversations.holding import cancel, follow, hold, send, start
from bxmesh.client.cli.conversations.kept import (
    delete,
    export,
    list_conversations,
    purge,
    search,
    show_conversation,
    stats,
)

__all__ = ["conversation"]


@click.group()
def conversation() -> None:
    """Let several agents answer one question, and find what they agree on."""


for command in (
    hold,
    start,
    follow,
    send,
    cancel,
    show_conversation,
    list_conversations,
    search,
    export,
    delete,
    purge,
    stats,
):
    conversation.add_command(command)
