"""The tables' way from one version to the next, and back."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

__all__ = ["downgrade", "upgrade"]

# It tells every step of its way, of which there is nothing to say when all goes well.
logging.getLogger("alembic").setLevel(logging.WARNING)

_FOLDER = Path(__file__).parent / "migrations"
# Any number that nobody else locks.
_LOCK = 0x62786D657368


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Brings the tables to a revision, by default the newest, within the connection's transaction;
    several servers that start at once do it one after another."""
    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str = "base") -> None:
    """Takes the tables back to a revision, by default to none at all; what they held is lost."""
    command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
