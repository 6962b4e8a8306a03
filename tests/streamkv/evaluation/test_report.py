"""The table, against sums by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamkv.evaluation.report import plot, summarise, to_markdown, wilson, write_table
from streamkv.evaluation.runner import AnswerRow


def row(
    score: float | None,
    *,
    variant: str = "a",
    kind: str = "colour",
    age_s: float | None = 5.0,
    video: str = "v",
) -> AnswerRow:
    return AnswerRow(
        suite="s", variant=variant, seed=1, video=video, question_id="q", kind=kind, question="?", expected="x",
        answer="x", scoring="exact", score=score, asked_at_s=9.0, age_s=age_s, in_top3=score == 1.0,
        first_token_ms=10.0, total_ms=20.0, blocks_per_layer=4.0, stored_bytes=1_000, kv_bytes=900,
        duration_s=1_800.0, frames=5, segments=2, error="" if score is not None else "no",
    )  # fmt: skip


def test_the_table_is_what_counting_gives() -> None:
    rows = [
        row(1.0), row(0.0, kind="count"), row(1.0, age_s=70.0, video="w"), row(None, age_s=None, video="w"),
        row(1.0, variant="b"),
    ]  # fmt: skip
    first, second = summarise(rows)
    assert (first.questions, first.accuracy, first.for_a_judge, first.unanswered) == (4, 2 / 3, 1, 1)
    assert first.bytes_per_hour == 2_000 / 1.0
    assert first.by_kind == {"colour": (1.0, 2), "count": (0.0, 1)}
    assert first.by_age == {"<1 min": (0.5, 2), "1-10 min": (1.0, 1)}
    assert list(first.by_age) == ["<1 min", "1-10 min"]
    assert (second.accuracy, second.bytes_per_hour) == (1.0, 2_000)


def test_what_only_a_judge_can_score_has_no_accuracy() -> None:
    (summary,) = summarise([row(None)])
    assert (summary.accuracy, summary.ci95) == (None, None)
    assert json.loads(json.dumps(summary.as_json()))["accuracy"] is None


@given(st.integers(0, 300), st.integers(1, 300))
def test_the_interval_holds_the_share_and_shrinks_with_more_answers(right: int, total: int) -> None:
    right = min(right, total)
    low, high = wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1
    wider = wilson(right, total)
    narrower = wilson(right * 4, total * 4)
    assert narrower[1] - narrower[0] < wider[1] - wider[0]


def test_the_interval_is_wilsons() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 0) == (0.0, 1.0)


def test_tables_and_picture_are_written(tmp_path: Path) -> None:
    summaries = summarise([row(1.0), row(0.0, variant="b")])
    text = to_markdown(summaries)
    assert "| a | 1 | 1.000 |" in text
    assert "| b | 1 | 0.000 |" in text
    write_table(summaries, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet")["accuracy"].to_pylist() == [1.0, 0.0]
    plot(summaries, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        width, height = picture.size
    assert width > 300
    assert height > 300
    assert not math.isnan(summaries[0].ttft_ms_p50)
