"""How a run of a chain goes, on stderr."""

from __future__ import annotations

from bxmesh.client.chains import ChainChange, StepRun
from bxmesh.client.cli.functions.options import harmless
from bxmesh.client.cli.task_progress import ChangingLine
from bxmesh.client.cli.values import age, moment

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
    words = step.state.replace("_", " ")
    if step.duration is not None:
        words += f" in {age(step.duration)}"
    if step.attempts > 1:
        words += f", {step.attempts} attempts"
    return f"{words} by {step.agent_id}" if step.agent_id else words


def told(change: ChainChange) -> str:
    """Returns a change as a line."""
    if change.run is not None:
        run = change.run
        time, error = run.end_time or run.create_time, run.error
        words = f"the run {run.state.replace('_', ' ')}"
    else:
        step = change.step
        assert step is not None, "a change is of the run or of a step"
        time, error = step.end_time or step.start_time, step.error
        words = f"{step.step_id} {course(step)}"
    return f"{moment(time):25}  {words}" + (f": {harmless(error.message)}" if error else "")
