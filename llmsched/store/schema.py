"""The tables. What the newest migration leaves behind; a test compares the two.

Structured values are JSON in text columns, in both databases: nothing is searched inside them, and PostgreSQL's own
JSON type refuses the NUL characters that models do produce. Wide columns stand last: SQLite reads no further than it
has to.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

#: SQLite makes a column the key of the table itself only if its type is called INTEGER.
Number = BigInteger().with_variant(Integer, "sqlite")


def _of_job() -> Column[str]:
    return Column("job", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


applications = Table(
    "applications",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("deleted_at", Double),
    Column("definition", Text, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False),
    Column("application", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("job_class", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("submitted_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("has_recording", Boolean, nullable=False),
    Column("deadline_s", Double),
    Column("callback_url", Text),
    Column("idempotency_key", Text),
    Column("request_digest", Text),
    Column("off_profile", Text, nullable=False),
    Column("error", Text),
    Column("metadata", Text, nullable=False),
    Column("input", Text),
    Column("result", Text),
    UniqueConstraint("id", name="uq_jobs_id"),
)
Index("ix_jobs_status", jobs.c.status, jobs.c.number)
Index("ix_jobs_application", jobs.c.application, jobs.c.number)
Index("ix_jobs_tenant", jobs.c.tenant, jobs.c.number)
Index("ix_jobs_finished", jobs.c.finished_at)
_has_key = text("idempotency_key IS NOT NULL")
Index(
    "uq_jobs_idempotency",
    jobs.c.tenant,
    jobs.c.idempotency_key,
    unique=True,
    sqlite_where=_has_key,
    postgresql_where=_has_key,
)

recordings = Table(
    "recordings",
    metadata,
    _of_job(),
    Column("body", LargeBinary, nullable=False),  # the submitted JSON, zlib-compressed
)

stages = Table(
    "stages",
    metadata,
    _of_job(),
    Column("name", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("parent", Text),
    Column("iteration", Integer),
    Column("pool", Text, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double, nullable=False),
    Column("after", Text, nullable=False),
    Column("executors", Text, nullable=False),
    Column("results", Text, nullable=False),  # [[seconds, prompt tokens, output tokens], …]
    Column("tools", Text, nullable=False),
    Column("outputs", Text),
)

events = Table(
    "events",
    metadata,
    _of_job(),
    Column("seq", Number, primary_key=True, autoincrement=False),
    Column("type", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("data", Text, nullable=False),
)

#: What jobs' callback URLs are owed, and what became of that: the outbox of the webhooks.
callbacks = Table(
    "callbacks",
    metadata,
    _of_job(),
    Column("host", Text, nullable=False),
    Column("owed_at", Double, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("ended_at", Double),
    Column("error", Text),
)
Index("ix_callbacks_owed", callbacks.c.state, callbacks.c.host, callbacks.c.due_at)

#: Where the traces of jobs go on whose clients said so (W3C Trace Context).
traces = Table(
    "traces",
    metadata,
    _of_job(),
    Column("parent", Text, nullable=False),
    Column("state", Text, nullable=False),
)

#: What was learned of an application, newest number last.
profiles = Table(
    "profiles",
    metadata,
    Column("application", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),  # of the application
    Column("learned_at", Double, nullable=False),
    Column("jobs", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),  # the profile's JSON, zlib-compressed
)

#: Who may ask under which name, besides the keys of the settings. Revoked ones stay: whoever had keys wants them asked.
keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("digest", Text, nullable=False),  # SHA-256 of the whole key, in hexadecimal
    Column("is_admin", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("note", Text, nullable=False),
)

#: What tenants used, by day (of the unix epoch, UTC).
usage = Table(
    "usage",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("jobs", Number, nullable=False),
    Column("completed", Number, nullable=False),
    Column("failed", Number, nullable=False),
    Column("cancelled", Number, nullable=False),
    Column("prompt_tokens", Number, nullable=False),
    Column("output_tokens", Number, nullable=False),
    Column("llm_seconds", Double, nullable=False),
    Column("regular_seconds", Double, nullable=False),
)

#: One row: the gateway that leads, or did so last (see `lease.py`). Nobody leads a SQLite file: it has one gateway.
lease = Table(
    "lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("renewed_at", Double, nullable=False),
    Column("lasts", Double, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("session", Double, nullable=False),
    Column("active_jobs", Integer, nullable=False),
)

#: Jobs that another gateway than the leader accepted, until the leader takes them up.
arrivals = Table("arrivals", metadata, _of_job())
