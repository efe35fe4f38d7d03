"""Keys of tenants, and what tenants used."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("is_admin", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
        sa.Column("note", sa.Text, nullable=False),
    )
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "usage",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("jobs", number, nullable=False),
        sa.Column("completed", number, nullable=False),
        sa.Column("failed", number, nullable=False),
        sa.Column("cancelled", number, nullable=False),
        sa.Column("prompt_tokens", number, nullable=False),
        sa.Column("output_tokens", number, nullable=False),
        sa.Column("llm_seconds", sa.Double, nullable=False),
        sa.Column("regular_seconds", sa.Double, nullable=False),
    )
