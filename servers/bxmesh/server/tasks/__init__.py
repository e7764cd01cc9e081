"""Tasks: pieces of work that are given to agents and followed to their end."""

from bxmesh.server.tasks.mechanism import Tasks
from bxmesh.server.tasks.options import TaskOptions
from bxmesh.server.tasks.store import TaskStore

__all__ = ["TaskOptions", "TaskStore", "Tasks"]
