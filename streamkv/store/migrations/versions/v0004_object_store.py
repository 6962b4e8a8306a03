"""Segments say since when they are in the object store, and objects that are to go from there have a table."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("segments", sa.Column("uploaded_at", sa.Double(), nullable=False, server_default="0"))
    waiting = sa.text("uploaded_at = 0")
    op.create_index(
        "segments_waiting", "segments", ["committed_at"], sqlite_where=waiting, postgresql_where=waiting
    )
    op.create_table("removed_objects", sa.Column("path", sa.String(), primary_key=True, nullable=False))
