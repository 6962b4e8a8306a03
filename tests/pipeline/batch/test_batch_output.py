"""What is kept of a batch under way, and what it leaves: each row once, in order, whatever was cut off where."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import journal as journal_module
from pipeline.batch.journal import open_journal, remove_journal, work_folder
from pipeline.batch.output import SCHEMA, check_columns, read_previous, write_output
from pipeline.batch.plan import MEMORIES, TRIES, Plan, Planned
from pipeline.batch.question_log import LogRow, QuestionLog, read_log
from pipeline.batch.worker import PARTIAL, Answered, Asked
from streamkv.errors import BatchError

SPAN = {"segment": 3, "start_s": 1.0, "end_s": 2.5, "weight": 0.25}
LOOKED_AT = {"start_s": 60.0, "end_s": None, "words": "since 1:00 of the video"}
GAP = {"start_s": 4.0, "end_s": 5.0, "reason": "cut"}


def answered(i: int) -> Answered:
    text, span = f"answer {i}\n\u2028", LOOKED_AT if i % 2 else None
    return Answered(f"key-{i}", text, None, [SPAN], 0.9, [GAP], 5.0, 9, 2, 0.5, 0.25, 20, i, 0.125, span=span)


def journal_with(out: Path, count: int) -> bytes:
    """The journal of `count` answers, as the file is."""
    with open_journal(out) as journal:
        for i in range(count):
            journal.add([answered(i)])
    return (work_folder(out) / "journal.jsonl").read_bytes()


@given(data=st.data())
def test_cut_anywhere_a_journal_has_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    out = tmp_path_factory.mktemp("journal") / "a.parquet"
    whole = journal_with(out, 3)
    cut = data.draw(st.integers(0, len(whole)))
    (work_folder(out) / "journal.jsonl").write_bytes(whole[:cut])
    left = whole[:cut].count(b"\n")
    expected = {f"key-{i}": answered(i) for i in range(left)}
    with open_journal(out) as journal:
        assert journal.answers == expected
        journal.add([answered(7), Answered("key-8", error="no")])
    with open_journal(out) as journal:
        assert journal.answers == expected | {"key-7": answered(7)}, "what failed is tried again"


def test_a_batch_begins_once_however_often_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, times = tmp_path / "a.parquet", iter([1e9 + 1 / 3, 2e9])
    monkeypatch.setattr(journal_module.time, "time", lambda: next(times))
    for i in range(2):
        with open_journal(out) as journal:
            assert journal.begun_s == 1e9 + 1 / 3
            journal.add([answered(i)])
    remove_journal(out)
    with open_journal(out) as journal:
        assert journal.begun_s == 2e9, "when it is done, another one begins"


def test_only_one_batch_writes_an_output(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    with open_journal(out), pytest.raises(BatchError, match="another batch is writing"), open_journal(out):
        pass
    with open_journal(out):
        pass
    assert not list(tmp_path.iterdir()), "nothing was answered, so nothing is left"


def test_a_journal_begins_without_what_killed_workers_left(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    work = work_folder(out)
    for name in (f"{MEMORIES}/m1", f"{MEMORIES}/m2.x{PARTIAL}", TRIES):
        (work / name).mkdir(parents=True)
    (work / TRIES / "0").write_bytes(b"...")
    with open_journal(out):
        assert [path.name for path in (work / MEMORIES).iterdir()] == ["m1"]
        assert not list((work / TRIES).iterdir())
    remove_journal(out)
    assert not list(tmp_path.iterdir())


def test_a_journal_that_is_damaged_or_in_no_place_to_write_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    journal_with(out, 1)
    with (work_folder(out) / "journal.jsonl").open("a") as file:
        file.write('{"other": 1}\n')
    with pytest.raises(BatchError, match="damaged, or of another release"), open_journal(out):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(BatchError, match="cannot write"), open_journal(tmp_path / "file" / "a.parquet"):
        pass


def plan_of(count: int) -> tuple[QuestionLog, Plan]:
    """`count` rows: every third cannot be asked, and every fourth asks what the row before it does."""
    planned = []
    for i in range(count):
        row = LogRow(f"id-{i}", f"question {i}", "a.mp4")
        key = f"key-{i - (i % 4 == 3)}"
        planned.append(Planned(row, error=f"bad {i}") if i % 3 == 2 else Planned(row, Asked(key, "q", 1)))
    columns = pa.table({"question": [p.row.question for p in planned], "n": list(range(count))})
    return QuestionLog(tuple(p.row for p in planned), columns), Plan(tuple(planned))


def written(out: Path, count: int, seed: int = 0, *, failed: str = "") -> list[dict[str, object]]:
    """The output of `count` rows, whose answers come in any order; the one of the key `failed` is an error."""
    log, plan = plan_of(count)
    answers = [answered(int(key.split("-")[1])) for key in plan.questions]
    answers = [Answered(a.key, error="lost") if a.key == failed else a for a in answers]
    random.Random(seed).shuffle(answers)
    with open_journal(out):
        write_output(out, log, plan, {a.key: a for a in answers}, model="m", preset="p")
    remove_journal(out)
    return list(pq.read_table(out, partitioning=None).to_pylist())


@given(count=st.integers(0, 24), seed=st.integers(0, 99))
def test_the_output_has_every_row_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int
) -> None:
    out = tmp_path_factory.mktemp("output") / "a.parquet"
    rows = written(out, count, seed)
    assert [row["n"] for row in rows] == list(range(count))
    for i, row in enumerate(rows):
        assert row["id"] == f"id-{i}"
        if i % 3 == 2:
            assert (row["answer"], row["error"], row["key"]) == (None, f"bad {i}", None)
        else:
            expected = asdict(answered(i - (i % 4 == 3)))
            assert {name: row[name] for name in expected} == expected
    assert pq.read_schema(out).names == ["id", "question", "n", *SCHEMA.names]
    assert [path.name for path in out.parent.iterdir()] == ["a.parquet"]


def test_an_earlier_output_gives_its_answers_and_not_its_errors(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    assert read_previous(out) == {}
    written(out, 6, failed="key-1")
    assert read_previous(out) == {f"key-{i}": answered(i) for i in (0, 2, 4)}


def test_an_output_without_spans_gives_its_answers(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    written(out, 2)
    pq.write_table(pq.read_table(out).drop_columns(["span"]), out)
    assert read_previous(out) == {f"key-{i}": replace(answered(i), span=None) for i in range(2)}


def test_a_file_that_no_batch_wrote_is_kept(tmp_path: Path) -> None:
    pq.write_table(pa.table({"answer": ["precious"]}), tmp_path / "table.parquet")
    (tmp_path / "text.parquet").write_text("precious")
    for name in ("table.parquet", "text.parquet"):
        with pytest.raises(BatchError, match="no batch wrote it"):
            read_previous(tmp_path / name)


def test_a_column_with_a_name_of_the_outputs_is_refused() -> None:
    log, _ = plan_of(2)
    check_columns(log)
    taken = replace(log, columns=log.columns.append_column("answer", pa.array(["a", "b"])))
    with pytest.raises(BatchError, match="answer have names of the output's; rename them"):
        check_columns(taken)


def test_an_output_is_no_log_but_its_question_columns_are(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    written(out, 4)
    table = pq.read_table(out)
    pq.write_table(table.append_column("video", pa.array(["a.mp4"] * 4)).drop_columns(SCHEMA.names), out)
    log = read_log(out, str)
    check_columns(log)
    assert [row.id for row in log.rows] == [f"id-{i}" for i in range(4)]
