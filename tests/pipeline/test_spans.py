"""What a question is restricted to: times beside it come first, then its own words."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from tiny import random_segment_kv

from pipeline.dialogue import Query
from pipeline.spans import AskedSpan, asked_span
from streamkv.config import ServeConfig
from streamkv.errors import ConfigError, QuestionError
from streamkv.excerpt import Span
from streamkv.memory import InMemoryVideo
from streamkv.store import StreamInfo
from streamkv.types import Geometry

GEOMETRY = Geometry(num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4, hidden_dim=8, frame_tokens=5)
MEMORY = InMemoryVideo(GEOMETRY, [random_segment_kv(GEOMETRY, no, kept=(2,)) for no in range(10)])
AGE_S = MEMORY.as_of_s + 5
ARCHIVE = StreamInfo(
    stream_id="lobby",
    uri="/footage/lobby.mp4",
    state="done",
    detail="",
    created_at=time.time() - AGE_S,
    epoch=1,
    num_segments=10,
    num_frames=40,
    num_source_frames=40,
    kv_bytes=1,
    file_bytes=1,
    as_of_s=MEMORY.as_of_s,
    resume_s=0.0,
    next_segment_no=10,
    config={"is_live": False},
)
LIVE = replace(ARCHIVE, uri="rtsp://cam/1", config={"is_live": True})
WORDS = "in the last half an hour"


def asked(query: Query, info: StreamInfo, **config: object) -> AskedSpan | None:
    return asked_span(query, MEMORY, info, ServeConfig(**config))


def test_times_beside_the_question_come_before_its_words() -> None:
    question = f"who came {WORDS}?"
    assert asked(Query("lobby", question, start=8.0), ARCHIVE) == AskedSpan(Span(8.0), None, question)
    assert asked(Query("lobby", question), ARCHIVE) == AskedSpan(
        Span(MEMORY.as_of_s - 1800), WORDS, "who came?"
    )
    assert asked(Query("lobby", "who came?"), ARCHIVE) is None


def test_words_are_only_words_when_they_are_switched_off() -> None:
    assert asked(Query("lobby", f"who came {WORDS}?"), ARCHIVE, time_phrases=False) is None


def test_only_a_live_stream_has_times_of_day() -> None:
    born = datetime.fromtimestamp(LIVE.created_at, UTC)
    words = f"since {born:%H:%M:%S}"
    found = asked(Query("lobby", f"who came {words}?"), LIVE)
    assert found is not None
    assert found.words == words
    assert -1 <= found.span.start_s <= 0
    assert found.span.end_s == math.inf
    assert asked(Query("lobby", f"who came {words}?"), ARCHIVE) is None


def test_words_that_name_no_footage_say_so() -> None:
    with pytest.raises(QuestionError, match="'in the last 2 seconds': nothing of this stream is from"):
        asked(Query("lobby", "who came in the last 2 seconds?"), LIVE)
    with pytest.raises(QuestionError, match=r"'since 9:00 of the video': nothing .* leave these words out"):
        asked(Query("lobby", "who came since 9:00 of the video?"), ARCHIVE)


def test_times_beside_the_question_that_name_no_footage_are_refused() -> None:
    with pytest.raises(QuestionError, match="nothing of this stream is"):
        asked(Query("lobby", "who came?", start=1e6), ARCHIVE)
    with pytest.raises(QuestionError, match="which is in the future"):
        asked(Query("lobby", "who came?", start=1e6), LIVE)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "utc+1"])
def test_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(ConfigError, match=r"serve\.time_zone: got"):
        ServeConfig(time_zone=zone)


def test_zone_says_what_a_time_without_one_means() -> None:
    local = datetime.fromtimestamp(LIVE.created_at + 10, UTC).isoformat().removesuffix("+00:00")
    found = asked(Query("lobby", "who came?", start=local), LIVE)
    assert found is not None
    assert found.span.start_s == pytest.approx(10.0, abs=1e-3)
    with pytest.raises(QuestionError, match="in the future"):
        asked(Query("lobby", "who came?", start=local), LIVE, time_zone="America/New_York")
