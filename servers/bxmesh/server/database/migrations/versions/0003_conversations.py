"""Conversations, and what finds words in them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The index of words follows the messages in their own transactions, whoever writes them.
_SQLITE = (
    """
    CREATE VIRTUAL TABLE conversation_search USING fts5(
        words, sees, content='conversation_messages', content_rowid='message_id',
        tokenize="unicode61 remove_diacritics 0"
    )
    """,
    """
    CREATE TRIGGER conversation_search_insert AFTER INSERT ON conversation_messages BEGIN
        INSERT INTO conversation_search(rowid, words, sees)
        VALUES (new.message_id, new.words, new.sees);
    END
    """,
    """
    CREATE TRIGGER conversation_search_delete AFTER DELETE ON conversation_messages BEGIN
        INSERT INTO conversation_search(conversation_search, rowid, words, sees)
        VALUES ('delete', old.message_id, old.words, old.sees);
    END
    """,
    """
    CREATE TRIGGER conversation_search_update AFTER UPDATE OF words ON conversation_messages
    WHEN old.words <> new.words BEGIN
        INSERT INTO conversation_search(conversation_search, rowid, words, sees)
        VALUES ('delete', old.message_id, old.words, old.sees);
        INSERT INTO conversation_search(rowid, words, sees)
        VALUES (new.message_id, new.words, new.sees);
    END
    """,
)
_POSTGRESQL = (
    """
    CREATE TABLE conversation_search (
        message_id BIGINT PRIMARY KEY
            REFERENCES conversation_messages (message_id) ON DELETE CASCADE,
        words TSVECTOR NOT NULL,
        sees TSVECTOR NOT NULL
    )
    """,
    "CREATE INDEX conversation_search_words ON conversation_search USING gin (words, sees)",
    """
    CREATE FUNCTION conversation_search_write() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO conversation_search VALUES (
            NEW.message_id, to_tsvector('simple', NEW.words), to_tsvector('simple', NEW.sees)
        ) ON CONFLICT (message_id) DO UPDATE SET words = EXCLUDED.words;
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER conversation_search_write AFTER INSERT OR UPDATE OF words
    ON conversation_messages FOR EACH ROW EXECUTE FUNCTION conversation_search_write()
    """,
)


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "conversations",
        sa.Column("conversation_id", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("visibility", sa.Integer, nullable=False),
        sa.Column("team", sa.String(128), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("end_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("conversation", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", name="pk_conversations"),
    )
    op.create_table(
        "conversation_labels",
        sa.Column("conversation_id", sa.String(128), nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", "label", name="pk_conversation_labels"),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.conversation_id"],
            name="fk_conversation_labels_conversations",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "conversation_messages",
        sa.Column("message_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("conversation_id", sa.String(128), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("end_time", sa.BigInteger, nullable=False),
        sa.Column("duration", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("said", sa.LargeBinary, nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.Column("sees", sa.Text, nullable=False),
        sa.Column("vectors", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("message_id", name="pk_conversation_messages"),
        sa.UniqueConstraint(
            "conversation_id", "place", name="uq_conversation_messages_conversation_id_place"
        ),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.conversation_id"],
            name="fk_conversation_messages_conversations",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "conversation_removals",
        sa.Column("conversation_id", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", name="pk_conversation_removals"),
    )
    for table, columns in (
        ("conversations", ["create_time", "conversation_id"]),
        ("conversations", ["owner", "create_time", "conversation_id"]),
        ("conversations", ["state"]),
        ("conversations", ["end_time"]),
        ("conversations", ["expire_time"]),
        ("conversation_labels", ["label"]),
        ("conversation_messages", ["end_time"]),
        ("conversation_messages", ["vectors"]),
    ):
        op.create_index(f"ix_{table}_{'_'.join(columns)}", table, columns)
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    """Drops them."""
    op.drop_table("conversation_search")
    for table in (
        "conversation_removals",
        "conversation_messages",
        "conversation_labels",
        "conversations",
    ):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION conversation_search_write")
