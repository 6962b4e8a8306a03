"""Writers and readers that are processes: killed, stopped, two at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from store_samples import (
    assert_same_segment,
    check_segments,
    filled,
    make_kv,
    on_both,
    segment_files,
    store_segment,
)

from streamkv.store import SegmentStore

HERE = Path(__file__).resolve().parent

SETTING = """
import os, signal, sys
from pathlib import Path
from store_samples import IDENTITY, make_kv
from streamkv.errors import FencedError, StoreError
from streamkv.store import SegmentStore, database, write_segment

root, url = Path(sys.argv[1]), sys.argv[2]
store = SegmentStore.open(root, catalog_url=url, identity=IDENTITY)
print("ready", flush=True)
"""

WRITER = """
epoch = store.begin_writing("cam")
no = store.stream("cam").next_segment_no
while no < int(sys.argv[3]):
    store.commit(write_segment(root, IDENTITY, "cam", epoch, make_kv(no)))
    print(no, flush=True)  # the acknowledgement
    no += 1
"""

RIVAL = """
sys.stdin.readline()  # both begin together
for _ in range(12):
    epoch, no = store.begin_writing("cam"), store.stream("cam").next_segment_no
    seed = 1000 * int(sys.argv[3]) + no
    try:
        if store.commit(write_segment(root, IDENTITY, "cam", epoch, make_kv(no, seed=seed))):
            print(no, seed)
    except StoreError:  # taken over; the other may have cleaned up under its hands, too
        continue
"""

STOPPED = """
def stop_at(moment):
    if moment == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGSTOP)

epoch = store.begin_writing("cam")
stop_at("before the file")
place = write_segment(root, IDENTITY, "cam", epoch, make_kv(1, seed=99))
stop_at("before the row")
try:
    print("committed", store.commit(place))
except FencedError as exc:
    print(exc)
"""

STOPPED_IN_COMMIT = """
from sqlalchemy import event
from sqlalchemy.orm import Session

database.ABANDONED_S = 1.0
store.close()
store = SegmentStore.open(root, catalog_url=url, identity=IDENTITY)
place = write_segment(root, IDENTITY, "cam", store.begin_writing("cam"), make_kv(1, seed=99))
event.listen(Session, "before_commit", lambda session: os.kill(os.getpid(), signal.SIGSTOP))
try:
    print("committed", store.commit(place))
except StoreError as exc:
    print(exc)
"""


@contextmanager
def process(code: str, store: SegmentStore, url: str, argument: object) -> Iterator[subprocess.Popen[str]]:
    """A process with the store open; killed when the block ends."""
    paths = [str(HERE), str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SETTING + code, str(store.root), url, str(argument)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def wait_for_stop(child: subprocess.Popen[str]) -> None:
    """Until it has stopped itself by SIGSTOP."""
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


@on_both
def test_killed_writer_loses_and_doubles_nothing(store: SegmentStore, catalog_url: str) -> None:
    """kill -9 at a random moment, three times over the same stream."""
    luck = random.Random(20)
    acknowledged: list[int] = []
    for _ in range(3):
        with process(WRITER, store, catalog_url, 10**6) as writer:
            acknowledged += [int(writer.stdout.readline()) for _ in range(luck.randint(1, 20))]
            time.sleep(luck.uniform(0, 0.02))
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout.read().splitlines() if line.strip()]
        # One reading: a server may still finish the last commit of a client that is dead.
        snapshot = store.reader("cam").snapshot
        count = len(snapshot.segments)
        assert acknowledged == sorted(set(acknowledged))
        assert count - 1 <= len(acknowledged) + 3  # at most one commit a round was not acknowledged
        assert set(acknowledged) <= set(range(count))
        check_segments(snapshot, count)
    store.begin_writing("cam")
    assert store.verify() == []


@on_both
def test_two_readers_follow_a_writing_process(store: SegmentStore, catalog_url: str) -> None:
    """Each in a store of its own; every snapshot is a whole prefix of the stream, to the last bit."""
    total = 40

    def follow(seen: list[int]) -> None:
        with SegmentStore.open(store.root, catalog_url=catalog_url, read_only=True) as mine:
            reader = mine.reader("cam")
            while not seen or seen[-1] < total:
                snapshot = reader.refresh()
                check_segments(snapshot, len(snapshot.segments))
                seen.append(len(snapshot.segments))
                time.sleep(0.02)  # the writer needs the processor too

    counts: list[list[int]] = [[], []]
    readers = [threading.Thread(target=follow, args=(seen,), daemon=True) for seen in counts]
    with process(WRITER, store, catalog_url, total) as writer:
        for thread in readers:
            thread.start()
        assert writer.wait(timeout=120) == 0
        for thread in readers:
            thread.join(timeout=60)
    assert [seen[-1] for seen in counts] == [total, total]


@on_both
def test_two_writers_at_once_leave_one_whole_sequence(store: SegmentStore, catalog_url: str) -> None:
    """Both take over in turn and commit what they can; each segment is there once, with its own bytes."""
    with (
        process(RIVAL, store, catalog_url, 1) as first,
        process(RIVAL, store, catalog_url, 2) as second,
    ):
        said = [rival.communicate("go\n", timeout=60)[0] for rival in (first, second)]
    acknowledged = sorted(tuple(map(int, line.split())) for text in said for line in text.splitlines())
    assert [no for no, _ in acknowledged] == list(range(store.stream("cam").num_segments))
    snapshot = store.reader("cam").snapshot
    for no, seed in acknowledged:
        assert_same_segment(snapshot._file(no).segment_kv(), make_kv(no, seed=seed))
    store.begin_writing("cam")
    assert store.verify() == []


@on_both
@pytest.mark.parametrize("moment", ["before the file", "before the row"])
def test_writer_that_was_stopped_commits_nothing(store: SegmentStore, catalog_url: str, moment: str) -> None:
    """SIGSTOP, another takes over and commits the same segment, SIGCONT."""
    filled(store, 1)
    with process(STOPPED, store, catalog_url, moment) as stopped:
        wait_for_stop(stopped)
        epoch = store.begin_writing("cam")
        store_segment(store, "cam", epoch, make_kv(1))
        stopped.send_signal(signal.SIGCONT)
        said, _ = stopped.communicate(timeout=60)
    assert "may not commit, the writer is epoch" in said
    check_segments(store.reader("cam").snapshot, 2)
    store.collect_orphans("cam")
    assert store.verify() == []
    assert len(segment_files(store)) == 2
    store_segment(store, "cam", epoch, make_kv(2))


@pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
def test_server_gives_up_a_writer_that_was_stopped_in_its_commit(
    store: SegmentStore, catalog_url: str
) -> None:
    """Its transaction holds the stream's row, which would keep every other writer out for as long as it sleeps."""
    filled(store, 1)
    with process(STOPPED_IN_COMMIT, store, catalog_url, "") as stopped:
        wait_for_stop(stopped)
        epoch = store.begin_writing("cam")  # waits for the row
        store_segment(store, "cam", epoch, make_kv(1))
        stopped.send_signal(signal.SIGCONT)
        said, _ = stopped.communicate(timeout=60)
    assert "committed" not in said
    assert "catalog postgresql" in said
    check_segments(store.reader("cam").snapshot, 2)
    assert store.verify() == []
