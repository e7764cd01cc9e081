"""How conversations are continued and followed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from bxmesh.server.http.models.base import Asked, Integer
from bxmesh.server.http.models.conversations import ChatRequest

__all__ = ["COMMANDS", "Authenticate", "Begin", "Cancel", "ChatBody", "Continue", "StreamRequest"]

_Revision = Annotated[Integer, Field(ge=0, le=2**63 - 1)]


class ChatBody(ChatRequest):
    """A question, who answers it, and how long to wait."""

    wait: float | None = Field(default=None, ge=0, le=86400)
    """How long to wait for its end, in seconds; left out means as long as the gateway lets anybody."""


class StreamRequest(Asked):
    """What of a conversation is followed, and how it goes on."""

    message: str = Field(default="", max_length=262_144)
    """The next question, for a conversation that has ended; empty to follow what is under way."""
    turns: Integer = Field(default=0, ge=0, le=100)
    """How many turns the next question gets; 0 means as many as before."""
    after_revision: _Revision = 0
    """Only events after this revision; 0 means all. With a question it means all of its answer."""
    omit_deltas: bool = False
    """Whether to leave out the pieces of answers that are being written."""


class Authenticate(Asked):
    """Says who it is, for who can send no header: the first message."""

    type: Literal["authenticate"]
    token: str = Field(min_length=1, max_length=4096)
    """A key or token."""


class Begin(ChatRequest):
    """Begins a conversation; for a socket that is of none yet."""

    type: Literal["begin"]


class Continue(Asked):
    """Asks the next question of a conversation that has ended."""

    type: Literal["message"]
    message: str = Field(min_length=1, max_length=262_144)
    """The question."""
    turns: Integer = Field(default=0, ge=0, le=100)
    """How many turns; 0 means as many as before."""


class Cancel(Asked):
    """Cancels the conversation."""

    type: Literal["cancel"]


Command = Annotated[Authenticate | Begin | Continue | Cancel, Field(discriminator="type")]

COMMANDS: TypeAdapter[Authenticate | Begin | Continue | Cancel] = TypeAdapter(Command)
"""What may be sent over a web socket."""
