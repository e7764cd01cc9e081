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
    literal,
)

__all__ = [
    "CHAIN_RUNS",
    "CHAIN_STEPS",
    "CONVERSATIONS",
    "CONVERSATION_LABELS",
    "CONVERSATION_MESSAGES",
    "CONVERSATION_REMOVALS",
    "COUNTERS",
    "DEFINITIONS",
    "DEFINITION_VERSIONS",
    "EXECUTIONS",
    "FUNCTIONS",
    "FUNCTION_ALIASES",
    "FUNCTION_VERSIONS",
    "METADATA",
    "OPEN_EXECUTION",
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
    # Bytes of all its versions.
    Column("size", BigInteger, nullable=False),
    Index(None, "owner"),
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
    Column("visibility", Integer, nullable=False),
    UniqueConstraint("name", "digest"),
    ForeignKeyConstraint(["name"], ["functions.name"], ondelete="CASCADE"),
)
"""Versions: `function` is an agent.v1.Function without its aliases and visibility."""

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
    # Bytes of these two.
    Column("size", BigInteger, nullable=False),
    Index(None, "owner", "execution_id", "state", "size"),
    Index(None, "function_name", "execution_id"),
    Index(None, "function_name", "function_version", "duration"),
)
"""Executions: `execution` is an agent.v1.Execution without what it printed."""

# The states that have not ended come first. As a literal, so that it is known for that of the index.
OPEN_EXECUTION = EXECUTIONS.c.state < literal(3, literal_execute=True)
"""Whether an execution has not ended."""
Index(
    "ix_executions_open",
    EXECUTIONS.c.owner,
    EXECUTIONS.c.execution_id,
    sqlite_where=OPEN_EXECUTION,
    postgresql_where=OPEN_EXECUTION,
)

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
    # Bytes of all its versions.
    Column("size", BigInteger, nullable=False),
    Index(None, "revision"),
    Index(None, "owner"),
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
    # Bytes of the run with its steps, when it has ended.
    Column("size", BigInteger, nullable=False),
    Index(None, "owner", "run_id", "state", "size"),
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

CONVERSATIONS = Table(
    "conversations",
    METADATA,
    Column("conversation_id", String(128), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("visibility", Integer, nullable=False),
    # Who sees it besides; empty for no team.
    Column("team", String(128), nullable=False),
    Column("state", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    # Microseconds since 1970; 0 for not yet, or never.
    Column("create_time", BigInteger, nullable=False),
    Column("end_time", BigInteger, nullable=False),
    Column("expire_time", BigInteger, nullable=False),
    Column("conversation", LargeBinary, nullable=False),
    Index(None, "create_time", "conversation_id"),
    Index(None, "owner", "create_time", "conversation_id"),
    Index(None, "state"),
    Index(None, "end_time"),
    Index(None, "expire_time"),
)
"""Conversations: `conversation` is an agent.v1.Conversation without its turns."""

CONVERSATION_LABELS = Table(
    "conversation_labels",
    METADATA,
    Column("conversation_id", String(128), primary_key=True),
    # The digest of name and value, which may be longer than an index takes.
    Column("label", String(64), primary_key=True),
    ForeignKeyConstraint(
        ["conversation_id"], ["conversations.conversation_id"], ondelete="CASCADE"
    ),
    Index(None, "label"),
)
"""Their labels."""

CONVERSATION_MESSAGES = Table(
    "conversation_messages",
    METADATA,
    Column("message_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("conversation_id", String(128), nullable=False),
    # 0 for the question, then what was said in order.
    Column("place", Integer, nullable=False),
    # The conversation's revision in which it changed last.
    Column("revision", BigInteger, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("model", Text, nullable=False),
    # Microseconds since 1970, and in between; -1 for a duration that is not known.
    Column("end_time", BigInteger, nullable=False),
    Column("duration", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("said", LargeBinary, nullable=False),
    # What is searched, and who may find it: a table apart, kept by triggers, indexes both.
    Column("words", Text, nullable=False),
    Column("sees", Text, nullable=False),
    # The name of the vectors that it has; empty for none yet.
    Column("vectors", String(64), nullable=False),
    UniqueConstraint("conversation_id", "place"),
    ForeignKeyConstraint(
        ["conversation_id"], ["conversations.conversation_id"], ondelete="CASCADE"
    ),
    Index(None, "end_time"),
    Index(None, "vectors"),
)
"""What was said: `said` is an agent.v1.Turn; that of the question has its text only."""

CONVERSATION_REMOVALS = Table(
    "conversation_removals",
    METADATA,
    Column("conversation_id", String(128), primary_key=True),
)
"""Conversations that are gone here, and whose vectors are still to go."""
