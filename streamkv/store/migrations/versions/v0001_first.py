"""The tables of the first release. Catalogs from then have them, without a note that they do."""

from typing import Any, Literal, TypeAlias

import sqlalchemy as sa
from alembic import op

Column: TypeAlias = "sa.Column[Any]"

revision = "0001"
down_revision = None


def upgrade() -> None:
    if sa.inspect(op.get_bind()).has_table("store"):
        return
    text, whole, json = sa.String(), sa.BigInteger(), sa.JSON()
    real: sa.Double[float] = sa.Double()
    op.create_table(
        "store",
        _column("store_id", text, primary_key=True),
        *_columns(text, "model_fingerprint", "dtype"),
        *_columns(whole, "format_version", "last_epoch"),
        _column("geometry", json),
    )
    op.create_table(
        "streams",
        _column("id", text, primary_key=True),
        *_columns(text, "uri", "state", "detail", "fingerprint"),
        *_columns(whole, "born_epoch", "epoch", "next_segment_no"),
        *_columns(real, "created_at", "resume_s"),
        _column("config", json),
    )
    op.create_table(
        "segments",
        _stream_id(),
        _column("segment_no", whole, primary_key=True, autoincrement=False),
        *_columns(text, "path", "checksum"),
        *_columns(whole, "epoch", "num_frames", "num_source_frames", "kv_bytes", "file_bytes"),
        *_columns(real, "start_s", "end_s", "resume_s"),
    )
    op.create_table(
        "gaps",
        _stream_id(),
        _column("start_s", real, primary_key=True),
        _column("end_s", real, primary_key=True),
        _column("reason", text),
    )
    op.create_table("removed_streams", _column("stream_id", text, primary_key=True), _column("epoch", whole))


def _stream_id() -> Column:
    return sa.Column("stream_id", sa.String(), sa.ForeignKey("streams.id"), primary_key=True)


def _columns(kind: Any, *names: str) -> list[Column]:
    return [_column(name, kind) for name in names]


def _column(
    name: str, kind: Any, *, primary_key: bool = False, autoincrement: bool | Literal["auto"] = "auto"
) -> Column:
    return sa.Column(name, kind, nullable=False, primary_key=primary_key, autoincrement=autoincrement)
