"""The activity log: what happens in the mesh, as JSON Lines by kind and day."""

from bxmesh.server.activity.recorder import OFF, Activity
from bxmesh.server.activity.recording import recording

__all__ = ["OFF", "Activity", "recording"]
