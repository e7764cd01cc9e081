"""How a run of a chain goes, on stderr."""

from __future__ import annotations

from datetime import datetime

from bxmesh.client.chains import ChainChange, StepRun
from bxmesh.client.cli.functions.options import harmless
from bxmesh.client.cli.task_progress import ChangingLine
from bxmesh.client.cli.values import age, moment
from bxmesh.client.errors import BxmeshError

__all__ = ["ChainLine", "course", "told"]


class ChainLine(ChangingLine):
    """What a run is at: how many steps have ended, and which are under way."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: dict[str, StepRun] = {}

    def show(self, change: ChainChange) -> None:
        """Shows how it stands after a change."""
        if change.run is not None:
            self._steps = {step.step_id: step for step in change.run.steps}
        if change.step is not None:
            self._steps[change.step.step_id] = change.step
        steps = self._steps.values()
        ended = [step for step in steps if step.state not in ("pending", "running")]
        running = [step.step_id for step in steps if step.state == "running"]
        text = f"{len(ended)} of {len(steps)} steps"
        self.say(f"{text}, at {', '.join(running)}" if running else text)


def course(step: StepRun) -> str:
    """Returns where a step stands in words: its state, time, attempts, and who does it."""
    words = _words(step.state)
    if step.duration is not None:
        words += f" in {age(step.duration)}"
    if step.attempts > 1:
        words += f", {step.attempts} attempts"
    return f"{words} by {step.agent_id}" if step.agent_id else words


def told(change: ChainChange, *, first: bool) -> list[str]:
    """Returns a change as lines. The first tells what has ended already, too."""
    if change.run is None:
        assert change.step is not None, "a change is of the run or of a step"
        return [_of_step(change.step)]
    run = change.run
    line = _line(run.end_time or run.create_time, f"the run {_words(run.state)}", run.error)
    ended = [step for step in run.steps if first and step.state not in ("pending", "running")]
    return [*map(_of_step, ended), line]


def _of_step(step: StepRun) -> str:
    words = f"{step.step_id} {course(step)}"
    return _line(step.end_time or step.start_time, words, step.error)


def _line(time: datetime | None, words: str, error: BxmeshError | None) -> str:
    return f"{moment(time):25}  {words}" + (f": {harmless(error.message)}" if error else "")


def _words(state: str) -> str:
    return state.replace("_", " ")
