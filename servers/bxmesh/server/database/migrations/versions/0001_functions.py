"""Stored functions and their executions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "functions",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_functions"),
    )
    op.create_table(
        "function_versions",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("sort_key", sa.String(40), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("team", sa.String(128), nullable=False),
        sa.Column("function", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_function_versions"),
        sa.UniqueConstraint("name", "digest", name="uq_function_versions_name_digest"),
        sa.ForeignKeyConstraint(
            ["name"],
            ["functions.name"],
            name="fk_function_versions_functions",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "function_aliases",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("alias", sa.String(128), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("name", "alias", name="pk_function_aliases"),
        sa.ForeignKeyConstraint(
            ["name", "version"],
            ["function_versions.name", "function_versions.version"],
            name="fk_function_aliases_function_versions",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "executions",
        sa.Column("execution_id", sa.String(64), nullable=False),
        sa.Column("function_name", sa.String(128), nullable=False),
        sa.Column("function_version", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("durable", sa.Integer, nullable=False),
        sa.Column("end_time", sa.BigInteger, nullable=False),
        sa.Column("duration", sa.BigInteger, nullable=False),
        sa.Column("execution", sa.LargeBinary, nullable=False),
        sa.Column("printed", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("execution_id", name="pk_executions"),
    )
    for columns in (
        ["owner", "execution_id"],
        ["function_name", "execution_id"],
        ["function_name", "function_version", "duration"],
    ):
        op.create_index(f"ix_executions_{'_'.join(columns)}", "executions", columns)


def downgrade() -> None:
    """Drops them."""
    for table in ("executions", "function_aliases", "function_versions", "functions"):
        op.drop_table(table)
