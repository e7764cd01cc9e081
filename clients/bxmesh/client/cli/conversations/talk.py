"""A conversation as people read it while it is held."""

from __future__ import annotations

from collections.abc import Iterator

import click

from bxmesh.client.cli.functions.options import harmless
from bxmesh.client.cli.values import age, counted, shown
from bxmesh.client.conversations import Consensus, Conversation, ConversationEvent, Turn

__all__ = ["Talk", "agreed", "bar", "said"]

_BAR = 20
_WIDTH = 88


class Talk:
    """Tells events on stdout: who says what while it is written, a line at a time."""

    def __init__(self) -> None:
        self._width = 0
        self._turn = 0
        self._begun = False
        self._lines: dict[str, str] = {}
        self._written: dict[str, str] = {}

    def tell(self, event: ConversationEvent) -> None:
        """Tells one event."""
        if event.started is not None:
            self._begin(event.started)
        elif event.delta is not None:
            self._write(event.delta.turn, event.delta.participant_id, event.delta.text)
        elif event.answered is not None:
            self._answer(event.answered)
        elif event.left is not None:
            reason = harmless(event.left.reason.message)
            click.echo(f"{event.left.participant_id} is left out: {reason}")
        elif event.consensus is not None:
            click.echo(f"── consensus after turn {event.consensus.turn}")
            click.echo("\n".join(agreed(event.consensus)))
        elif event.turn_ended is not None:
            click.echo(f"── turn {event.turn_ended} is over")
        elif event.ended is not None:
            self._end(event.ended)

    def _begin(self, conversation: Conversation) -> None:
        self._begun = True
        self._width = max((len(one.id) for one in conversation.participants), default=0)
        asked = [turn.text for turn in conversation.turns if not turn.participant_id]
        question = harmless((asked or [conversation.question])[-1])
        click.echo(f"{conversation.conversation_id} begins: {question}")
        click.echo(", ".join(f"{one.id} ({one.source})" for one in conversation.participants))

    def _write(self, turn: int, name: str, text: str) -> None:
        self._head(turn)
        self._written[name] = self._written.get(name, "") + text
        *lines, rest = (self._lines.pop(name, "") + text).split("\n")
        # Others write at the same time, so what is told is a line, or what is as long as one.
        while len(rest) > _WIDTH:
            cut = rest.rfind(" ", 0, _WIDTH) + 1 or _WIDTH
            lines.append(rest[:cut])
            rest = rest[cut:]
        for line in lines:
            self._line(name, line)
        if rest:
            self._lines[name] = rest

    def _answer(self, answer: Turn) -> None:
        name = answer.participant_id
        self._head(answer.turn)
        written = self._written.pop(name, "")
        if answer.error is None and answer.text.startswith(written):
            self._write(answer.turn, name, answer.text[len(written) :])
        elif answer.error is None:
            self._write(answer.turn, name, f"\n{answer.text}")
        self._written.pop(name, None)
        if rest := self._lines.pop(name, ""):
            self._line(name, rest)
        for line in _notes(answer):
            self._line(name, f"  {line}")

    def _end(self, conversation: Conversation) -> None:
        if not self._begun:
            # Of one that ended a while ago this is all that is told.
            self._begin(conversation)
            for turn in conversation.turns:
                if turn.error is None:
                    self._answer(turn)
                else:
                    click.echo(f"{turn.participant_id}: {harmless(turn.error.message)}")
            if conversation.consensus is not None:
                click.echo("\n".join(agreed(conversation.consensus)))
        took = "" if conversation.duration is None else f" in {age(conversation.duration)}"
        problem = f": {harmless(conversation.error.message)}" if conversation.error else ""
        click.echo(f"{conversation.state}{took}{problem}")

    def _head(self, turn: int) -> None:
        if turn != self._turn:
            self._turn = turn
            click.echo(f"── turn {turn}")

    def _line(self, name: str, text: str) -> None:
        click.echo(f"{name or '?':{self._width}} │ {harmless(text.rstrip())}".rstrip())


def said(answer: Turn) -> str:
    """Returns an answer for a table: its text, or why there is none."""
    if answer.error is not None:
        return f"{answer.error.reason}: {answer.error.message}"
    return " ".join(answer.text.split())


def agreed(consensus: Consensus) -> Iterator[str]:
    """Yields the lines that tell a consensus: how sure it is, who said what, what it rests on."""
    yield f"{bar(consensus.confidence)} {consensus.confidence:4.0%} sure: {_words(consensus)}"
    for group in consensus.groups if len(consensus.groups) > 1 else ():
        names = ", ".join(group.participant_ids)
        yield f"{bar(group.share)} {group.share:4.0%} {names}: {harmless(_short(group.answer))}"
    if consensus.spread is not None:
        yield f"spread {consensus.spread:g}"
    if consensus.tie_break:
        yield f"a tie was broken by {consensus.tie_break.replace('_', ' ')}"
    for one in consensus.evidence:
        yield f"evidence {harmless(one)}"


def bar(part: float) -> str:
    """Returns a bar of which a part from 0 to 1 is full."""
    full = round(_BAR * min(1.0, max(0.0, part)))
    return "█" * full + "░" * (_BAR - full)


def _words(consensus: Consensus) -> str:
    return harmless(consensus.text or _short(consensus.answer))


def _short(answer: object) -> str:
    return " ".join(answer.split()) if isinstance(answer, str) else shown(answer)


def _notes(answer: Turn) -> Iterator[str]:
    notes = []
    if answer.answer is not None and answer.answer != answer.text:
        notes.append(f"answer {_short(answer.answer)}")
    if answer.confidence is not None:
        notes.append(f"{answer.confidence:.0%} sure")
    if tokens := answer.input_tokens + answer.output_tokens:
        notes.append(f"{counted(tokens, 'token')} of {answer.model or 'a model'}")
    if notes:
        yield "→ " + ", ".join(notes)
