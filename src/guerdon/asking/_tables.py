"""The tables of the reply store, as SQLAlchemy sees them and as they are made, step by step, on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

KEY_COLUMNS = ("question", "rater", "repeat")

_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up an INTEGER primary key only

metadata = sa.MetaData()
request = sa.Table(
    "request",
    metadata,
    sa.Column("question", sa.Text, primary_key=True),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Column("first_asked", sa.Float, nullable=False),
)
rater = sa.Table("rater", metadata, sa.Column("rater", sa.Text, primary_key=True), sa.Column("identity", sa.LargeBinary, nullable=False))
run = sa.Table(
    "run",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("first_seen", sa.Float, nullable=False),
    sa.Column("last_seen", sa.Float, nullable=False),
    sa.Column("charged", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
)
attempt = sa.Table(
    "attempt",
    metadata,
    sa.Column("id", _WHOLE, primary_key=True),
    sa.Column("question", sa.Text, nullable=False),
    sa.Column("rater", sa.Text, nullable=False),
    sa.Column("repeat", sa.Integer, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("cause", sa.Text),
    sa.Column("code", sa.Text),
    sa.Column("status", sa.Integer),
    sa.Column("input_tokens", _WHOLE),
    sa.Column("output_tokens", _WHOLE),
    sa.Column("dollars", sa.Float),
    sa.Column("thinking_tokens", _WHOLE),
    sa.Column("cached_tokens", _WHOLE),
    sa.Column("charged", sa.BigInteger, nullable=False),
)
answer = sa.Table(
    "answer",
    metadata,
    sa.Column("question", sa.Text, primary_key=True),
    sa.Column("rater", sa.Text, primary_key=True),
    sa.Column("repeat", sa.Integer, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("input_tokens", _WHOLE),
    sa.Column("output_tokens", _WHOLE),
    sa.Column("dollars", sa.Float),
    sa.Column("thinking_tokens", _WHOLE),
    sa.Column("cached_tokens", _WHOLE),
    sa.Column("digest", sa.Text),
)
claim = sa.Table(
    "claim",
    metadata,
    sa.Column("question", sa.Text, primary_key=True),
    sa.Column("rater", sa.Text, primary_key=True),
    sa.Column("repeat", sa.Integer, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("claimed", sa.Float, nullable=False),
    sa.Column("expiry", sa.Float, nullable=False),
    sa.Column("reserved", sa.BigInteger),
)
batch = sa.Table(
    "batch",
    metadata,
    sa.Column("batch", sa.Text, primary_key=True),
    sa.Column("rater", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("vendor_id", sa.Text),
)
batch_item = sa.Table(
    "batch_item",
    metadata,
    sa.Column("batch", sa.Text, primary_key=True),
    sa.Column("item", sa.Text, primary_key=True),
    sa.Column("question", sa.Text, nullable=False),
    sa.Column("repeat", sa.Integer, nullable=False),
)

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE request (
        question TEXT NOT NULL PRIMARY KEY,
        record BLOB NOT NULL,
        first_asked FLOAT NOT NULL
    );
    CREATE TABLE rater (
        rater TEXT NOT NULL PRIMARY KEY,
        identity BLOB NOT NULL
    );
    CREATE TABLE attempt (
        id INTEGER NOT NULL PRIMARY KEY,
        question TEXT NOT NULL, rater TEXT NOT NULL, repeat INTEGER NOT NULL,
        run TEXT NOT NULL, started FLOAT NOT NULL, seconds FLOAT NOT NULL,
        outcome TEXT NOT NULL, cause TEXT, code TEXT, status INTEGER,
        input_tokens INTEGER, output_tokens INTEGER, dollars FLOAT
    );
    CREATE INDEX attempt_final ON attempt (question, rater, repeat) WHERE outcome = 'final';
    CREATE INDEX attempt_run ON attempt (run);
    CREATE TABLE answer (
        question TEXT NOT NULL, rater TEXT NOT NULL, repeat INTEGER NOT NULL,
        body BLOB NOT NULL, model TEXT NOT NULL, seconds FLOAT NOT NULL,
        input_tokens INTEGER, output_tokens INTEGER, dollars FLOAT,
        PRIMARY KEY (question, rater, repeat)
    );
    CREATE TABLE claim (
        question TEXT NOT NULL, rater TEXT NOT NULL, repeat INTEGER NOT NULL,
        owner TEXT NOT NULL, token TEXT NOT NULL, expiry FLOAT NOT NULL, reserved_dollars FLOAT,
        PRIMARY KEY (question, rater, repeat)
    );
    """,
    """
    ALTER TABLE attempt ADD COLUMN thinking_tokens INTEGER;
    ALTER TABLE attempt ADD COLUMN cached_tokens INTEGER;
    ALTER TABLE attempt ADD COLUMN charged BIGINT NOT NULL DEFAULT 0;
    UPDATE attempt SET charged = CAST(dollars * 1e9 + 0.999 AS INTEGER) WHERE dollars > 0 AND dollars < 1e9;
    ALTER TABLE answer ADD COLUMN thinking_tokens INTEGER;
    ALTER TABLE answer ADD COLUMN cached_tokens INTEGER;
    ALTER TABLE answer ADD COLUMN digest TEXT;
    ALTER TABLE claim RENAME TO claim_of_format_1;
    CREATE TABLE claim (
        question TEXT NOT NULL, rater TEXT NOT NULL, repeat INTEGER NOT NULL,
        owner TEXT NOT NULL, run TEXT NOT NULL, claimed FLOAT NOT NULL, expiry FLOAT NOT NULL, reserved BIGINT,
        PRIMARY KEY (question, rater, repeat)
    );
    INSERT INTO claim SELECT question, rater, repeat, owner, '', expiry, expiry, NULL FROM claim_of_format_1;
    DROP TABLE claim_of_format_1;
    CREATE INDEX claim_owner ON claim (owner);
    CREATE INDEX attempt_lost ON attempt (question, rater, repeat) WHERE outcome = 'lost';
    CREATE TABLE run (
        run TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL, first_seen FLOAT NOT NULL, last_seen FLOAT NOT NULL,
        charged BIGINT NOT NULL, reserved BIGINT NOT NULL
    );
    INSERT INTO run SELECT run, '', min(started), max(started + seconds), sum(charged), 0 FROM attempt GROUP BY run;
    CREATE TABLE batch (
        batch TEXT NOT NULL PRIMARY KEY,
        rater TEXT NOT NULL, run TEXT NOT NULL, created FLOAT NOT NULL, size INTEGER NOT NULL,
        state TEXT NOT NULL, vendor_id TEXT
    );
    CREATE TABLE batch_item (
        batch TEXT NOT NULL, item TEXT NOT NULL, question TEXT NOT NULL, repeat INTEGER NOT NULL,
        PRIMARY KEY (batch, item)
    );
    """,
)
"""For SQLite: step k takes a store from format k to format k+1. A published step never changes; there is no way back."""

