"""What is kept for good: functions, definitions and what came of them, in SQLite or PostgreSQL."""

from bxmesh.server.database.engine import Database, open_database

__all__ = ["Database", "open_database"]
