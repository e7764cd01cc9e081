"""A piece of work of a definition: a message or a task, and for whom it is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message as Protobuf

from bxmesh.client.agents.messages import Message
from bxmesh.client.agents.payloads import PayloadMismatch
from bxmesh.client.agents.tasks import Task
from bxmesh.client.errors import NotFound
from bxmesh.client.host.failures import refused
from bxmesh.client.host.figures import AgentFigures

if TYPE_CHECKING:
    from bxmesh.client.mesh import AsyncMesh

__all__ = ["Reply", "Work", "plain", "sender_identity"]


class Reply(NamedTuple):
    """What comes out."""

    value: Any
    """The result of a task, the payload of a reply."""
    type: str = ""
    """The type of the reply to a message; empty for none."""


@dataclass(frozen=True)
class Work:
    """A message or a task in the hands of a definition's agent."""

    type: str
    """The type of the message or task."""
    payload: Any
    """What it carries, as JSON has it."""
    caller: str
    """The identity for which it is done."""
    work_id: str
    """The message's or task's name."""
    attempt: int
    """How often it was given to an agent, from 1."""
    figures: AgentFigures
    """Where it is counted."""
    task: Task | None = None
    """The task; None for a message."""
    tell: Callable[[str], Awaitable[None]] | None = None
    """Tells those who look on what is written of the result; None when nobody can."""
    comes_again: Callable[[], bool] = lambda: False
    """Whether, when it is cancelled now, it will be delivered again."""

    @property
    def parent_task_id(self) -> str:
        """The task that what it assigns is a child of; empty for a message."""
        return self.task.task_id if self.task else ""

    @property
    def depth(self) -> int:
        """How many tasks it is below."""
        return self.task.depth if self.task else 0

    @property
    def arguments(self) -> dict[str, Any]:
        """The payload as the arguments of a call. Raises PayloadMismatch."""
        if self.payload is None:
            return {}
        if not isinstance(self.payload, Mapping):
            raise PayloadMismatch("the payload must be an object, whose fields are arguments")
        return dict(self.payload)


def plain(value: Any) -> Any:
    """Returns a payload as JSON has it. Raises PayloadMismatch for a message of unknown type."""
    if isinstance(value, AnyMessage):
        raise PayloadMismatch(f"nobody here knows a {value.TypeName()}: send JSON")
    return json_format.MessageToDict(value) if isinstance(value, Protobuf) else value


async def sender_identity(mesh: AsyncMesh, message: Message) -> str:
    """Returns the identity that a message is from: its signer, its sender, or that of its sender.

    Raises FailedPrecondition when the agent that sent it may be another's by now.
    """
    if message.signed_by:
        return message.signed_by
    try:
        agent = await mesh.agent(message.sender)
    except NotFound:
        return message.sender
    if message.create_time is None or agent.register_time <= message.create_time:
        return agent.identity
    # Otherwise whoever takes the name of an agent that is gone would be asked for what that wanted.
    raise refused(
        "SENDER_CHANGED",
        f"{message.sender} has registered after it sent {message.id}: send it again",
    )
