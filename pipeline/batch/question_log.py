"""A question log as rows: JSON lines, CSV or Parquet. A row that cannot be asked says why, and stays a row.

Knows nothing of footage: that a row's video exists is for others to find out.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamkv.errors import BatchError, QuestionError
from streamkv.when import Moment

REQUIRED = ("question", "video")
READ = (*REQUIRED, "id", "max_new_tokens", "from", "to")
"""Columns that mean something; any other goes through."""
MAX_NEW_TOKENS = 4096
MAX_MOMENT_CHARS = 64
"""As much as the HTTP API allows, as the one before."""
UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class LogRow:
    """One row of the log: either something to ask, or an error."""

    id: str
    question: str = ""
    video: str = ""
    max_new_tokens: int | None = None  # None: the configuration's
    start: Moment | None = None  # where what is looked at begins and ends; None: open
    end: Moment | None = None
    error: str = ""  # why it cannot be asked


@dataclass(frozen=True)
class QuestionLog:
    rows: tuple[LogRow, ...]
    columns: pa.Table  # as they were given, one row for each of `rows`


CheckQuestion = Callable[[str], str]
"""The question as it is asked; QuestionError when it cannot be."""


def read_log(path: Path, check: CheckQuestion) -> QuestionLog:
    """The log, in its order.

    Raises:
        BatchError: no such file, another format, or a column that is needed is missing.
    """
    read = FORMATS.get(path.suffix.lower())
    if read is None:
        raise BatchError(
            f"question log {path}: got {path.suffix or 'no ending'!r}, allowed {', '.join(FORMATS)}"
        )
    try:
        given = read(path)
    except (OSError, pa.ArrowException, csv.Error) as exc:
        raise BatchError(f"question log {path}: cannot be read: {exc}") from exc
    for name in REQUIRED:
        if name not in given.names and given.records:
            found = ", ".join(map(repr, given.names)) or "no column"
            raise BatchError(f"question log {path}: no column {name!r}; it has {found}")
    rows = [_row(number, record, check) for number, record in enumerate(given.records, 1)]
    return QuestionLog(tuple(rows), given.columns)


@dataclass(frozen=True)
class _Record:
    """One row as a file holds it."""

    values: Mapping[str, Any]  # text that is not UTF-8 is bytes
    problem: str = ""  # why the row cannot be read


@dataclass(frozen=True)
class _Given:
    """What a file holds, before anything is checked but its form."""

    names: Sequence[str]
    records: Sequence[_Record]
    columns: pa.Table


def _row(number: int, record: _Record, check: CheckQuestion) -> LogRow:
    values = record.values
    row_id = _text(values.get("id")) or f"{number}-{_digest(record)}"
    try:
        if record.problem:
            raise QuestionError(record.problem)
        return LogRow(
            id=row_id,
            question=check(_needed(values, "question")),
            video=_needed(values, "video"),
            max_new_tokens=_tokens(values.get("max_new_tokens")),
            start=_moment(values, "from"),
            end=_moment(values, "to"),
        )
    except QuestionError as exc:
        return LogRow(id=row_id, error=f"QuestionError: {exc}")


def _digest(record: _Record) -> str:
    of = json.dumps([_text(record.values.get(name)) for name in REQUIRED])
    return hashlib.sha256(of.encode()).hexdigest()[:8]


def _needed(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if value is None or value == "":
        raise QuestionError(f"{name}: got nothing, need text")
    if isinstance(value, bytes):
        raise QuestionError(f"{name}: got bytes that are not UTF-8; write the log in UTF-8")
    if not isinstance(value, str):
        raise QuestionError(f"{name}: got {type(value).__name__}, need text")
    if not _is_unicode(value):
        raise QuestionError(f"{name}: got half of a surrogate pair, which is no text; write the log in UTF-8")
    return value


def _tokens(value: Any) -> int | None:
    if value is None or value == "" or value != value:  # NaN: what pandas writes for nothing
        return None
    try:
        count = int(value)
        if isinstance(value, bool) or (isinstance(value, float) and count != value):
            raise ValueError(value)
    except (ValueError, TypeError, OverflowError) as exc:
        raise QuestionError(f"max_new_tokens: got {value!r:.40}, need a whole number") from exc
    if not 1 <= count <= MAX_NEW_TOKENS:
        raise QuestionError(f"max_new_tokens: got {count}, allowed 1 to {MAX_NEW_TOKENS}")
    return count


def _moment(values: Mapping[str, Any], name: str) -> Moment | None:
    """Of a form that may be a time; whether it is one of the video is seen later."""
    value = values.get(name)
    if value is None or value == "":
        return None
    is_form = isinstance(value, int | float | str) and not isinstance(value, bool)
    if not is_form or len(str(value)) > MAX_MOMENT_CHARS:
        raise QuestionError(f"{name}: got {value!r:.80}, allowed seconds of the stream or an ISO time")
    return value if isinstance(value, str) else float(value)


def _text(value: Any) -> str:
    """Any value as text that can be stored."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value).encode(errors="replace").decode()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---------------------------------------------------------------- formats


