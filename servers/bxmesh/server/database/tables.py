"""Every table. What a row is asked for has a column; the rest is the contract's message in it."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = [
    "EXECUTIONS",
    "FUNCTIONS",
    "FUNCTION_ALIASES",
    "FUNCTION_VERSIONS",
    "METADATA",
]

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

FUNCTIONS = Table(
    "functions",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("owner", String(128), nullable=False),
)
"""The names that are taken, and by whom."""

FUNCTION_VERSIONS = Table(
    "function_versions",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("version", String(32), primary_key=True),
    # Sorts as versions do.
    Column("sort_key", String(40), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("team", String(128), nullable=False),
    Column("function", LargeBinary, nullable=False),
    UniqueConstraint("name", "digest"),
    ForeignKeyConstraint(["name"], ["functions.name"], ondelete="CASCADE"),
)
"""Versions: `function` is an agent.v1.Function without its aliases."""

FUNCTION_ALIASES = Table(
    "function_aliases",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("alias", String(128), primary_key=True),
    Column("version", String(32), nullable=False),
    ForeignKeyConstraint(
        ["name", "version"],
        ["function_versions.name", "function_versions.version"],
        ondelete="CASCADE",
    ),
)
"""Names of versions, `latest` among them."""

EXECUTIONS = Table(
    "executions",
    METADATA,
    # Ids grow with time.
    Column("execution_id", String(64), primary_key=True),
    Column("function_name", String(128), nullable=False),
    Column("function_version", String(32), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("state", Integer, nullable=False),
    Column("durable", Integer, nullable=False),
    # Microseconds since 1970, and in between.
    Column("end_time", BigInteger, nullable=False),
    Column("duration", BigInteger, nullable=False),
    Column("execution", LargeBinary, nullable=False),
    Column("printed", Text, nullable=False),
    Index(None, "owner", "execution_id"),
    Index(None, "function_name", "execution_id"),
    Index(None, "function_name", "function_version", "duration"),
)
"""Executions: `execution` is an agent.v1.Execution without what it printed."""
