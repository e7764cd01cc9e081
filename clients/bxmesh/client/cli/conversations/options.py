"""What commands around conversations share: who takes part, what is asked how, and which ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bxmesh.client.cli.values import CONTENT, LABEL, MOMENT
from bxmesh.client.conversations import ConversationFilter, ConversationOptions, Participant
from bxmesh.client.conversations.conversation import METHODS, STATES
from bxmesh.client.conversations.participants import PERSONALITIES
from bxmesh.client.definitions import ModelSettings
from bxmesh.client.errors import InvalidInput

__all__ = ["MESSAGE", "asking", "filtering"]

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    # Older clicks know no argument of it.
    _Type = click.ParamType

_SETTINGS = ("id", "personality", "weight", "temperature", "url")
_INSTRUCTIONS = ",instructions="


class _Message(_Type):
    """A text as it stands, in a file (@FILE), or on stdin (-)."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the text."""
        try:
            if value == "-":
                return sys.stdin.buffer.read().decode()
            return Path(value[1:]).read_text(encoding="utf-8") if value.startswith("@") else value
        except OSError as error:
            self.fail(f"{value[1:]} cannot be read: {error.strerror}", param, ctx)
        except UnicodeDecodeError:
            self.fail("it is not UTF-8 text", param, ctx)


class _Participant(_Type):
    """SOURCE[,NAME=VALUE]... and, at its end, ,instructions=TEXT."""

    name = "participant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the participant."""
        rest, _, instructions = value.partition(_INSTRUCTIONS)
        source, *pairs = rest.split(",")
        settings = dict(pair.partition("=")[::2] for pair in pairs)
        if unknown := settings.keys() - set(_SETTINGS):
            known = ", ".join((*_SETTINGS, "instructions"))
            self.fail(f"{value!r} has {sorted(unknown)[0]!r}: there are {known}", param, ctx)
        try:
            named = Participant.parse(source)
            PERSONALITIES.number(settings.get("personality"))
            return Participant(
                settings.get("id", ""),
                agent=named.agent,
                definition=named.definition,
                capability=named.capability,
                model=self._model(named.model, settings, value),
                personality=settings.get("personality"),
                instructions=instructions,
                weight=float(settings["weight"]) if "weight" in settings else None,
            )
        except InvalidInput as error:
            self.fail(error.message, param, ctx)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)

    def _model(
        self, model: ModelSettings | str | None, settings: dict[str, str], value: str
    ) -> ModelSettings | None:
        if not isinstance(model, ModelSettings):
            if given := settings.keys() & {"temperature", "url"}:
                self.fail(f"{value!r} is no model: it has no {sorted(given)[0]}")
            return None
        temperature = settings.get("temperature")
        return ModelSettings(
            model.model,
            base_url=settings.get("url", ""),
            temperature=None if temperature is None else float(temperature),
        )


MESSAGE, PARTICIPANT = _Message(), _Participant()

_ASKING = (
    click.option(
        "-p",
        "--participant",
        "participants",
        type=PARTICIPANT,
        multiple=True,
        help="Who answers: agent:NAME, definition:NAME, capability:NAME or model:NAME, with "
        ",id= ,personality= ,weight= ,temperature= ,url= and, last, ,instructions= behind it; "
        "repeatable.",
    ),
    click.option(
        "--agents",
        type=click.IntRange(1, 64),
        help="So many language models, instead of participants; 3.",
    ),
    click.option("--turns", type=click.IntRange(1, 100), help="So many turns; 1."),
    click.option("--method", type=click.Choice(METHODS.choices), help="How one answer is reached."),
    click.option("--judge", type=PARTICIPANT, help="Who decides, or breaks ties."),
    click.option("--quorum", type=click.IntRange(0, 64), help="So many must answer; over half."),
    click.option("--stop-confidence", type=click.FloatRange(0, 1), help="End when it is as sure."),
    click.option("--answer-schema", type=CONTENT, help="A JSON Schema: JSON, @FILE, or - (stdin)."),
    click.option("--max-duration", type=click.FloatRange(min=0, min_open=True), help="Seconds."),
    click.option(
        "--max-answer-duration",
        type=click.FloatRange(min=0, min_open=True),
        help="Seconds for an answer.",
    ),
    click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of all participants."),
    click.option("--title", help="A title for lists."),
    click.option("--label", "labels", type=LABEL, multiple=True, help="For your use; repeatable."),
    click.option("--visibility", type=click.Choice(("owner", "team", "all")), help="Who sees it."),
    click.option("--bundle", "bundle_ids", multiple=True, help="What it is about; repeatable."),
)
_FILTERING = (
    click.option(
        "--state",
        "states",
        type=click.Choice(STATES.choices),
        multiple=True,
        help="Its state; repeatable.",
    ),
    click.option("--label", "labels", type=LABEL, multiple=True, help="A label; repeatable."),
    click.option("--since", type=MOMENT, help="Not begun before: a time, or 2h for that ago."),
    click.option("--before", type=MOMENT, help="Begun before."),
    click.option("--owner", help="Begun by this identity."),
)


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Adds MESSAGE and what a conversation begins with; the command gets `message` and `options`."""

    @click.argument("message", type=MESSAGE)
    @click.option("--request-id", default="", help="The same again is the same conversation.")
    @wraps(command)
    def call(*arguments: Any, **others: Any) -> None:
        options = _taken(ConversationOptions, others)
        command(*arguments, options=options, **others)

    for option in reversed(_ASKING):
        call = option(call)
    return call


def filtering(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say which conversations; the command gets them as `which`."""

    @wraps(command)
    def call(*arguments: Any, **others: Any) -> None:
        which = _taken(ConversationFilter, others)
        command(*arguments, which=which, **others)

    for option in reversed(_FILTERING):
        call = option(call)
    return call


def _taken(kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Takes out of options those of a kind that were given."""
    taken = {name: options.pop(name) for name in kind.__annotations__ if name in options}
    if "labels" in taken:
        taken["labels"] = dict(taken["labels"])
    return {name: value for name, value in taken.items() if value not in (None, (), {})}