def _read_jsonl(path: Path) -> _Given:
    """One object a line; blank lines are no rows."""
    lines = path.read_bytes().removeprefix(UTF8_MARK).splitlines()
    records = [_parse_line(line) for line in lines if line.strip()]
    names = list(dict.fromkeys(name for record in records for name in record.values))
    columns = {_text(name): _column([record.values.get(name) for record in records]) for name in names}
    return _Given(names, records, _table(columns, len(records)))


def _parse_line(line: bytes) -> _Record:
    shown = {"question": _text(line)}
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return _Record(shown, "the line is not UTF-8; write the log in UTF-8")
    except (ValueError, RecursionError) as exc:
        return _Record(shown, f"the line is not JSON: {exc}")
    if not isinstance(value, dict):
        return _Record(shown, f"the line is a JSON {type(value).__name__}, need an object")
    return _Record(value)


def _column(values: list[Any]) -> pa.Array:
    """Of the values' own type if they share a plain one, else of their JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {str}:
        return pa.array([None if value is None else _text(value) for value in values], pa.string())
    try:
        if len(kinds) <= 1 and kinds <= {int, float, bool}:
            return pa.array(values)
    except OverflowError:  # an integer beyond 64 bits
        pass
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())


def _read_csv(path: Path) -> _Given:
    """With a header; every value is text."""
    csv.field_size_limit(sys.maxsize)  # a question that is too long is its row's error, not the file's
    text = path.read_bytes().removeprefix(UTF8_MARK).decode(errors="surrogateescape")
    lines = [line for line in csv.reader(StringIO(text, newline="")) if line]
    names = _distinct(path, [_text(name) for name in lines[0]] if lines else [])
    records = [_csv_record(names, line) for line in lines[1:]]
    columns = {
        name: pa.array([_text(record.values.get(name)) for record in records], pa.string()) for name in names
    }
    return _Given(names, records, _table(columns, len(records)))


def _csv_record(names: list[str], line: list[str]) -> _Record:
    values = dict(zip(names, map(_undo_escape, line), strict=False))
    same = len(line) == len(names)
    return _Record(values, "" if same else f"the row has {len(line)} values, the header {len(names)} columns")


def _undo_escape(value: str) -> str | bytes:
    """The bytes again of a value that was not UTF-8."""
    return value if _is_unicode(value) else value.encode(errors="surrogateescape")


def _read_parquet(path: Path) -> _Given:
    """Columns keep their types; text that is not UTF-8 is made so."""
    table = pq.read_table(path, partitioning=None).replace_schema_metadata(None)
    names = _distinct(path, table.column_names)
    values = {name: _values(table[name]) for name in READ if name in names}
    records = [_Record({name: column[i] for name, column in values.items()}) for i in range(table.num_rows)]
    for i, name in enumerate(names):
        if _is_text(table[name].type):
            clean = [None if value is None else _text(value) for value in _values(table[name])]
            table = table.set_column(i, name, pa.array(clean, pa.string()))
    return _Given(names, records, table)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values; text that is not UTF-8 as its bytes, dates as ISO text."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = column.cast(pa.string())
    if not _is_text(column.type):
        return list(column.to_pylist())
    raw = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    return [None if value is None else _decoded(value) for value in raw]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string())


def _distinct(path: Path, names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise BatchError(f"question log {path}: two columns have the same name: {', '.join(names)}")
    return names


def _table(columns: dict[str, pa.Array], num_rows: int) -> pa.Table:
    """A table that has its rows even if it has no columns."""
    return pa.table(columns or {"question": pa.nulls(num_rows, pa.string())})


FORMATS: dict[str, Callable[[Path], _Given]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""Readers by the file name's ending. To add one: a function and a row here."""
