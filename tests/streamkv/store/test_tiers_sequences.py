"""Whatever happens in whatever order: each committed segment can be read or its loss is named, and the disk keeps its
budget."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from s3_server import S3Server
from store_samples import IDENTITY, assert_same_segment, make_kv, store_segment

from streamkv.errors import CorruptSegmentError, ObjectStoreError
from streamkv.store import ObjectStore, SegmentStore
from streamkv.types import SegmentKV

BUDGET = 2.5
"""Segments that the disk may have."""


class Sequence(RuleBasedStateMachine):
    """One process with a store, and a bucket that is shut and loses objects."""

    s3: S3Server

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.prefix = self.s3.new_prefix()
        self.broken: set[str] = set()  # objects that were damaged or deleted
        self.away = False
        self.count = 0
        self.one_bytes = 0
        self.store = self.opened()
        self.store.add_stream("cam", "file:cam.mp4")
        self.epoch = self.store.begin_writing("cam")

    def opened(self) -> SegmentStore:
        return SegmentStore.open(
            Path(self.folder.name) / "root",
            identity=IDENTITY,
            max_open_files=1,  # a map that is still open would hide what has left the disk
            objects=ObjectStore(self.prefix, self.s3.config),
            local_bytes=int(BUDGET * self.one_bytes) or 1,
        )

    def teardown(self) -> None:
        self.store.close()
        if self.away:
            self.s3.gate.open()
        self.folder.cleanup()

    def local_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.store.root.glob("streams/*/*"))

    # ---- what may happen

    @rule(more=st.integers(1, 3))
    def commit(self, more: int) -> None:
        for _ in range(more):
            place = store_segment(self.store, "cam", self.epoch, make_kv(self.count))
            self.count, is_first = self.count + 1, not self.one_bytes
            self.one_bytes = place.file_bytes
            if is_first:
                self.restart()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = self.opened()

    @rule()
    def offload(self) -> None:
        try:
            assert self.store.offload().failed == ()
            left = self.store._catalog.objects.uploads()
            assert (left.num_waiting, left.num_removed) == (0, 0)
        except ObjectStoreError:
            assert self.away

    @precondition(lambda self: self.count)
    @rule(where=st.floats(0, 1, exclude_max=True))
    def read_one(self, where: float) -> None:
        self.check(int(where * self.count))

    @rule()
    def read_all(self) -> None:
        for no in range(self.count):
            self.check(no)

    def check(self, no: int) -> None:
        place = next((p for p in self.store.segments("cam", no, 1) if p.segment_no == no), None)
        if place is None:  # `mend` found it to be lost
            assert any(gap.reason.startswith(f"segment {no} is ") for gap in self.store.stream("cam").gaps)
            return
        is_local = (self.store.root / place.path).exists()
        found = self.found(no)
        if isinstance(found, SegmentKV):
            assert_same_segment(found, make_kv(no))
            return
        assert not is_local
        assert self.away if isinstance(found, ObjectStoreError) else place.path in self.broken
        assert f"{self.prefix}/{place.path}" in str(found)

    def found(self, no: int) -> SegmentKV | ObjectStoreError | CorruptSegmentError:
        try:
            return self.store.reader("cam").snapshot._file(no).segment_kv()
        except (ObjectStoreError, CorruptSegmentError) as exc:
            return exc

    @rule()
    def shut_or_open_the_bucket(self) -> None:
        if self.away:
            self.s3.gate.open()
        else:
            self.s3.gate.shut()
        self.away = not self.away

    @rule(where=st.floats(0, 1, exclude_max=True), is_deleted=st.booleans())
    def break_an_object(self, where: float, is_deleted: bool) -> None:
        # The same bit twice would make it whole again.
        objects = sorted(self.s3.objects(self.prefix).keys() - self.broken)
        if not objects:
            return
        path = objects[int(where * len(objects))]
        if is_deleted:
            self.s3.delete(self.prefix, path)
        else:
            data = bytearray(self.s3.read(self.prefix, path))
            data[int(where * len(data))] ^= 1
            self.s3.write(self.prefix, path, bytes(data))
        self.broken.add(path)

    @precondition(lambda self: not self.away)
    @rule()
    def mend(self) -> None:
        problems = self.store.verify(read_objects=True)
        named = {problem.path for problem in problems}
        in_use = {place.path for place in self.store.segments("cam", 0, self.count)}
        uploaded = self.store._catalog.objects.all_uploaded()
        assert named == self.broken & in_use & uploaded
        self.store.repair(problems)
        self.store.offload()
        assert self.store.verify(read_objects=True) == []
        self.broken.clear()
        self.epoch = self.store.begin_writing("cam")

    # ---- what is always so

    @invariant()
    def disk_keeps_its_budget_but_for_one_file_and_what_waits(self) -> None:
        waiting = self.store._catalog.objects.uploads().waiting_bytes
        assert self.local_bytes() <= BUDGET * self.one_bytes + self.one_bytes + waiting

    @invariant()
    def every_segment_has_a_row_or_a_gap(self) -> None:
        rows = len(self.store.segments("cam", 0, self.count + 1))
        assert rows + len(self.store.stream("cam").gaps) == self.count


def test_no_sequence_loses_a_committed_segment_unnamed(s3: S3Server) -> None:
    Sequence.s3 = s3
    run_state_machine_as_test(
        Sequence,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
