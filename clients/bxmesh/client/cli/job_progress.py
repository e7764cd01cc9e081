"""How far a job is, on stderr."""

from __future__ import annotations

from bxmesh.client.cli.task_progress import ChangingLine
from bxmesh.client.jobs import Job

__all__ = ["JobLine"]


class JobLine(ChangingLine):
    """What a job is at."""

    def show(self, job: Job) -> None:
        """Shows how far it is now."""
        text = job.state.replace("_", " ")
        if job.message.progress.worker_id:
            text += f" at {job.message.progress.worker_id}"
        if job.state == "running":
            text += f" {job.fraction_done:.0%} {job.step}".rstrip()
        self.say(text)
