"""What readers compare to learn that a committed segment has come to have another file."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("streams", sa.Column("num_exchanged", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("segments", sa.Column("exchange_no", sa.BigInteger(), nullable=False, server_default="0"))
    exchanged = sa.text("exchange_no > 0")
    op.create_index(
        "segments_exchanged",
        "segments",
        ["stream_id", "exchange_no"],
        sqlite_where=exchanged,
        postgresql_where=exchanged,
    )
