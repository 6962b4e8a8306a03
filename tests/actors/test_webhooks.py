"""Events go to real HTTP servers: signed, again after a failure, in order, and each receiver by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from stage import IDENTITY, wait_until
from standardwebhooks import Webhook
from tiny import random_segment_kv
from webhook_receiver import Receiver, verify

from actors.store_actor import StoreActor
from actors.webhooks import pause_s
from streamkv.config import StoreConfig, WatchConfig
from streamkv.store import write_segment
from streamkv.types import Evidence
from streamkv.watches import Watch, WatchAnswer, check_secret, new_secret

QUICK = WatchConfig(first_pause_s=0.05, longest_pause_s=0.2, timeout_s=10, tries=5)


class Town:
    """A store's actor and one stream whose watches hear what they are told to hear."""

    def __init__(self, root: Path, config: WatchConfig = QUICK) -> None:
        self._root, self._config = root, config
        self.actor = self._open()
        self.actor.add_stream("cam", "file:cam.mp4", {})
        record = self.actor.begin_session("cam").record
        assert record is not None
        self._epoch = record.epoch
        self._next_no = 0

    def _open(self) -> StoreActor:
        actor = StoreActor(StoreConfig(root=str(self._root), upkeep_s=0), IDENTITY, self._config)
        actor.start()
        return actor

    def restart(self) -> None:
        self.actor.shutdown()
        self.actor = self._open()

    def watch(self, watch_id: str, url: str, secret: str = "") -> None:
        self.actor.add_watch(Watch(watch_id, "cam", "?", url=url, secret=secret or new_secret()), 100)

    def show(self, *watch_ids: str) -> None:
        """A segment that is another answer for each of them."""
        kv = random_segment_kv(IDENTITY.geometry, self._next_no)
        evidence = (Evidence(kv.segment_no, kv.start_s, kv.end_s, 1.0, 2),)
        answers = [WatchAnswer(w, f"réd {kv.segment_no}", 0.9, evidence) for w in watch_ids]
        self.actor.commit(write_segment(self._root, IDENTITY, "cam", self._epoch, kv), answers)
        self._next_no += 1

    def deliveries(self, watch_id: str) -> list[tuple[str, int, str]]:
        (events,) = self.actor.watch_events([(watch_id, -1)], 100)
        assert events is not None
        return [(e.delivery.state, e.delivery.tries, e.delivery.detail) for e in events]

    def states(self, watch_id: str) -> list[str]:
        return [state for state, _, _ in self.deliveries(watch_id)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.webhooks.POLL_S", 0.02)


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    town = Town(tmp_path / "store")
    yield town
    town.actor.shutdown()


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of Standard Webhooks' own libraries."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    at = datetime.fromtimestamp(1614265330, UTC)
    found = Webhook(secret).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, body.decode())
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    check_secret(secret)  # of 24 bytes, which is allowed


def test_a_receiver_that_fails_twice_gets_its_event_signed(town: Town) -> None:
    secret = new_secret()
    with Receiver([500, 302, 204]) as receiver:
        town.watch("w", receiver.url, secret)
        town.show("w")
        wait_until(lambda: town.states("w") == ["delivered"])
    assert town.deliveries("w") == [("delivered", 3, "")]
    assert len(receiver.requests) == 3
    for headers, body in receiver.requests:
        verify(secret, headers, body)
        assert headers["content-type"] == "application/json"
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
    assert len({body for _, body in receiver.requests}) == 1
    content = json.loads(receiver.requests[0][1])
    assert (content["type"], content["data"]["watch"], content["data"]["answer"]) == (
        "watch.fired",
        "w",
        "réd 0",
    )
    assert content["data"]["evidence"] == [{"segment": 0, "start_s": 0.0, "end_s": 8.0, "weight": 1.0}]
    with pytest.raises(AssertionError):
        verify(new_secret(), *receiver.requests[0])


def test_tries_go_on_where_the_last_process_was(tmp_path: Path) -> None:
    town = Town(tmp_path / "store", replace(QUICK, first_pause_s=0.5, longest_pause_s=0.5))
    with Receiver([503, 204]) as receiver:
        town.watch("w", receiver.url)
        town.show("w")
        wait_until(lambda: town.deliveries("w") == [("waiting", 1, "the receiver answered 503")])
        town.restart()
        assert town.states("w") == ["waiting"]
        town.show("w")
        wait_until(lambda: town.states("w") == ["delivered"] * 2)
        town.restart()
        town.show("w")
        wait_until(lambda: town.states("w") == ["delivered"] * 3)
    assert receiver.segments == [0, 0, 1, 2], "in order, and what was taken is not sent again"
    town.actor.shutdown()


def test_a_slow_receiver_delays_no_other(town: Town) -> None:
    with Receiver([0]) as slow, Receiver([204]) as other:
        for watch_id, receiver in (("s", slow), ("s2", slow), ("o", other)):
            town.watch(watch_id, receiver.url)
        for _ in range(3):
            town.show("s", "s2", "o")
        wait_until(lambda: town.states("o") == ["delivered"] * 3)
        assert town.states("s") == town.states("s2") == ["waiting"] * 3
        wait_until(lambda: len(slow.requests) > 0)
        assert len(slow.requests) == 1, "one at a time"
        slow.let_go.set()
        wait_until(lambda: town.states("s") == town.states("s2") == ["delivered"] * 3)


def test_what_is_not_taken_is_given_up_and_says_why(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    with Receiver([500]) as failing, Receiver([410]) as gone:
        town.watch("f", failing.url)
        town.watch("g", gone.url)
        town.watch("dead", "http://bob:hunter2@127.0.0.1:9/hook?key=hunter2")
        town.show("f", "g", "dead")
        wait_until(lambda: {*town.states("f"), *town.states("g"), *town.states("dead")} == {"failed"})
        assert town.deliveries("f") == [("failed", QUICK.tries, "the receiver answered 500")]
        assert town.deliveries("g") == [("failed", 1, "the receiver answered 410")], "it wants no more"
        assert town.deliveries("dead") == [("failed", QUICK.tries, "ConnectError")]
        assert "event 0 is given up" in caplog.text
        assert "hunter2" not in caplog.text
        town.show("f")
        wait_until(lambda: len(failing.requests) > QUICK.tries)  # the next one has its own tries


def test_a_receiver_that_does_not_answer_has_failed(tmp_path: Path) -> None:
    town = Town(tmp_path / "store", replace(QUICK, timeout_s=0.2, tries=1))
    with Receiver([0]) as receiver:
        town.watch("w", receiver.url)
        town.show("w")
        wait_until(lambda: town.deliveries("w") == [("failed", 1, "no answer within 0.2 s")])
    town.actor.shutdown()


def test_pauses_grow_up_to_the_longest() -> None:
    config = WatchConfig(first_pause_s=5, longest_pause_s=60)
    pauses: Sequence[float] = [pause_s(tries, config) for tries in range(1, 7)]
    assert pauses == [5, 10, 20, 40, 60, 60]
    assert pause_s(10_000, config) == 60
