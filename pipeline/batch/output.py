"""A batch's output: the log's own columns, and beside them what became of each row. It appears whole, or not at all."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.batch.journal import work_folder
from pipeline.batch.plan import Plan, Planned
from pipeline.batch.question_log import QuestionLog
from pipeline.batch.worker import Answered
from streamkv.errors import BatchError
from streamkv.store import durable

MARK = {b"streamkv": b"batch"}
"""Metadata of the schema: says that a file is ours to replace."""

_SPAN = [("start_s", pa.float64()), ("end_s", pa.float64())]
SCHEMA = pa.schema(
    [
        ("answer", pa.string()),
        ("error", pa.string()),
        ("evidence", pa.list_(pa.struct([("segment", pa.int64()), *_SPAN, ("weight", pa.float64())]))),
        ("confidence", pa.float64()),
        ("gaps", pa.list_(pa.struct([*_SPAN, ("reason", pa.string())]))),
        ("span", pa.struct([*_SPAN, ("words", pa.string())])),
        ("as_of_s", pa.float64()),
        ("frames", pa.int64()),
        ("segments", pa.int64()),
        ("decode_encode_s", pa.float64()),
        ("prefill_s", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("answer_tokens", pa.int64()),
        ("answer_s", pa.float64()),
        ("model", pa.string()),
        ("preset", pa.string()),
        ("key", pa.string()),
    ]
)
"""What a batch adds to the log's columns; docs/batch.md says what each is. `id` is added if the log has none."""


def check_columns(log: QuestionLog) -> None:
    """BatchError when the log has a column that the output would add."""
    taken = sorted(set(log.columns.column_names) & set(SCHEMA.names))
    if taken:
        raise BatchError(
            f"question log: its columns {', '.join(taken)} have names of the output's; rename them, "
            "for example to expected"
        )


def read_previous(out: Path) -> dict[str, Answered]:
    """Answers of an earlier batch in this place, by key; none when there is no file.

    BatchError when the file there is not a batch's, which would be lost.
    """
    if not out.exists():
        return {}
    try:
        table = pq.read_table(out, partitioning=None)
    except (OSError, pa.ArrowException) as exc:
        raise BatchError(f"--out: {out} is there and no batch wrote it ({exc}); choose another name") from exc
    if (table.schema.metadata or {}).get(b"streamkv") != b"batch":
        raise BatchError(f"--out: {out} is there and no batch wrote it; choose another name")
    # An output of an earlier release has fewer columns.
    names = [name for name in asdict(Answered("")) if name in table.column_names]
    rows = table.select(names).to_pylist()
    return {row["key"]: Answered(**row) for row in rows if row["key"] and row["error"] is None}


def write_output(
    out: Path, log: QuestionLog, plan: Plan, answers: dict[str, Answered], *, model: str, preset: str
) -> None:
    """One row for each row of the log, in its order. `answers` has every key of the plan."""
    rows = [{**_outcome(planned, answers), "model": model, "preset": preset} for planned in plan.rows]
    added = pa.Table.from_pylist(rows, schema=SCHEMA)
    columns = log.columns
    if "id" not in columns.column_names:
        columns = columns.add_column(0, "id", pa.array([p.row.id for p in plan.rows], pa.string()))
    for name in added.column_names:
        columns = columns.append_column(name, added[name])
    temp = work_folder(out) / f"{uuid.uuid4().hex}.tmp"
    try:
        durable.write_temp(temp, lambda file: pq.write_table(columns.replace_schema_metadata(MARK), file))
        durable.publish(temp, out)
    except OSError as exc:
        raise BatchError(
            f"--out: cannot write {out} ({exc.strerror}); the answers are kept in {temp.parent}: make room, and give "
            "the same command again"
        ) from exc


def _outcome(planned: Planned, answers: dict[str, Answered]) -> dict[str, Any]:
    if planned.asked is None:
        return asdict(Answered("", error=planned.error)) | {"key": None}
    return asdict(answers[planned.asked.key])
