"""From rows to what is asked: nothing lost, nothing twice, a file's questions together."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batch.footage import Files, Video, open_footage
from pipeline.batch.plan import Plan, group, make_plan
from pipeline.batch.question_log import LogRow
from streamkv.config import MethodConfig, PipelineConfig
from streamkv.errors import BatchError, SourceError

CONFIG = PipelineConfig()


class Names:
    """Footage of files `f0` to `f3` and streams `s0` to `s3`; anything else is unknown."""

    config = CONFIG

    def check(self, identity: object) -> None: ...

    def find(self, name: str) -> Video:
        if name[1:] not in ("0", "1", "2", "3"):
            raise SourceError(f"no {name}")
        return Video(name, f"/{name}" if name[0] == "f" else "", (name,), int(name[1:]))


rows = st.lists(
    st.builds(
        LogRow,
        id=st.text(max_size=3),
        question=st.sampled_from(["what?", "why?", "who?"]),
        video=st.builds("".join, st.tuples(st.sampled_from("fs"), st.sampled_from("01239"))),
        max_new_tokens=st.sampled_from([None, 1, 128]),
        error=st.sampled_from(["", "", "", "bad row"]),
    ),
    max_size=60,
)


def planned(given_rows: list[LogRow], config: PipelineConfig = CONFIG, fingerprint: str = "m") -> Plan:
    return make_plan(given_rows, Names(), config, fingerprint)


@settings(deadline=None)
@given(rows=rows)
def test_each_row_has_an_answer_to_wait_for_or_an_error(rows: list[LogRow]) -> None:
    plan = planned(rows)
    assert [p.row for p in plan.rows] == rows
    for p in plan.rows:
        assert bool(p.error) == (p.asked is None) == (p.row.error != "" or p.row.video.endswith("9"))


@settings(deadline=None)
@given(rows=rows)
def test_rows_share_an_answer_if_and_only_if_they_ask_the_same(rows: list[LogRow]) -> None:
    asked: dict[str, tuple[str, str, int]] = {}
    for p in planned(rows).rows:
        if p.asked is not None:
            # 128 is what the configuration says where a row says nothing
            same = (p.row.video, p.row.question, p.row.max_new_tokens or 128)
            assert asked.setdefault(p.asked.key, same) == same
    assert len(set(asked.values())) == len(asked)


@settings(deadline=None)
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
