"""How good each component is that a server works with."""

from bxmesh.server.health_report.report import Check, Examined, HealthReport
from bxmesh.server.health_report.service import HealthReportService

__all__ = ["Check", "Examined", "HealthReport", "HealthReportService"]
