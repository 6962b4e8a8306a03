"""Streams have a name beside their id, so that another generation of one can be made and take its place."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("streams", sa.Column("name", sa.String(), nullable=False, server_default=""))
    op.execute("UPDATE streams SET name = id")
    op.create_index("streams_by_name", "streams", ["name"], unique=True)
