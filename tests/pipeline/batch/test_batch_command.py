"""`streamkv batch` for real: the demo model on short videos, on Ray; stopped, killed, and given again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from live import title
from typer.testing import CliRunner

from pipeline.batch.journal import work_folder
from pipeline.batch.run import CHUNK
from pipeline.cli import app
from pipeline.settings import load_settings
from pipeline.worlds import WrittenWorld, write_world
from streamkv.confidence import NOT_SHOWN
from streamkv.engine import Engine
from streamkv.excerpt import Span
from streamkv.frame_batches import FrameBatches
from streamkv.ingest import ingest
from streamkv.models import load_model
from streamkv.store import ModelIdentity, SegmentStore
from streamkv.townsquare import is_correct
from streamkv.video import sample_frames

runner = CliRunner()
TIMES = ("decode_encode_s", "prefill_s", "answer_s")
RUN_S = 240


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WrittenWorld]:
    folder = tmp_path_factory.mktemp("footage")
    return {
        "long": write_world(folder, "long", seed=60, minutes=2, questions=4 * CHUNK),
        "short": write_world(folder, "short", seed=61, minutes=0.5, questions=12),
    }


@pytest.fixture(scope="module")
def log(worlds: dict[str, WrittenWorld], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By turns about both videos, as far as there are questions."""
    rows = [
        {"question": q.question, "video": f"{name}.mp4", "expected": q.answer, "at": i}
        for name, world in worlds.items()
        for i, q in enumerate(world.questions)
    ]
    path = tmp_path_factory.mktemp("log") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["at"])))
    return path


def footage(worlds: dict[str, WrittenWorld]) -> Path:
    return worlds["long"].video.parent


class Batch:
    """One command, in a process group of its own."""

    def __init__(self, log: Path, footage: Path, out: Path, *more: str) -> None:
        self.out = out
        command = [sys.executable, "-m", "pipeline.cli", "batch", str(log), "--footage", str(footage)]
        self._command = [*command, "--out", str(out), "--json", *more]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"TERM": "dumb"},
        )

    def run(self) -> dict[str, Any]:
        process = self.start()
        said, errors = process.communicate(timeout=RUN_S)
        assert process.returncode == 0, said + errors[-3000:]
        return dict(json.loads(said))

    def run_until(
        self, condition: Callable[[], Any], stop: Callable[[subprocess.Popen[str]], None]
    ) -> tuple[int, str]:
        """Stops it once the condition holds; its exit status, and what it printed."""
        process = self.start()
        end = time.monotonic() + RUN_S
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.01)
        stop(process)
        said, _ = process.communicate(timeout=RUN_S)
        return process.returncode, said

    def journal(self) -> list[dict[str, Any]]:
        file = work_folder(self.out) / "journal.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
        return [json.loads(line) for line in lines]

    def rows(self) -> list[dict[str, Any]]:
        return list(pq.read_table(self.out, partitioning=None).to_pylist())


