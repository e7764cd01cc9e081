"""What a command is at, on stderr, and how long it was at it."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console

from bxmesh.client.values import Progress

__all__ = ["Phases"]


class Phases:
    """Measures phases one after the other and shows the one under way.

    On a terminal that is a line that changes, elsewhere a line for each phase; quiet is for
    commands whose output is read by programs, which show it on terminals only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("connecting")
        self._lines = not quiet and not self._console.is_terminal
        self._shown = ""
        self._phase = ""
        self._began = self._since = time.perf_counter()
        self.seconds: dict[str, float] = {}
        """Seconds per phase, and in total."""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        self.seconds["total"] = time.perf_counter() - self._began
        self._status.stop()

    def begin(self, phase: str) -> None:
        """Ends the phase under way and begins another."""
        self._end()
        self._phase = phase
        self._tell(phase)

    def show(self, progress: Progress) -> None:
        """Shows how far the calculation of this phase is."""
        text = f"{self._phase}: {progress.step.replace('_', ' ')}"
        if self._console.is_terminal and progress.samples_total > 1:
            text += f" {progress.samples_done}/{progress.samples_total}"
        self._tell(text)

    def _end(self) -> None:
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase.replace(" ", "_")] = now - self._since
        self._phase, self._since = "", now

    def _tell(self, text: str) -> None:
        if text == self._shown:
            return
        self._shown = text
        self._status.update(text)
        if self._lines:
            self._console.print(text, style="dim", markup=False)
