"""Streams say whose they are, whether they are on legal hold, and up to where retention has deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("streams", sa.Column("tenant", sa.String(), nullable=False, server_default=""))
    op.add_column("streams", sa.Column("legal_hold", sa.String(), nullable=False, server_default=""))
    op.add_column(
        "streams", sa.Column("first_segment_no", sa.BigInteger(), nullable=False, server_default="0")
    )
