"""The activity log: what happens in the mesh, as JSON Lines by kind and day."""

from bxmesh.server.activity.keeper import recording
from bxmesh.server.activity.recorder import OFF, Activity

__all__ = ["OFF", "Activity", "recording"]
