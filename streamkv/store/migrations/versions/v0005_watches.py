"""Standing questions, and what they told."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    text, whole, json = sa.String(), sa.BigInteger(), sa.JSON()
    real: sa.Double[float] = sa.Double()
    op.create_table(
        "watches",
        sa.Column("id", text, primary_key=True, nullable=False),
        sa.Column("stream_id", text, sa.ForeignKey("streams.id"), nullable=False),
        sa.Column("question", text, nullable=False),
        sa.Column("min_confidence", real, nullable=False),
        sa.Column("when_gone", sa.Boolean(), nullable=False),
        sa.Column("url", text, nullable=False),
        sa.Column("secret", text, nullable=False),
        sa.Column("created_at", real, nullable=False),
        sa.Column("answer", text, nullable=False),
        sa.Column("segment_no", whole, nullable=False),
    )
    op.create_index("watches_of_stream", "watches", ["stream_id"])
    op.create_table(
        "watch_events",
        sa.Column("watch_id", text, sa.ForeignKey("watches.id"), primary_key=True, nullable=False),
        sa.Column("segment_no", whole, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("start_s", real, nullable=False),
        sa.Column("end_s", real, nullable=False),
        sa.Column("answer", text, nullable=False),
        sa.Column("previous", text, nullable=False),
        sa.Column("confidence", real, nullable=True),
        sa.Column("evidence", json, nullable=False),
        sa.Column("fired_at", real, nullable=False),
        sa.Column("delivery", text, nullable=False),
        sa.Column("tries", whole, nullable=False),
        sa.Column("next_try_at", real, nullable=False),
        sa.Column("detail", text, nullable=False),
    )
    waiting = sa.text("delivery = 'waiting'")
    op.create_index(
        "watch_events_waiting",
        "watch_events",
        ["watch_id", "segment_no"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
