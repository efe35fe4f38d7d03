"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _of_job() -> "sa.Column[str]":
    return sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


def upgrade() -> None:
    op.create_table(
        "applications",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("deleted_at", sa.Double),
        sa.Column("definition", sa.Text, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("number", _number, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("application", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("job_class", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("submitted_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("has_recording", sa.Boolean, nullable=False),
        sa.Column("deadline_s", sa.Double),
        sa.Column("callback_url", sa.Text),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("request_digest", sa.Text),
        sa.Column("off_profile", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("input", sa.Text),
        sa.Column("result", sa.Text),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
    )
    op.create_index("ix_jobs_status", "jobs", ["status", "number"])
    op.create_index("ix_jobs_application", "jobs", ["application", "number"])
    op.create_index("ix_jobs_tenant", "jobs", ["tenant", "number"])
    op.create_index("ix_jobs_finished", "jobs", ["finished_at"])
    has_key = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "uq_jobs_idempotency",
        "jobs",
        ["tenant", "idempotency_key"],
        unique=True,
        sqlite_where=has_key,
        postgresql_where=has_key,
    )
    op.create_table("recordings", _of_job(), sa.Column("body", sa.LargeBinary, nullable=False))
    op.create_table(
        "stages",
        _of_job(),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("parent", sa.Text),
        sa.Column("iteration", sa.Integer),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        sa.Column("executors", sa.Text, nullable=False),
        sa.Column("results", sa.Text, nullable=False),
        sa.Column("tools", sa.Text, nullable=False),
        sa.Column("outputs", sa.Text),
    )
    op.create_table(
        "events",
        _of_job(),
        sa.Column("seq", _number, primary_key=True, autoincrement=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_table(
        "services",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("since", sa.Double, nullable=False),
    )
