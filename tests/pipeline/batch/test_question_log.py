"""Logs in every format: the same rows, whatever is wrong with some of them."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch.question_log import FORMATS, LogRow, QuestionLog, read_log
from streamkv.errors import BatchError
from streamkv.question import check_question

check = partial(check_question, max_chars=100)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
    str.strip
)
rows_given = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text("abc019", min_size=1, max_size=4),
            "question": words,
            "video": words,
            "max_new_tokens": st.none() | st.integers(1, 4096),
            "camera": words,
        }
    ),
    min_size=1,
    max_size=6,
)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def log_of(folder: Path, *lines: bytes) -> QuestionLog:
    path = folder / "log.jsonl"
    path.write_bytes(b"\n".join(lines))
    return read_log(path, check)


@given(rows=rows_given)
def test_every_format_has_the_same_rows_and_columns(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    expected = tuple(LogRow(r["id"], r["question"].strip(), r["video"], r["max_new_tokens"]) for r in rows)
    for ending in FORMATS:
        log = read_log(write(folder / f"log{ending}", rows), check)
        assert log.rows == expected, ending
        assert log.columns.column_names == list(rows[0]), ending
        for name in ("question", "camera"):
            assert log.columns[name].to_pylist() == [r[name] for r in rows], ending


@given(lines=st.lists(st.binary(max_size=30).filter(lambda b: b.strip() and not {10, 13} & set(b))))
def test_whatever_the_bytes_no_line_is_lost(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    good = b'{"question": "what is it?", "video": "a.mp4"}'
    log = log_of(tmp_path_factory.mktemp("log"), good, *lines, good)
    assert len(log.rows) == log.columns.num_rows == len(lines) + 2
    for row in (log.rows[0], log.rows[-1]):
        assert (row.question, row.video, row.error) == ("what is it?", "a.mp4", "")
    assert all(row.error for row in log.rows[1:-1])
    log.columns.validate(full=True)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"video": "a.mp4"}', "question: got nothing"),
        (b'{"question": "", "video": "a.mp4"}', "question: got nothing"),
        (b'{"question": "  ", "video": "a.mp4"}', "question: got no text"),
        (b'{"question": 7, "video": "a.mp4"}', "question: got int, need text"),
        (b'{"question": "' + b"a" * 101 + b'", "video": "a.mp4"}', "got 101 characters, allowed 100"),
        (b'{"question": "why?"}', "video: got nothing"),
        (b'{"question": "why?", "video": ["a.mp4"]}', "video: got list, need text"),
        (b'{"question": "\xff", "video": "a.mp4"}', "not UTF-8"),
        (b'{"question": "\\ud800", "video": "a.mp4"}', "half of a surrogate pair"),
        (b'{"question": "why?", "video": "a.mp4", "max_new_tokens": 0}', "allowed 1 to 4096"),
        (b'{"question": "why?", "video": "a.mp4", "max_new_tokens": 1e99}', "allowed 1 to 4096"),
        (b'{"question": "why?", "video": "a.mp4", "max_new_tokens": 1.5}', "need a whole number"),
        (b'{"question": "why?", "video": "a.mp4", "max_new_tokens": "many"}', "need a whole number"),
        (b'{"question": "why?", "video": "a.mp4", "max_new_tokens": true}', "need a whole number"),
        (b'{"question": "why?", "video": "a.mp4", "from": [60]}', "from: got [60], allowed seconds"),
        (b'{"question": "why?", "video": "a.mp4", "to": true}', "to: got True, allowed seconds"),
        (b'{"question": "why?", "video": "a.mp4", "to": "' + b"9" * 65 + b'"}', "to: got '999"),
        (b'{"question": "why?"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["why?"]', "need an object"),
    ],
)
def test_a_row_that_cannot_be_asked_says_why(tmp_path: Path, line: bytes, error: str) -> None:
    log = log_of(tmp_path, b'{"question": "a?", "video": "a.mp4"}', line)
    assert not log.rows[0].error
    assert error in log.rows[1].error
    assert log.columns.num_rows == 2


def test_times_are_numbers_or_text_and_still_columns(tmp_path: Path) -> None:
    ask = '{"question": "why?", "video": "a.mp4", "from": %s, "to": %s}'
    given_and_read = [("60", '"2026-01-31"'), (60.0, "2026-01-31"), ('""', "null"), (None, None)]
    for given_times, read in zip(given_and_read[::2], given_and_read[1::2], strict=True):
        log = log_of(tmp_path, (ask % given_times).encode())
        assert [(row.start, row.end, row.error) for row in log.rows] == [(*read, "")]
        assert [log.columns[name].to_pylist() for name in ("from", "to")] == [
            [json.loads(value)] for value in given_times
        ]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_dates_of_parquet_are_the_times_that_they_show(tmp_path: Path, unit: str) -> None:
    at = datetime(2026, 1, 31, 14, 7, 3)
    here = pa.array([at, None], pa.timestamp(unit))
    there = pa.array([at, None], pa.timestamp(unit, "Asia/Kolkata"))
    far = pa.array([2**40, None], pa.int64()).cast(pa.timestamp("s"))  # no date of Python's
    table = pa.table({"question": ["why?"] * 2, "video": ["a.mp4"] * 2})
    pq.write_table(table.append_column("from", here).append_column("to", there), tmp_path / "log.parquet")
    row, empty = read_log(tmp_path / "log.parquet", check).rows
    assert datetime.fromisoformat(str(row.start)) == at
    assert datetime.fromisoformat(str(row.end)) == at.replace(tzinfo=UTC)
    assert (empty.start, empty.end) == (None, None)
    pq.write_table(table.append_column("from", far), tmp_path / "log.parquet")
    assert read_log(tmp_path / "log.parquet", check).rows[1].error == ""


def test_ids_are_given_or_made_from_number_and_content(tmp_path: Path) -> None:
    ask = b'{"question": "why?", "video": "a.mp4"'
    log = log_of(tmp_path, ask + b"}", ask + b"}", ask + b', "id": 7}', b"", b"nothing")
    ids = [row.id for row in log.rows]
    assert ids[2] == "7"
    assert len(set(ids)) == 4
    assert [i.split("-")[0] for i in ids] == ["1", "2", "7", "4"]
    assert log_of(tmp_path, ask + b"}").rows[0].id == ids[0]


def test_columns_of_mixed_values_are_carried_as_json(tmp_path: Path) -> None:
    ask = '{"question": "why?", "video": "a.mp4", "n": %s}'
    for values, expected in (
        (["1", "2"], [1, 2]),
        (["1.5", "null"], [1.5, None]),
        (["1", '"a"'], ["1", '"a"']),
        (['{"a": 1}', "{}"], ['{"a": 1}', "{}"]),
        (["1", str(2**80)], ["1", str(2**80)]),
    ):
        log = log_of(tmp_path, *((ask % value).encode() for value in values))
        assert log.columns["n"].to_pylist() == expected


def test_csv_rows_that_do_not_fit_their_header_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(
        b"\xef\xbb\xbfquestion,video,\nwhy?,a.mp4,1\nwhy?\nwhy?,a.mp4,1,2\n\n\xff?,a.mp4,1\n"
        b'"a\nb?",a.mp4,1\n"' + b"c" * 200_000 + b'?",a.mp4,1\n'
    )
    log = read_log(path, check)
    errors = [row.error.removeprefix("QuestionError: ") for row in log.rows]
    assert [error[:19] for error in errors] == [
        "",
        "the row has 1 value",
        "the row has 4 value",
        "question: got bytes",
        "",
        "question: got 20000",
    ]
    assert log.rows[4].question == "a\nb?"
    assert log.columns.column_names == ["question", "video", ""]
    assert log.columns["question"].to_pylist()[3] == "\N{REPLACEMENT CHARACTER}?"


def test_parquet_keeps_its_types_and_makes_its_text_text(tmp_path: Path) -> None:
    def text(*values: bytes | None) -> pa.Array:
        return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())

    table = pa.table(
        {
            "question": text(b"why?", b"\xff?", None),
            "video": ["a.mp4"] * 3,
            "max_new_tokens": [3.0, float("nan"), None],
            "at": pa.array([1, 2, 3], pa.timestamp("ms")),
            "note": text(b"\xff", b"", None),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    log = read_log(tmp_path / "log.parquet", check)
    assert [row.error[:34] for row in log.rows] == [
        "",
        "QuestionError: question: got bytes",
        "QuestionError: question: got nothi",
    ]
    assert log.rows[0].max_new_tokens == 3
    assert log.columns["at"].type == pa.timestamp("ms")
    assert log.columns["note"].to_pylist() == ["\N{REPLACEMENT CHARACTER}", "", None]
    log.columns.validate(full=True)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("log.jsonl", b'{"question": "why?"}', "no column 'video'; it has 'question'"),
        ("log.csv", b"query,video\nwhy?,a.mp4\n", "no column 'question'; it has 'query', 'video'"),
        ("log.csv", b"video,video\na,b\n", "two columns have the same name"),
        ("log.parquet", b"no parquet", "cannot be read"),
        ("log.txt", b"why?", "got '.txt', allowed .jsonl"),
        ("log", b"why?", "got 'no ending', allowed .jsonl"),
    ],
)
def test_a_log_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, content: bytes, error: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BatchError, match=error):
        read_log(tmp_path / name, check)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_log_that_is_not_there_is_an_error(tmp_path: Path, ending: str) -> None:
    with pytest.raises(BatchError, match="cannot be read"):
        read_log(tmp_path / f"log{ending}", check)


@pytest.mark.parametrize(("name", "content"), [("log.jsonl", b""), ("log.jsonl", b"\n \n"), ("log.csv", b"")])
def test_a_log_without_rows_is_empty(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    log = read_log(tmp_path / name, check)
    assert log.rows == ()
    assert log.columns.num_rows == 0
