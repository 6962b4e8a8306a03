"""Standing questions on a real Ray: over HTTP and to a webhook, while a worker is killed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live import LiveServer, wait_for_end, wait_until
from test_live import QUESTION, check_whole
from webhook_receiver import Receiver, verify

from pipeline.client import ServerError

pytestmark = pytest.mark.ray


def follow(server: LiveServer, watch_id: str) -> tuple[list[dict[str, Any]], ServerError]:
    """All that the watch tells until it is removed."""
    told: list[dict[str, Any]] = []
    with server.client() as client:
        try:
            for event in client.follow_watch(watch_id):
                told.append(event)
        except ServerError as exc:
            return told, exc
    raise AssertionError("it never ends without an error")


def test_a_watch_tells_what_changes_whoever_dies(server: LiveServer, films: Path) -> None:
    """The tiny model says this and that of each segment; a watch tells each run of it once, on every way out."""
    with server.client() as client, Receiver([500, 204]) as receiver, ThreadPoolExecutor() as beside:
        client.add_stream("long", str(films / "long.mp4"))
        try:
            added = client.add_watch("long", QUESTION, webhook=receiver.url)
            watch_id, secret = added["id"], added["secret"]
            plain = client.add_watch("long", "how many dog", when_gone=True)["id"]
            with pytest.raises(ServerError, match="unknown") as caught:
                client.add_watch("nobody", QUESTION)
            assert caught.value.status == 404
            following = beside.submit(follow, server, watch_id)
            wait_until(lambda: client.watch(watch_id)["events"] > 0)
            server.kill("Prefill")
            assert wait_for_end(client, "long")["long"]["state"] == "done"
            check_whole(server, "long", 100)

            listed = client.watches("long")
            assert {w["id"] for w in listed} == {watch_id, plain}
            assert {w["segment"] for w in listed} == {49}, "asked of the last one, too"
            wait_until(lambda: client.watch(watch_id)["waiting"] == 0)
            assert client.watch(watch_id)["failed"] == 0
            with pytest.raises(ServerError, match="it will show nothing new"):
                client.add_watch("long", QUESTION)
            count = client.watch(watch_id)["events"]
            again = client.follow_watch(watch_id)
            told = [next(again) for _ in range(count)]
            again.close()
            client.remove_watch(watch_id)
            heard, end = following.result(timeout=60)
        finally:
            client.remove_stream("long")
        assert client.watches() == []

    assert (end.status, end.kind) == (404, "UnknownWatchError")
    segments = [event["segment"] for event in told]
    assert segments == sorted(set(segments))
    assert [event["segment"] for event in heard] == segments, "who follows from the start misses none"
    for before, event in zip([None, *told], told, strict=False):
        assert event["answer"].casefold() != event["previous"].casefold()
        assert event["previous"] in ("", before["answer"] if before else "")
        assert (event["start_s"], event["end_s"]) == (2.0 * event["segment"], 2.0 * event["segment"] + 2)
        assert event["delivery"]["state"] == "delivered"
    assert told[0]["delivery"]["tries"] == 2
    assert receiver.segments == [segments[0], *segments]
    for headers, body in receiver.requests:
        verify(secret, headers, body)
    assert secret not in f"{listed} {told}"
