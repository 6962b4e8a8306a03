"""A server whose streams have all the bytes that they may have, on a real Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import SETTINGS, LiveServer, wait_for_end, wait_until
from test_live import QUESTION, check_whole

from streamkv.config import RetentionConfig
from streamkv.store import SegmentStore

pytestmark = pytest.mark.ray


def test_full_tenant_pauses_and_others_go_on(tmp_path: Path, tiny_checkpoint: Path, films: Path) -> None:
    limit = 600_000
    server = LiveServer(
        tmp_path / "home",
        tiny_checkpoint,
        *SETTINGS,
        f"store.retention.tenant_bytes={limit}",
        "store.upkeep_s=1",
    )
    server.up()
    try:
        with server.client() as client:
            client.add_stream("full", str(films / "long.mp4"), tenant="acme")
            wait_until(lambda: client.stream("full")["state"] == "paused")
            assert "tenant 'acme' has" in client.stream("full")["detail"]
            assert 0 < client.stream("full")["file_bytes"] <= limit
            assert client.ask("full", QUESTION)["answer"]
            client.add_stream("other", str(films / "short.mp4"), tenant="else")
            assert wait_for_end(client, "other")["other"]["state"] == "done"
            assert client.stream("full")["state"] == "paused"
            check_whole(server, "other", 10)
            # Room that somebody makes is found, and the stream goes on by itself.
            before = client.stream("full")["segments"]
            with SegmentStore.open(server.home.store) as store:
                store.retain(RetentionConfig(stream_bytes=limit // 2, when_full="oldest"), "full")
            wait_until(lambda: client.stream("full")["as_of_s"] > 2 * before)
            answer = client.ask("full", QUESTION)
            assert answer["gaps"][0]["reason"] == "retention"
            assert min(evidence["start_s"] for evidence in answer["evidence"]) >= answer["gaps"][0]["end_s"]
    finally:
        server.discard()
