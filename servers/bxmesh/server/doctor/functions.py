"""What stored functions need: the database, and something that executes them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bxmesh.server.database.engine import look_at, shown_url
from bxmesh.server.doctor.findings import Finding, fail, ok
from bxmesh.server.functions.container import find_container
from bxmesh.server.settings import Settings

__all__ = ["check_database", "check_functions"]


def check_database(settings: Settings) -> list[Finding]:
    """Looks whether the database can be reached."""
    shown = shown_url(settings.database)
    if settings.database.startswith("sqlite:///"):
        path = Path(settings.database.removeprefix("sqlite:///"))
        if not path.exists():
            return [ok("database", f"{path} will be made")]
    try:
        asyncio.run(look_at(settings.database))
    except (OSError, ValueError) as error:
        remedy = "Set --database-url (BXMESH_DATABASE_URL) right, or leave it out for SQLite."
        return [fail("database", f"{shown} cannot be used: {error}", remedy)]
    return [ok("database", f"{shown} answers")]


def check_functions(settings: Settings) -> list[Finding]:
    """Looks what can execute functions."""
    if find_container() is not None:
        return [ok("functions", "in the sandbox, and as full Python in containers (bubblewrap)")]
    return [ok("functions", "in the sandbox; bubblewrap for full Python is not here")]
