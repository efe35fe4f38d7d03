"""Where the traces of jobs go on."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "traces",
        sa.Column("job", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("parent", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
    )
