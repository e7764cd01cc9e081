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
    "CHAIN_RUNS",
    "CHAIN_STEPS",
    "COUNTERS",
    "DEFINITIONS",
    "DEFINITION_VERSIONS",
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

COUNTERS = Table(
    "counters",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Numbers that only grow. Who counts on keeps others waiting until its transaction ends, so that
what they number is seen in their order."""

DEFINITIONS = Table(
    "definitions",
    METADATA,
    Column("definition_id", String(128), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("state", Integer, nullable=False),
    Column("newest_version", Integer, nullable=False),
    # 0 for none.
    Column("active_version", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    # Stays for those who follow changes.
    Column("deleted", Integer, nullable=False),
    # Microseconds since 1970.
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Index(None, "revision"),
)
"""Definitions of agents, deleted ones too."""

DEFINITION_VERSIONS = Table(
    "definition_versions",
    METADATA,
    Column("definition_id", String(128), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("definition", LargeBinary, nullable=False),
    ForeignKeyConstraint(["definition_id"], ["definitions.definition_id"], ondelete="CASCADE"),
)
"""What they say: `definition` is a registry.v1.AgentDefinition without what the table above has."""

CHAIN_RUNS = Table(
    "chain_runs",
    METADATA,
    # Ids grow with time.
    Column("run_id", String(64), primary_key=True),
    Column("definition_id", String(128), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("state", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("run", LargeBinary, nullable=False),
    Index(None, "owner", "run_id"),
    Index(None, "owner", "state"),
    Index(None, "definition_id", "run_id"),
)
"""Runs of chains: `run` is an agent.v1.ChainRun without its steps."""

CHAIN_STEPS = Table(
    "chain_steps",
    METADATA,
    Column("run_id", String(64), primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("step", LargeBinary, nullable=False),
    ForeignKeyConstraint(["run_id"], ["chain_runs.run_id"], ondelete="CASCADE"),
)
"""Their steps, in the chain's order: `step` is an agent.v1.StepRun."""
