"""From rows to what is asked: nothing lost, nothing twice, a file's questions together."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch.footage import Files, Video, open_footage
from pipeline.batch.plan import Plan, group, make_plan
from pipeline.batch.question_log import LogRow
from streamkv.config import MethodConfig, PipelineConfig
from streamkv.errors import BatchError, SourceError
from streamkv.when import Moment

CONFIG = PipelineConfig()
BORN_S = datetime(2026, 1, 31, 13, tzinfo=UTC).timestamp()
NOW_S = BORN_S + 3600


class Names:
    """Footage of files `f0` to `f3` and live streams `s0` to `s3`; anything else is unknown."""

    config = CONFIG

    def check(self, identity: object) -> None: ...

    def find(self, name: str) -> Video:
        if name[1:] not in ("0", "1", "2", "3"):
            raise SourceError(f"no {name}")
        path, origin_s = (f"/{name}", None) if name[0] == "f" else ("", BORN_S)
        return Video(name, path, (name,), int(name[1:]), origin_s)


rows = st.lists(
    st.builds(
        LogRow,
        id=st.text(max_size=3),
        question=st.sampled_from(["what?", "why?", "who?"]),
        video=st.builds("".join, st.tuples(st.sampled_from("fs"), st.sampled_from("01239"))),
        max_new_tokens=st.sampled_from([None, 1, 128]),
        start=st.sampled_from([None, 60.0, "60"]),
        end=st.sampled_from([None, 90.0, "90.0"]),
        error=st.sampled_from(["", "", "", "bad row"]),
    ),
    max_size=60,
)


def planned(given_rows: list[LogRow], config: PipelineConfig = CONFIG, fingerprint: str = "m") -> Plan:
    return make_plan(given_rows, Names(), config, fingerprint, NOW_S)


@given(rows=rows)
def test_each_row_has_an_answer_to_wait_for_or_an_error(rows: list[LogRow]) -> None:
    plan = planned(rows)
    assert [p.row for p in plan.rows] == rows
    for p in plan.rows:
        assert bool(p.error) == (p.asked is None) == (p.row.error != "" or p.row.video.endswith("9"))


@given(rows=rows)
def test_rows_share_an_answer_if_and_only_if_they_ask_the_same(rows: list[LogRow]) -> None:
    asked: dict[str, tuple[object, ...]] = {}
    for p in planned(rows).rows:
        if p.asked is not None:
            # 128 is what the configuration says where a row says nothing
            span = tuple(None if side is None else float(side) for side in (p.row.start, p.row.end))
            same = (p.row.video, p.row.question, p.row.max_new_tokens or 128, *span)
            assert asked.setdefault(p.asked.key, same) == same
    assert len(set(asked.values())) == len(asked)


@given(rows=rows, most=st.integers(1, 5))
def test_groups_hold_every_question_once_and_a_file_once(rows: list[LogRow], most: int) -> None:
    questions = planned(rows).questions
    groups = group(questions.values(), Path("work"), most=most)
    assert Counter(a.key for g in groups for a in g.asked) == Counter(questions.keys())
    for g in groups:
        assert all(questions[a.key].row.video == g.video for a in g.asked)
        assert bool(g.path) == bool(g.memory) == g.video.startswith("f")
        assert g.path or len(g.asked) <= most
    files = [g.video for g in groups if g.path]
    assert len(set(files)) == len(files)
    assert len({g.memory for g in groups if g.path}) == len(files)
    assert len({g.tries for g in groups}) == len(groups)
    sizes = [int(g.video[1:]) for g in groups]
    assert sizes == sorted(sizes, reverse=True), "what takes longest is begun first"


def test_another_model_method_or_rate_is_another_question_and_another_memory() -> None:
    row = [LogRow("1", "why?", "f0")]
    others = [
        planned(row),
        planned(row, fingerprint="n"),
        planned(row, replace(CONFIG, method=MethodConfig(n_local=9))),
        planned(row, replace(CONFIG, source=replace(CONFIG.source, sample_fps=3.0))),
    ]
    for of in (lambda p: p.memory, lambda p: p.asked.key if p.asked else ""):
        assert len({of(plan.rows[0]) for plan in others}) == len(others)
    assert planned(row, replace(CONFIG, preset="renamed")).questions == planned(row).questions


def key(question: str, video: str = "s0", *, start: Moment | None = None, **serve: object) -> str:
    config = replace(CONFIG, serve=replace(CONFIG.serve, **serve))
    (only,) = planned([LogRow("1", question, video, start=start)], config).questions
    return only


def test_one_moment_said_in_two_ways_is_one_question() -> None:
    said = [60, "60.0", "2026-01-31T13:01:00Z", "2026-01-31T14:01:00+01:00", "2026-01-31 13:01"]
    assert len({key("why?", start=moment) for moment in said}) == 1
    assert key("why?", start="2026-01-31T14:01", time_zone="Europe/Berlin") == key("why?", start=60)


def test_the_time_zone_makes_another_question_only_where_words_need_it() -> None:
    berlin = "Europe/Berlin"
    assert key("who came since 13:30?", time_zone=berlin) != key("who came since 13:30?")
    assert key("who came?", time_zone=berlin) == key("who came?")
    asks_words = key("who came since 13:30?", time_phrases=False)
    assert key("who came since 13:30?", time_zone=berlin, time_phrases=False) == asks_words
    assert asks_words != key("who came since 13:30?"), "an answer of the other kind is none of this"


@pytest.mark.parametrize(
    ("video", "start", "end", "error"),
    [
        ("f0", 90.0, 60.0, "`from` must come before `to`"),
        ("f0", "60", "60.0", "`from` must come before `to`"),
        ("f0", "soon", None, "from: got 'soon', allowed seconds of the stream or an ISO time"),
        ("f0", None, "nan", "to: got 'nan', allowed seconds of the stream or an ISO time"),
        ("f0", math.nan, None, "from: got nan, allowed seconds of the stream or an ISO time"),
        ("f0", None, math.inf, "to: got inf, allowed seconds of the stream or an ISO time"),
        ("f0", "2026-01-31T13:30", None, "when this stream was recorded is not known"),
        ("s0", "2026-01-31T13:30", "2026-01-31T13:10", "`from` must come before `to`"),
        ("s0", None, "2026-01-31T15:00", "in the future: it is 2026-01-31T14:00:00+00:00, 3600 s into"),
    ],
)
def test_a_time_that_cannot_be_is_its_rows_error_before_any_video_is_shown(
    video: str, start: Moment | None, end: Moment | None, error: str
) -> None:
    bad, good = planned([LogRow("1", "why?", video, None, start, end), LogRow("2", "why?", video)]).rows
    assert bad.error.startswith("QuestionError: ")
    assert error in bad.error
    assert bad.asked is None
    assert good.asked


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("../x.mp4", "allowed is a file in the footage folder"),
        ("sub/../../x.mp4", "allowed is a file in the footage folder"),
        ("/etc/passwd", "allowed is a file in the footage folder"),
        ("none.mp4", "not in .*No such file"),
        ("sub", "not a file"),
        (".", "not a file"),
        ("a\0b", "not in .*null byte"),
        ("a" * 5000, "File name too long"),
        ("https://host/a.mp4", "not in"),
    ],
)
def test_names_that_are_no_video_of_the_folder_are_refused(tmp_path: Path, name: str, error: str) -> None:
    folder = tmp_path / "footage"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "x.mp4").touch()
    with pytest.raises(SourceError, match=error):
        Files(folder, CONFIG).find(name)


def test_a_file_that_was_changed_is_another_video(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "a.mp4"
    file.write_bytes(b"one")
    files = Files(tmp_path, CONFIG)
    first = files.find("sub/a.mp4")
    assert files.find("./sub/a.mp4").identity == first.identity
    os.utime(file, ns=(1, 1))
    touched = files.find("sub/a.mp4")
    file.write_bytes(b"more")
    os.utime(file, ns=(1, 1))
    assert len({first.identity, touched.identity, files.find("sub/a.mp4").identity}) == 3


def test_footage_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    for path in (tmp_path / "a.mp4", tmp_path / "none"):
        with pytest.raises(BatchError, match="--footage: no folder"):
            open_footage(path, CONFIG)
    (tmp_path / "home" / "store").mkdir(parents=True)
    (tmp_path / "home" / "store" / "store.json").write_text("{}")
    with pytest.raises(BatchError, match="a server's home; give its store"):
        open_footage(tmp_path / "home", CONFIG)
    assert isinstance(open_footage(tmp_path, CONFIG), Files)
