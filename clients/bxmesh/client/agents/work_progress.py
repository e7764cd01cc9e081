"""How far many tasks are together."""

from __future__ import annotations

from dataclasses import dataclass, field

from bxmesh.client.agents.tasks import Task

__all__ = ["WorkProgress"]


@dataclass
class WorkProgress:
    """The figures of many tasks; they grow as the work goes on."""

    total: int | None
    """How many tasks there are in all; None while nobody knows."""
    tasks: dict[str, Task] = field(default_factory=dict, repr=False)
    """Those that were assigned and have not ended, as they stand."""
    completed: int = 0
    """Tasks with a result."""
    failed: int = 0
    """Tasks that failed, timed out or were cancelled."""
    by_agent: dict[str, int] = field(default_factory=dict)
    """Completed tasks per agent."""

    @property
    def done(self) -> int:
        """Tasks that have ended."""
        return self.completed + self.failed

    @property
    def running(self) -> int:
        """Tasks that an agent is at."""
        return sum(task.state == "running" for task in self.tasks.values())

    @property
    def fraction(self) -> float:
        """The part that is done, 0 to 1, what running tasks report of themselves included."""
        if not self.total:
            return 0.0
        begun = sum(task.progress.percent for task in self.tasks.values()) / 100
        return min((self.done + begun) / self.total, 1.0)

    def note(self, task: Task) -> None:
        """Takes in how a task stands."""
        if not task.done:
            self.tasks[task.task_id] = task
            return
        self.tasks.pop(task.task_id, None)
        if task.state == "completed":
            self.completed += 1
            self.by_agent[task.agent_id] = self.by_agent.get(task.agent_id, 0) + 1
        else:
            self.failed += 1
