"""What was learned of applications."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "profiles",
        sa.Column("application", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("learned_at", sa.Double, nullable=False),
        sa.Column("jobs", sa.Integer, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
