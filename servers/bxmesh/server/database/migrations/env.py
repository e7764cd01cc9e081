"""What Alembic runs: always on the connection that it is given."""

from __future__ import annotations

from alembic import context

from bxmesh.server.database.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
)
context.run_migrations()
