"""Checks of what people get stuck on, each with its remedy."""

from bxmesh.server.doctor.examination import examine
from bxmesh.server.doctor.findings import Finding, Level

__all__ = ["Finding", "Level", "examine"]
