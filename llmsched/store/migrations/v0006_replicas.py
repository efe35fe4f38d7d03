"""Several gateways on one database: who leads, and jobs that the leader has not heard of."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    lease = op.create_table(
        "lease",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("renewed_at", sa.Double, nullable=False),
        sa.Column("lasts", sa.Double, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("session", sa.Double, nullable=False),
        sa.Column("active_jobs", sa.Integer, nullable=False),
    )
    nobody = {"id": 1, "epoch": 0, "holder": "", "url": "", "secret": "", "renewed_at": 0.0, "lasts": 0.0}
    op.bulk_insert(lease, [nobody | {"pid": 0, "session": 0.0, "active_jobs": 0}])
    job = sa.ForeignKey("jobs.id", ondelete="CASCADE")
    op.create_table("arrivals", sa.Column("job", sa.Text, job, primary_key=True))
    op.drop_table("services")
