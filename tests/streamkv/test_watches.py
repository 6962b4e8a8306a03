"""When a watch fires, what it is asked of, and where its events may go."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_segment_kv

from streamkv.confidence import NOT_SHOWN
from streamkv.config import ConfidenceConfig, MethodConfig
from streamkv.engine import Engine
from streamkv.errors import WatchError
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.watches import (
    WatchAnswer,
    WatchQuestion,
    ask_segment,
    check_secret,
    check_webhook,
    is_change,
    method_of_watches,
    new_secret,
    shown,
    shown_url,
)


def answer(text: str, confidence: float | None = None) -> WatchAnswer:
    return WatchAnswer("w", text, confidence, ())


@pytest.mark.parametrize(
    ("text", "confidence", "counts_as"),
    [
        (" Red ", 0.5, "Red"),
        ("red", None, "red"),  # of a model that does not say
        ("red", 0.49, ""),
        (NOT_SHOWN, 0.99, ""),
        (f" {NOT_SHOWN}\n", None, ""),
        ("  ", 0.99, ""),
        ("re\0d", 0.99, "red"),
    ],
)
def test_an_answer_that_is_unlikely_or_none_is_not_shown(
    text: str, confidence: float | None, counts_as: str
) -> None:
    assert shown(answer(text, confidence), 0.5) == counts_as


@pytest.mark.parametrize(
    ("before", "now", "fires", "fires_when_gone"),
    [
        ("", "red", True, True),
        ("red", "blue", True, True),
        ("red", " RED", False, False),
        ("STRASSE", "straße", False, False),
        ("red", "", False, True),
        ("", "", False, False),
    ],
)
def test_a_watch_fires_on_change(before: str, now: str, fires: bool, fires_when_gone: bool) -> None:
    assert is_change(before, now, when_gone=False) is fires
    assert is_change(before, now, when_gone=True) is fires_when_gone


@given(st.lists(st.sampled_from(["", "red", "Red", "blue"])))
def test_events_are_the_runs_of_equal_answers(answers: list[str]) -> None:
    """Against the obvious: the list folded, without repeats; with `when_gone` told whole, else without its gaps."""
    folded = [a.casefold() for a in answers]
    runs = [now for before, now in zip(["", *folded], folded, strict=False) if now != before]
    for when_gone in (True, False):
        before, told = "", []
        for now in answers:
            if is_change(before, now, when_gone=when_gone):
                told.append(now.casefold())
            before = now
        assert told == [run for run in runs if run or when_gone]


def test_a_segment_answers_each_question_as_the_engine_does(tiny_model: VideoLLM) -> None:
    method = MethodConfig(watch_confidence=ConfidenceConfig(intercept=0.5))
    engine = Engine(tiny_model, method_of_watches(method))
    kv = random_segment_kv(tiny_model.geometry, 7, kept=[3, 1, 2])
    questions = [WatchQuestion("a", "what is the bus"), WatchQuestion("b", "how many red dog")]
    found = ask_segment(engine, tiny_model.geometry, 5, kv, questions)
    assert [a.watch_id for a in found] == ["a", "b"]
    for question, heard in zip(questions, found, strict=True):
        alone = engine.answer(InMemoryVideo(tiny_model.geometry, [kv]), question.text, max_new_tokens=5)
        assert (heard.text, heard.evidence) == (alone.text, alone.evidence)
        assert alone.blocks_per_layer == (3, 1, 2), "all that the segment kept"
        assert [(e.segment_no, e.start_s, e.end_s) for e in heard.evidence] == [(7, kv.start_s, kv.end_s)]
        assert heard.confidence == pytest.approx(0.622, abs=1e-3), "by the weights of watches"


def test_the_method_of_watches_differs_in_how_one_segment_is_read_alone() -> None:
    method = MethodConfig(confidence=ConfidenceConfig(intercept=1.0))
    mine = method_of_watches(method)
    assert mine.confidence is None
    assert replace(mine, retrieve=method.retrieve, confidence=method.confidence) == method


@pytest.mark.parametrize(
    "url", ["http://a", "https://user:word@example.com:8443/hook?x=1", "http://[::1]:80/"]
)
def test_webhooks_go_to_http(url: str) -> None:
    check_webhook(url, "")


NO_WEBHOOKS = (
    *("", "example.com/hook", "ftp://a/b", "http://", "http:///path", "http://[::1", "http://a:port"),
    *("http://a/b c", "http://a/\nb", "http://a:0/", "file:///etc", "javascript:alert(1)"),
)
NO_SECRETS = (
    *("hunter2", "whsec_", "whsec_hunter2", "whsec_é" * 9, base64.b64encode(b"x" * 32).decode()),
    *("whsec_" + base64.b64encode(b"x" * count).decode() for count in (23, 65)),
)


@pytest.mark.parametrize("url", NO_WEBHOOKS)
def test_other_urls_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(WatchError, match="allowed http") as caught:
        check_webhook(url, "")
    assert url in ("", "http://") or url not in str(caught.value)


@pytest.mark.parametrize("secret", NO_SECRETS)
def test_secrets_of_another_form_are_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(WatchError, match="24 to 64 bytes") as caught:
        check_webhook("http://a", secret)
    assert secret == "whsec_" or secret not in str(caught.value)


def test_secrets_that_are_made_are_good_and_differ() -> None:
    one, other = new_secret(), new_secret()
    assert one != other
    check_secret(one)
    assert len(base64.b64decode(one.removeprefix("whsec_"))) == 32


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://hooks.example.com/services/T0/B0/s3cret", "https://hooks.example.com/***"),
        ("http://bob:hunter2@a:80?token=hunter2", "http://a:80/***"),
        ("http://a/", "http://a"),
    ],
)
def test_of_a_webhook_only_the_host_is_shown(url: str, said: str) -> None:
    assert shown_url(url) == said
