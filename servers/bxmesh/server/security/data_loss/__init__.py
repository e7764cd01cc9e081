"""Data-loss prevention: what must not be sent is found, and taken out, held or refused."""

from .guard import ALL_PASS, QUARANTINED, DataGuard, Verdict
from .rules import complaints

__all__ = ["ALL_PASS", "QUARANTINED", "DataGuard", "Verdict", "complaints"]