POSTGRESQL_MIGRATIONS: tuple[str, ...] = (
    "",  # the first format never existed on PostgreSQL
    """
    CREATE TABLE request (
        question TEXT NOT NULL PRIMARY KEY,
        record BYTEA NOT NULL,
        first_asked FLOAT NOT NULL
    );
    CREATE TABLE rater (
        rater TEXT NOT NULL PRIMARY KEY,
        identity BYTEA NOT NULL
    );
    CREATE TABLE run (
        run TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL, first_seen FLOAT NOT NULL, last_seen FLOAT NOT NULL,
        charged BIGINT NOT NULL, reserved BIGINT NOT NULL
    );
    CREATE TABLE attempt (
        id BIGINT NOT NULL GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
        question TEXT NOT NULL, rater TEXT NOT NULL, repeat INTEGER NOT NULL,
        run TEXT NOT NULL, started FLOAT NOT NULL, seconds FLOAT NOT NULL,
        outcome TEXT NOT NULL, cause TEXT, code TEXT, status INTEGER,
        input_tokens BIGINT, output_tokens BIGINT, dollars FLOAT, thinking_tokens BIGINT, cached_tokens BIGINT,
        charged BIGINT NOT NULL
    );
    CREATE INDEX attempt_final ON attempt (question, rater, repeat) WHERE outcome = 'final';
    CREATE INDEX attempt_lost ON attempt (question, rater, repeat) WHERE outcome = 'lost';
    CREATE INDEX attempt_run ON attempt (run);
    CREATE TABLE answer (
        question TEXT NOT NULL, rater TEXT NOT NULL, repeat INTEGER NOT NULL,
        body BYTEA NOT NULL, model TEXT NOT NULL, seconds FLOAT NOT NULL,
        input_tokens BIGINT, output_tokens BIGINT, dollars FLOAT, thinking_tokens BIGINT, cached_tokens BIGINT,
        digest TEXT,
        PRIMARY KEY (question, rater, repeat)
    );
    CREATE TABLE claim (
        question TEXT NOT NULL, rater TEXT NOT NULL, repeat INTEGER NOT NULL,
        owner TEXT NOT NULL, run TEXT NOT NULL, claimed FLOAT NOT NULL, expiry FLOAT NOT NULL, reserved BIGINT,
        PRIMARY KEY (question, rater, repeat)
    );
    CREATE INDEX claim_owner ON claim (owner);
    CREATE TABLE batch (
        batch TEXT NOT NULL PRIMARY KEY,
        rater TEXT NOT NULL, run TEXT NOT NULL, created FLOAT NOT NULL, size INTEGER NOT NULL,
        state TEXT NOT NULL, vendor_id TEXT
    );
    CREATE TABLE batch_item (
        batch TEXT NOT NULL, item TEXT NOT NULL, question TEXT NOT NULL, repeat INTEGER NOT NULL,
        PRIMARY KEY (batch, item)
    );
    """,
)
"""The same for PostgreSQL, step by step the same formats."""
