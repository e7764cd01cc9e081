"""The audit log: append-only, chained by keyed hashes, under signed checkpoints."""

from .log import AuditLog, StampedEvent
from .verification import Verdict

__all__ = ["AuditLog", "StampedEvent", "Verdict"]
