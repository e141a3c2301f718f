"""The ledger's tables, the same on SQLite and PostgreSQL."""

import sqlalchemy as sa

metadata = sa.MetaData()

meta = sa.Table("meta", metadata, sa.Column("schema_version", sa.Integer, primary_key=True))

# The columns are the fields of LedgerRow.
responses = sa.Table(
    "responses",
    metadata,
    sa.Column("request_hash", sa.String(64), primary_key=True),
    sa.Column("prompt_hash", sa.String(64), nullable=False),
    sa.Column("teacher_id", sa.String(64), nullable=False),
    sa.Column("teacher", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("finish_reason", sa.Text),
    sa.Column("max_new_tokens", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger),
    sa.Column("completion_tokens", sa.BigInteger),
    sa.Column("billed_prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("billed_completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Double),
    sa.Column("currency", sa.Text),
    sa.Column("model_reported", sa.Text),
    sa.Column("latency_s", sa.Double, nullable=False),
    sa.Column("attempts", sa.BigInteger, nullable=False),
    sa.Column("failed_runs", sa.BigInteger, nullable=False),
    sa.Column("repaired", sa.Boolean, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    # The newest rows of a teacher tell what its next ones will cost.
    sa.Index("ix_responses_teacher_created", "teacher_id", "created_at"),
)

# Who is at work now. An owner that has not been heard of at `expires_at` is taken for dead.
owners = sa.Table(
    "owners",
    metadata,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("process", sa.Text, nullable=False),
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("endpoint", sa.Text),
    sa.Column("expires_at", sa.Double, nullable=False),
)

# Which owner is asking for what. Void without its owner.
claims = sa.Table(
    "claims",
    metadata,
    sa.Column("request_hash", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
)

spending = sa.Table(
    "spending",
    metadata,
    sa.Column("purpose", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Double, nullable=False),
)

# One row per transaction that adds up figures, written in it: whether it was committed, where the
# answer to COMMIT was lost. Transaction numbers cannot tell: a server that crashes gives those out
# again that it had not written down.
receipts = sa.Table(
    "receipts",
    metadata,
    sa.Column("receipt", sa.String(32), primary_key=True),
    sa.Column("created_at", sa.Double, nullable=False),
)
