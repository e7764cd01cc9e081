"""What people read when something failed."""

from __future__ import annotations

from typing import IO, Any

import click

from bxmesh.client.errors import (
    BxmeshError,
    DeadlineExceeded,
    InternalError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

__all__ = ["Failure", "ServerMissing"]

INSTALL = "pip install 'bxmesh[server,monomers]'"

_REMEDIES: dict[type[BxmeshError], str] = {
    Unavailable: "Start a mesh with `bxmesh serve`, or say where one is with --address.",
    Unauthenticated: "Set BXMESH_API_KEY to a key of this mesh, or give the server's --state-dir.",
    PermissionDenied: "Ask whoever runs the mesh for the permission.",
    NotFound: "It may have expired: upload it again. `bxmesh bundles list` shows what is there.",
    DeadlineExceeded: "Give it more time with --timeout, or look at the load with `bxmesh status`.",
    ResourceExhausted: "Try again later, or with less at a time.",
    InternalError: "Look for the trace in the server's log.",
    Unimplemented: "Bring server and client to the same version.",
}


_REMEDIES_BY_REASON = {
    "AGENT_NOT_FOUND": "`bxmesh agents list` shows who is there; --hold keeps a message for it.",
    "UNHANDLED": "Correct --type, or give the agent a handler for it.",
    "PAYLOAD_MISMATCH": "Correct the payload.",
    "TASK_NOT_FOUND": "It may have been forgotten; `bxmesh tasks list` shows what is there.",
    "QUEUE_NOT_FOUND": "`bxmesh streams info` shows what is there.",
    "CAPABILITY_MISSING": "Start an agent that offers it, or let the task wait: --wait-for-agent.",
    "SCHEMA_MISMATCH": "Correct the parameters.",
    "NO_REPLY": "Give the agent more time with --wait, or see its mailbox: `bxmesh streams info`.",
    "MESSAGE_EXPIRED": "Give it more time with --expires-in.",
    "MAILBOX_FULL": "Wait until the agent has caught up: `bxmesh streams info`.",
    "HISTORY_TRIMMED": "Begin later.",
    "FUNCTION_NOT_FOUND": "`bxmesh functions list` shows what is there.",
    "DEFINITION_NOT_FOUND": "`bxmesh definitions list` shows what is there.",
    "EXECUTION_NOT_FOUND": "`bxmesh functions executions` shows what is there.",
    "RUN_NOT_FOUND": "`bxmesh chains list` shows what is there.",
    "CONVERSATION_NOT_FOUND": "`bxmesh conversation list` shows what is there.",
    "IMPORT_NOT_ALLOWED": "Do without it, or name it with --import where the sandbox has it.",
}


class Failure(click.ClickException):
    """A BxmeshError for people: what was wrong, what to do, the trace. Exit code 1."""

    exit_code = 1

    def __init__(self, error: BxmeshError) -> None:
        super().__init__(error.message)
        self.error = error

    def show(self, file: IO[Any] | None = None) -> None:
        """Writes the paragraph to stderr."""
        error = self.error
        lines = [f"Error: {error.message}", f"  reason: {error.reason}"]
        for field, description in error.field_violations:
            if description not in error.message:
                lines.append(f"  {field}: {description}")
        if remedy := (
            error.metadata.get("remedy")
            or _REMEDIES_BY_REASON.get(error.reason)
            or _REMEDIES.get(type(error))
        ):
            lines.append(f"  remedy: {remedy}")
        if error.retry_after is not None:
            lines.append(f"  try again in: {error.retry_after:g} s")
        if error.trace_id:
            lines.append(f"  trace: {error.trace_id}")
        click.echo("\n".join(lines), file=file, err=file is None)


class ServerMissing(click.ClickException):
    """Something that needs the server was asked of a client that was installed alone."""

    exit_code = 1

    def __init__(self, what: str, error: ModuleNotFoundError) -> None:
        super().__init__(
            f"{what} needs the server, and {error.name} is not installed.\n"
            f"  remedy: {INSTALL}, or give the address of a running mesh with --address."
        )
