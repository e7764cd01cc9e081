"""How much everything takes, and who sees functions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from bxmesh.agent.v1.function_pb2 import Function

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SIZES = {
    "functions": "SELECT coalesce(sum(length(v.function)), 0) FROM function_versions v "
    "WHERE v.name = functions.name",
    "definitions": "SELECT coalesce(sum(length(v.definition)), 0) FROM definition_versions v "
    "WHERE v.definition_id = definitions.definition_id",
    "executions": "length(execution) + length(printed)",
    "chain_runs": "length(run) + (SELECT coalesce(sum(length(s.step)), 0) FROM chain_steps s "
    "WHERE s.run_id = chain_runs.run_id)",
}
_IDS = {"executions": "execution_id", "chain_runs": "run_id"}


def upgrade() -> None:
    """Adds columns and indexes, and fills them in."""
    for table, size in _SIZES.items():
        op.add_column(
            table, sa.Column("size", sa.BigInteger, nullable=False, server_default=sa.text("0"))
        )
        op.execute(f"UPDATE {table} SET size = ({size})")
    op.add_column(
        "function_versions",
        sa.Column("visibility", sa.Integer, nullable=False, server_default=sa.text("0")),
    )
    _fill_visibility()
    for table in ("functions", "definitions"):
        op.create_index(f"ix_{table}_owner", table, ["owner"])
    for table, name in _IDS.items():
        op.drop_index(f"ix_{table}_owner_{name}", table)
        op.create_index(
            f"ix_{table}_owner_{name}_state_size", table, ["owner", name, "state", "size"]
        )
    is_open = sa.text("state < 3")
    op.create_index(
        "ix_executions_open",
        "executions",
        ["owner", "execution_id"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )


def _fill_visibility() -> None:
    connection = op.get_bind()
    table = sa.table(
        "function_versions",
        sa.column("name"),
        sa.column("version"),
        sa.column("function", sa.LargeBinary),
        sa.column("visibility"),
    )
    of = table.c
    for row in connection.execute(sa.select(of.name, of.version)).all():
        one = (of.name == row.name) & (of.version == row.version)
        # One after another: they may be large.
        data = connection.execute(sa.select(of.function).where(one)).scalar_one()
        visibility = int(Function.FromString(data).visibility)
        connection.execute(sa.update(table).where(one).values(visibility=visibility))


def downgrade() -> None:
    """Removes them; functions are seen as they were when this began."""
    op.drop_index("ix_executions_open", "executions")
    for table, name in _IDS.items():
        op.drop_index(f"ix_{table}_owner_{name}_state_size", table)
        op.create_index(f"ix_{table}_owner_{name}", table, ["owner", name])
    for table in ("functions", "definitions"):
        op.drop_index(f"ix_{table}_owner", table)
    op.drop_column("function_versions", "visibility")
    for table in _SIZES:
        op.drop_column(table, "size")
