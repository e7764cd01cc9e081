"""Definitions of agents, and runs of chains."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "counters",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    op.create_table(
        "definitions",
        sa.Column("definition_id", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("newest_version", sa.Integer, nullable=False),
        sa.Column("active_version", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.Integer, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("definition_id", name="pk_definitions"),
    )
    op.create_index("ix_definitions_revision", "definitions", ["revision"])
    op.create_table(
        "definition_versions",
        sa.Column("definition_id", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("definition", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("definition_id", "version", name="pk_definition_versions"),
        sa.ForeignKeyConstraint(
            ["definition_id"],
            ["definitions.definition_id"],
            name="fk_definition_versions_definitions",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "chain_runs",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("definition_id", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("run", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_chain_runs"),
    )
    op.create_index("ix_chain_runs_owner_run_id", "chain_runs", ["owner", "run_id"])
    op.create_index("ix_chain_runs_owner_state", "chain_runs", ["owner", "state"])
    op.create_index("ix_chain_runs_definition_id_run_id", "chain_runs", ["definition_id", "run_id"])
    op.create_table(
        "chain_steps",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("step", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "place", name="pk_chain_steps"),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["chain_runs.run_id"],
            name="fk_chain_steps_chain_runs",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    """Drops them."""
    for table in ("chain_steps", "chain_runs", "definition_versions", "definitions", "counters"):
        op.drop_table(table)
