"""The store's actor uploads by itself what was committed, and neither a commit nor its end waits for the bucket."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, s3_server

from actors.rounds import Rounds
from actors.store_actor import StoreActor
from streamkv.config import StoreConfig
from streamkv.store import SegmentStore, write_segment

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "streamkv" / "store"))
from store_samples import IDENTITY, check_segments, make_kv

WAIT_S = 60.0


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def config(s3: S3Server, tmp_path: Path) -> StoreConfig:
    """The disk keeps a byte, so everything that may leave it does."""
    return StoreConfig(
        root=str(tmp_path / "store"), remote=s3.new_prefix(), s3=s3.config, local_bytes=1, offload_s=0.05
    )


def wait_for(what: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def commit(actor: StoreActor, config: StoreConfig, epoch: int, *numbers: int) -> None:
    for no in numbers:
        assert actor.commit(write_segment(config.root, IDENTITY, "cam", epoch, make_kv(no)))


def test_uploads_go_on_behind_commits_and_catch_up_after_an_outage(config: StoreConfig, s3: S3Server) -> None:
    actor = StoreActor(config, IDENTITY)
    try:
        actor.add_stream("cam", "file:cam.mp4", {})
        epoch = actor.begin_session("cam").record.epoch
        commit(actor, config, epoch, 0, 1)
        wait_for(lambda: len(s3.objects(config.remote)) == 2)
        with s3.away():
            commit(actor, config, epoch, 2, 3)
        wait_for(lambda: actor.totals().get("uploaded_segments") == 4)
        wait_for(lambda: not list(Path(config.root).glob("streams/*/*")))
        with SegmentStore.configured(config, read_only=True) as reader:
            check_segments(reader.reader("cam").snapshot, 4)
        actor.remove_stream("cam")
        wait_for(lambda: not s3.objects(config.remote))
    finally:
        actor.shutdown()


def test_server_without_an_object_store_has_no_such_rounds(tmp_path: Path) -> None:
    actor = StoreActor(StoreConfig(root=str(tmp_path / "store")), IDENTITY)
    actor.start()
    try:
        assert "offload" not in {thread.name for thread in threading.enumerate()}
    finally:
        actor.shutdown()


def test_round_that_failed_is_done_again() -> None:
    done: list[int] = []

    def work(_: object) -> None:
        done.append(1)
        if len(done) < 3:
            raise OSError("away")

    rounds = Rounds("test", 0.01, work)
    rounds.start()
    wait_for(lambda: len(done) > 3)
    rounds.shutdown()


def test_shutdown_ends_a_round_after_the_segment_at_hand() -> None:
    segments: list[int] = []

    def work(go_on: Callable[[int, int], None]) -> None:
        while True:
            segments.append(1)
            time.sleep(0.01)
            go_on(len(segments), 1_000_000)

    rounds = Rounds("test", 0.01, work)
    rounds.start()
    wait_for(lambda: bool(segments))
    rounds.shutdown()
    assert not rounds._thread.is_alive()
