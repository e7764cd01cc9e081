"""How far a task is, on stderr."""

from __future__ import annotations

from typing import Self

from rich.console import Console

from bxmesh.client.agents.tasks import Task

__all__ = ["ChangingLine", "TaskLine"]


class ChangingLine:
    """On a terminal a line that changes, elsewhere a line for each change."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("waiting")
        self._shown = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def say(self, text: str) -> None:
        """Shows a text in place of the one before."""
        if text == self._shown:
            return
        self._shown = text
        if self._console.is_terminal:
            self._status.update(text)
        else:
            self._console.print(text, style="dim", markup=False, soft_wrap=True)


class TaskLine(ChangingLine):
    """What a task is at."""

    def show(self, task: Task) -> None:
        """Shows how far it is now."""
        text = task.state.replace("_", " ")
        if task.agent_id:
            text += f" at {task.agent_id}"
        if task.progress.update_time and not task.done:
            text += f" {task.progress.percent:.0f}% {task.progress.message}".rstrip()
        self.say(text)