def same(row: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on how fast it went, nor on which questions were answered in one run of the model."""
    return {name: value for name, value in row.items() if name not in (*TIMES, "confidence", "evidence")} | {
        "evidence": [{**span, "weight": None} for span in row["evidence"]]
    }


def weighed(rows: list[dict[str, Any]]) -> list[float]:
    """What sums of another order move by a rounding."""
    return [x for row in rows for x in (row["confidence"], *(span["weight"] for span in row["evidence"]))]


@pytest.fixture(scope="module")
def unkilled(
    log: Path, worlds: dict[str, WrittenWorld], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    batch = Batch(log, footage(worlds), tmp_path_factory.mktemp("unkilled") / "answers.parquet")
    return batch.run(), batch.rows()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_every_row_is_answered_in_order_with_its_evidence_and_cost(
    unkilled: tuple[dict[str, Any], list[dict[str, Any]]], log: Path, worlds: dict[str, WrittenWorld]
) -> None:
    summary, rows = unkilled
    given = [json.loads(line) for line in log.read_text().splitlines()]
    assert [{name: row[name] for name in given[0]} for row in rows] == given
    assert all(row["error"] is None for row in rows)
    right = sum(is_correct(row["answer"], row["expected"]) for row in rows) / len(rows)
    assert right > 0.8
    for row in rows:
        assert row["evidence"]
        assert row["preset"] == "streamkv"
        assert row["as_of_s"] == pytest.approx(worlds[row["video"][:-4]].duration_s, abs=2)
        assert row["prompt_tokens"] > row["answer_tokens"] >= (row["answer"] != NOT_SHOWN)
        assert all(row[name] > 0 for name in TIMES)
    for video in ("long.mp4", "short.mp4"):
        costs = {
            tuple(row[n] for n in ("frames", "segments", *TIMES[:2])) for row in rows if row["video"] == video
        }
        assert len(costs) == 1, "shown once, however many questions it has"
    assert (summary["rows"], summary["failed"], summary["videos"]) == (len(rows), 0, 2)
    assert summary["cost"]["frames"] == sum({row["video"]: row["frames"] for row in rows}.values())


def by_kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def by_ctrl_c(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


def kill_a_worker(process: subprocess.Popen[str]) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    (worker,) = (p for p in children if "ray::MapWorker" in title(p))
    worker.kill()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_stopped_in_a_video_it_goes_on_and_ends_as_if_it_had_not_been(
    unkilled: tuple[dict[str, Any], list[dict[str, Any]]],
    log: Path,
    worlds: dict[str, WrittenWorld],
    tmp_path: Path,
) -> None:
    """By Ctrl-C, then by SIGKILL to all of it, then by SIGKILL to a worker, which it gets over by itself."""
    batch = Batch(log, footage(worlds), tmp_path / "answers.parquet", "--workers", "1")

    def more_than(count: int) -> Callable[[], bool]:
        return lambda: len(batch.journal()) > count

    status, said = batch.run_until(more_than(0), by_ctrl_c)
    assert (status, "to go on, give the same command again" in said) == (130, True), said
    kept = {answer["key"]: answer for answer in batch.journal()}
    assert 0 < len(kept) < len(unkilled[1])
    assert batch.run_until(more_than(len(kept)), by_kill) == (-signal.SIGKILL, "")
    kept = {answer["key"]: answer for answer in batch.journal()}
    assert len(kept) < len(unkilled[1])
    status, said = batch.run_until(more_than(len(kept)), kill_a_worker)
    assert status == 0
    assert json.loads(said)["from_before"] == len(kept)
    rows = batch.rows()
    assert [same(row) for row in rows] == [same(row) for row in unkilled[1]]
    assert weighed(rows) == pytest.approx(weighed(unkilled[1]), abs=1e-4)
    for row in rows:
        if row["key"] in kept:
            assert {name: row[name] for name in kept[row["key"]]} == kept[row["key"]], "not asked again"
        if row["video"] == "long.mp4":  # the larger one is begun first
            shown = next(iter(kept.values()))
            assert all(row[name] == shown[name] for name in TIMES[:2]), "not shown again"
    assert not work_folder(batch.out).exists()

    again = batch.run()
    assert (again["questions"], again["from_before"]) == (len({row["key"] for row in rows}),) * 2
    assert batch.rows() == rows


BAD_ROWS = [
    ("", "lobby", None, None, "question: got nothing"),
    ("x" * 5000, "lobby", None, None, "got 5000 characters"),
    ("why?", "hall", None, None, "UnknownStreamError"),
    ("why?", "../lobby", None, None, "UnknownStreamError"),
    ("why?", None, None, None, "video: got nothing"),
    ("why?", "empty", None, None, "nothing of this stream is committed"),
    ("why?", "lobby", "20", "10", "`from` must come before `to`"),
    ("why?", "lobby", "2026-01-31T14:07", None, "when this stream was recorded is not known"),
    (
        "why?",
        "lobby",
        "3600",
        None,
        "nothing of this stream is from 1:00:00 on",
    ),
]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_streams_of_a_store_are_answered_as_the_engine_does_and_bad_rows_keep_their_errors(
    worlds: dict[str, WrittenWorld], tmp_path: Path
) -> None:
    config, world = load_settings("local"), worlds["short"]
    model = load_model(config.model)
    engine = Engine(model, config.method)
    with SegmentStore.open(tmp_path / "store", identity=ModelIdentity.of(model)) as store:
        for stream_id in ("lobby", "empty"):
            store.add_stream(stream_id, str(world.video))
        frames = sample_frames(str(world.video), config.source.sample_fps)
        ingest(
            engine,
            store,
            "lobby",
            frames,
            batches=FrameBatches.configured(config.source),
            codec=config.store.codec,
        )
        memory = store.reader("lobby").refresh()
        least = config.serve.min_confidence
        expected = [engine.answer(memory, q.question, min_confidence=least) for q in world.questions]
        q = world.questions[0].question
        expected.append(engine.answer(memory, q, span=Span(10.0, 20.0), min_confidence=least))
    asked = [(q.question, "lobby", None, None, "") for q in world.questions]
    part = (q, "lobby", "10", "20.0", "")
    questions, videos, starts, ends, errors = zip(*asked, part, *BAD_ROWS, strict=True)
    table = pa.table(
        {
            "question": questions,
            "video": videos,
            "from": pa.array(starts, pa.string()),
            "to": pa.array(ends, pa.string()),
            "id": list(range(len(questions))),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    batch = Batch(tmp_path / "log.parquet", tmp_path / "store", tmp_path / "answers.parquet")
    summary, rows = batch.run(), batch.rows()
    assert (summary["rows"], summary["failed"]) == (len(rows), len(BAD_ROWS))
    assert [row["id"] for row in rows] == list(range(len(questions)))
    for row, answer in zip(rows, expected, strict=False):
        assert (row["answer"], row["as_of_s"], row["error"]) == (answer.text, answer.as_of_s, None)
        assert row["confidence"] == pytest.approx(
            answer.confidence, rel=1e-4
        )  # asked together, its last bits may differ
        assert row["decode_encode_s"] is None, "the ingest plane has spent it"
        span = {"start_s": 10.0, "end_s": 20.0, "words": None} if row["from"] else None
        assert (row["span"], row["from"]) == (span, starts[row["id"]])
    for row, error in zip(rows, errors, strict=True):
        assert error in (row["error"] or "")
        assert (row["answer"] is None) == bool(error)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_what_failed_is_tried_again_and_nothing_else_in_a_csv_log(
    worlds: dict[str, WrittenWorld], tmp_path: Path
) -> None:
    folder = tmp_path / "footage"
    folder.mkdir()
    (folder / "short.mp4").write_bytes(worlds["short"].video.read_bytes())
    (folder / "late.mp4").write_text("not yet a video")
    log = tmp_path / "log.csv"
    log.write_bytes(
        b"question,video,camera\nwhat is the weather?,short.mp4,north\nwhat is the weather?,late.mp4,south\n"
        b"what is the weather?,none.mp4,\nwhat is the we\xffther?,short.mp4,north\n"
        b"what is the weather in the first five seconds?,short.mp4,north\n"
    )
    batch = Batch(log, folder, tmp_path / "answers.parquet")
    first, before = batch.run(), batch.rows()
    assert [bool(row["error"]) for row in before] == [False, True, True, True, False]
    assert before[4]["span"] == {"start_s": None, "end_s": 5.0, "words": "in the first five seconds"}
    assert all(e["start_s"] < 5 for e in before[4]["evidence"])
    assert "SourceError" in before[1]["error"]
    assert [row["camera"] for row in before] == ["north", "south", "", "north", "north"]
    (folder / "late.mp4").write_bytes(worlds["short"].video.read_bytes())
    second, after = batch.run(), batch.rows()
    assert (first["answered"], second["answered"], second["from_before"]) == (2, 3, 2)
    assert after[0] == before[0]
    assert after[1]["answer"]
    assert [same(row) for row in after[2:]] == [same(row) for row in before[2:]]


def test_an_example_is_a_log_that_a_batch_reads(tmp_path: Path) -> None:
    made = runner.invoke(app, ["batch", "--example", str(tmp_path), "--json"])
    assert made.exit_code == 0, made.output
    log = Path(json.loads(made.stdout)["questions"])
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert {row["video"] for row in rows} <= {path.name for path in tmp_path.iterdir()}
    assert all(row["question"] and row["expected"] for row in rows)
    assert runner.invoke(app, ["batch", "--example", str(log), "--json"]).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["none.jsonl", "--footage", ".", "--out", "a.parquet"], "cannot be read"),
        (["log.txt", "--footage", ".", "--out", "a.parquet"], "allowed .jsonl"),
        (["log.jsonl", "--footage", "none", "--out", "a.parquet"], "--footage: no folder none"),
        (["log.jsonl", "--footage", ".", "--out", "a.csv"], "need a name that ends in .parquet"),
        (["log.jsonl", "--footage", ".", "--out", "log.jsonl/a.parquet"], "cannot write"),
        (["log.jsonl", "--footage", ".", "--out", "text.parquet"], "no batch wrote it"),
        (["log.jsonl", "--footage", "damaged", "--out", "a.parquet"], "no store in "),
        (["log.jsonl", "model.pth=x", "--footage", ".", "--out", "a.parquet"], "model.pth"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("log.txt", "log.jsonl"):
        Path(name).write_text('{"question": "why?", "video": "a.mp4"}\n')
    Path("text.parquet").write_text("precious")
    Path("damaged").mkdir()
    Path("damaged/store.json").write_text('{"store_id": "1", "format_version": 2}')
    result = runner.invoke(
        app, ["batch", *arguments, "--json"]
    )  # a test without Ray: to start it would raise
    assert result.exit_code == 1, result.output
    assert error in json.loads(result.stdout)["error"]["message"]


def test_without_its_arguments_the_way_to_try_it_is_named() -> None:
    result = runner.invoke(app, ["batch"])
    assert result.exit_code == 2
    assert "--example DIR" in result.output
