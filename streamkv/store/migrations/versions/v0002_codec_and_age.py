"""Segments say their codec and when they were committed; those of before are as old as their stream."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("segments", sa.Column("codec", sa.String(), nullable=False, server_default="raw"))
    op.add_column("segments", sa.Column("committed_at", sa.Double(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE segments SET committed_at ="
        " (SELECT created_at FROM streams WHERE streams.id = segments.stream_id)"
    )
