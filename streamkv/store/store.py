"""The segment store: durable file, then catalog row. A segment is there once its row is.

epoch = store.begin_writing("lobby")                       # fences off whoever wrote before
place = write_segment(root, identity, "lobby", epoch, kv)  # in any process
store.commit(place)                                        # counts once, however often it is called
memory = store.reader("lobby").refresh()                   # what a question reads
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

from streamkv.config import AgeingStep, RetentionConfig, StoreConfig
from streamkv.errors import CorruptSegmentError, StoreError, StoreFullError
from streamkv.store import layout
from streamkv.store.adoption import Adoption
from streamkv.store.ageing import Aged, OnSegment, age_stream, as_small, recode
from streamkv.store.catalog import Catalog
from streamkv.store.codecs import make_codec
from streamkv.store.deletion import Deletion
from streamkv.store.generations import Removed
from streamkv.store.mending import Mending
from streamkv.store.object_store import ObjectStore
from streamkv.store.opening import open_catalog
from streamkv.store.parts import Parts
from streamkv.store.reader import SegmentFiles, StreamReader
from streamkv.store.records import (
    Front,
    Gap,
    ModelIdentity,
    NearTier,
    Problem,
    SegmentPlace,
    StreamInfo,
    StreamRecord,
    StreamState,
)
from streamkv.store.retention import due
from streamkv.store.segment_file import SegmentFile
from streamkv.store.tiers import Offloaded, Tiers, TierState
from streamkv.store.vectors import SummaryVectors
from streamkv.store.verification import find_problems
from streamkv.store.watch_rows import WatchRows
from streamkv.watches import WatchAnswer

if TYPE_CHECKING:
    from streamkv.store.near import NearBlocks

MAX_OPEN_FILES = 1024
"""Segment files that a store keeps mapped; Linux allows a process 65,530 maps."""
MEAN_KEY_BYTES = 512 << 20
"""Mean keys that are kept in memory, at most: one layer of a segment has some hundred bytes of the demo model, and
some 10,000 with a 7B one."""


class SegmentStore:
    """One store, opened by one process. Threads may share it; any number of processes may have it open."""

    @classmethod
    def open(
        cls,
        root: Path | str,
        *,
        catalog_url: str = "",
        identity: ModelIdentity | None = None,
        read_only: bool = False,
        max_open_files: int = MAX_OPEN_FILES,
        retention: RetentionConfig | None = None,
        objects: ObjectStore | None = None,
        local_bytes: int = 0,
        remote_codec: str = "",
    ) -> SegmentStore:
        """Opens a store, or makes one when there is none and `identity` is given.

        With `identity`, ForeignStoreError unless the store was written for it; without, any store opens.
        What a deletion that was cut short left behind is taken away, unless `read_only`. `retention` has limits that
        commits keep to; `retain` applies the rest of it. With `objects` files may be there instead of on the local
        disk, which has at most `local_bytes` of those, and which none leaves in a larger codec than `remote_codec`; see
        `offload`.
        """
        root = Path(root)
        if remote_codec:
            make_codec(remote_codec, "store.remote_codec")
        catalog, stored = open_catalog(root, catalog_url, identity, read_only=read_only)
        leave_as = as_small(stored, remote_codec) if remote_codec else ()
        store = cls(
            root,
            catalog,
            stored,
            read_only=read_only,
            max_open_files=max_open_files,
            retention=retention or RetentionConfig(),
            tiers=Tiers(root, catalog, objects, local_bytes, leave_as) if objects is not None else None,
            remote_codec=remote_codec,
        )
        if not read_only:
            store._deletion.finish()
        return store

    @classmethod
    def configured(
        cls, config: StoreConfig, *, identity: ModelIdentity | None = None, read_only: bool = False
    ) -> SegmentStore:
        """As `open`, with the root, the catalog, the limits and the tiers that the settings name."""
        return cls.open(
            config.root,
            catalog_url=config.catalog_url,
            identity=identity,
            read_only=read_only,
            retention=config.retention,
            objects=ObjectStore(config.remote, config.s3) if config.remote else None,
            local_bytes=config.local_bytes,
            remote_codec=config.remote_codec,
        )

    def __init__(
        self,
        root: Path,
        catalog: Catalog,
        identity: ModelIdentity,
        *,
        read_only: bool,
        max_open_files: int,
        retention: RetentionConfig,
        tiers: Tiers | None,
        remote_codec: str,
    ) -> None:
        """Use `open`."""
        self.root = root
        self.identity = identity
        self.read_only = read_only
        self.retention = retention
        self._catalog = catalog
        self._tiers = tiers
        self._remote_codec = remote_codec
        fetch = None if tiers is None else tiers.fetch
        self._files = SegmentFiles(root, identity, max_open_files, MEAN_KEY_BYTES, catalog.segment, fetch)
        self._vectors = SummaryVectors(root, identity, read_only=read_only)
        self._parts = Parts(root, identity, catalog, self._files, self._vectors, tiers)
        self._deletion = Deletion(self._parts)

    @property
    def near(self) -> NearBlocks | None:
        """What of the blocks is kept in memory; None: nothing is, and the page cache has to do."""
        return self._files.near

    def keep_near(self, tiers: Sequence[NearTier]) -> None:
        """Keeps blocks that are read in memory from now on, in the nearest tier (the first) and those behind it."""
        from streamkv.store.near import NearBlocks  # torch, which a writer need not load

        self._files.near = NearBlocks(self.identity, tiers) if tiers else None

    def close(self) -> None:
        """Lets go of the catalog. Snapshots that were handed out can still be read."""
        self._catalog.close()

    def __enter__(self) -> SegmentStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- streams

    def add_stream(
        self, stream_id: str, uri: str, config: Mapping[str, Any] | None = None, *, tenant: str = ""
    ) -> None:
        """Registers a stream. StreamIdError for an unsafe id, StreamExistsError for one that is taken."""
        self._check_writable()
        layout.check_stream_id(stream_id)
        self._catalog.add_stream(stream_id, uri, config or {}, self.identity.fingerprint, tenant)

    def remove_stream(self, name: str) -> None:
        """Takes a stream's rows away, then its files, and those of its next generation. LegalHoldError when it is held.

        What a crash, or a writer that does not know yet, leaves of the files goes at the next `open`.
        """
        self._check_writable()
        self._delete(f"stream {name!r} is removed", self._catalog.remove_stream(self._id_of(name)))

    def streams(self) -> list[StreamInfo]:
        """All streams by id, those that are being made to take another's place among them."""
        return self._catalog.streams()

    def stream(self, name: str) -> StreamInfo:
        """UnknownStreamError when there is none of that name."""
        return self._catalog.streams(name)[0]

    def record(self, name: str) -> StreamRecord:
        """As `stream`, but for what is summed up over its segments: however many there are, it is quick."""
        return self._catalog.record(name)

    def records(self) -> list[StreamRecord]:
        """All streams that can be asked, by name; as `record`."""
        records = [record for record in self._catalog.records() if not record.is_next]
        return sorted(records, key=lambda record: record.name)

    def begin_next(self, name: str, config: Mapping[str, Any]) -> str:
        """Registers a memory that is to take the place of a stream's, and is written beside it; its id.

        The stream has ended, and answers on. LegalHoldError when it is held, StoreError when it has not ended, or has
        such a one already. `remove_stream` of the id gives it up.
        """
        self._check_writable()
        return self._catalog.generations.begin(name, config)

    def switch_to(self, stream_id: str) -> None:
        """Has such a one, which is done, take its stream's place, in one transaction; then the old one's files go.

        Nothing happens when it has its place already. LegalHoldError while the old one is held.
        """
        self._check_writable()
        self._delete(
            f"{stream_id!r} has taken its place and the old stream is removed",
            self._catalog.generations.switch(stream_id),
        )

    def set_state(self, stream_id: str, state: StreamState, detail: str = "") -> None:
        self._check_writable()
        if state not in get_args(StreamState):
            raise StoreError(f"stream state: got {state!r}, allowed {', '.join(get_args(StreamState))}")
        self._catalog.set_state(stream_id, state, detail)

    def add_gap(self, stream_id: str, start_s: float, end_s: float, reason: str) -> None:
        """Notes footage that is missing. The same span again changes nothing."""
        self._check_writable()
        if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s <= end_s):
            raise StoreError(f"gap: got {start_s} to {end_s} s, allowed finite, start not after end")
        self._catalog.add_gap(stream_id, Gap(start_s, end_s, reason))

    def hold(self, name: str, reason: str) -> None:
        """From now on nothing of the stream is deleted or aged."""
        self._check_writable()
        if not reason.strip():
            raise StoreError("legal hold: got no reason, allowed: some words that say why")
        self._catalog.set_hold(self._id_of(name), reason.strip())

    def release(self, name: str) -> None:
        """The end of a hold; none is needed."""
        self._check_writable()
        self._catalog.set_hold(self._id_of(name), "")

    # ---- writing

    def begin_writing(self, stream_id: str) -> int:
        """Makes the caller the stream's writer and returns its epoch, larger than any before in this store.

        Earlier writers are fenced off: their commits raise FencedError. What they left uncommitted goes.
        """
        self._check_writable()
        epoch = self._catalog.take_epoch(stream_id)
        self.collect_orphans(stream_id)
        return epoch

    def commit(self, place: SegmentPlace, answers: Sequence[WatchAnswer] = ()) -> bool:
        """Makes a written segment count, in one transaction; False when that segment did already.

        `answers` to its stream's watches count with it: what they fire is there once, if the segment is.

        Segments come in order. FencedError when another writer has taken over, CorruptSegmentError when the
        file is not there in full; then nothing changes. StoreFullError when there is no room for it; then its file
        goes.
        """
        self._check_writable()
        try:
            self._check_place(place)
        except CorruptSegmentError:
            # Whoever took over has collected the file of a writer that was stopped: that is what to say.
            self._catalog.check_writer(place.stream_id, place.epoch)
            raise
        try:
            if self._makes_room(place.stream_id):
                self._deletion.make_room(self.retention, place.stream_id, place.file_bytes)
            if not self._catalog.commit(place, self.retention, answers):
                return False
        except StoreFullError:
            self._deletion.unlink([place.path])
            raise
        if self._tiers is not None:
            self._tiers.disk.added(place.path, place.file_bytes)
        with suppress(CorruptSegmentError):  # whoever reads the segment says so
            self._vectors.write(place, SegmentFile(self.root / place.path).summary_vectors())
        return True

    def collect_orphans(self, stream_id: str) -> list[str]:
        """Removes what earlier writers left uncommitted; returns those paths, relative to the root.

        Never a file that a row names, and none that may yet be committed: of the present or a later epoch, with
        a number that is still to come. What the disk does not let go stays, and `verify` names it.
        """
        self._check_writable()
        # Held to the end: a file that is being aged gets its name and its row together.
        with self._catalog.holding(stream_id) as held:
            stale = [
                *layout.stored_files(self.root, stream_id, before_epoch=held.epoch),
                *layout.passed_files(self.root, stream_id, held.epoch, held.next_segment_no),
            ]
            committed = held.paths() if stale else set()
            orphans = [path for path in stale if path not in committed]
            self._deletion.unlink(orphans)
        return orphans

    def age(self, name: str, policy: Sequence[AgeingStep], *, on_segment: OnSegment | None = None) -> Aged:
        """Stores what is old enough in the codec that the policy has for it; see `ageing`."""
        self._check_writable()
        return age_stream(
            self.root,
            self._catalog,
            self._files,
            self.identity,
            self._id_of(name),
            policy,
            time.time(),
            on_segment,
        )

    # ---- deleting

    def retain(
        self,
        policy: RetentionConfig | None = None,
        stream_id: str | None = None,
        *,
        dry_run: bool = False,
        on_segment: OnSegment | None = None,
    ) -> dict[str, Front]:
        """Deletes what the policy, by default the store's own, does not keep; says what, by stream.

        Rows, files and vectors go; a gap with the reason `retention` stands for them. Of one stream, if one is named.
        """
        if not dry_run:
            self._check_writable()
        firsts = due(self._catalog, policy or self.retention, time.time())
        if stream_id is not None:
            only = self._id_of(stream_id)
            firsts = {each: first for each, first in firsts.items() if each == only}
        fronts = {name: self._catalog.front(name, first) for name, first in firsts.items()}
        if not dry_run:
            total = sum(front.num_segments for front in fronts.values())
            self._deletion.delete_fronts(firsts, on_segment and (lambda done: on_segment(done, total)))
        return {name: front for name, front in fronts.items() if front.num_segments}

    def room(self, stream_id: str) -> str:
        """Why the stream's next segment would find no room; empty when it would.

        With `when_full: oldest` what is oldest goes first, but not for a memory that is to take another's place: until
        then it may be given up, and must have cost nothing.
        """
        self._check_writable()
        like_before = self._catalog.largest(stream_id)
        if self._makes_room(stream_id):
            self._deletion.make_room(self.retention, stream_id, like_before)
        return self._deletion.why_full(self.retention, stream_id, like_before)

    # ---- tiers

    def offload(self, on_segment: OnSegment | None = None) -> Offloaded:
        """Brings the object store up to date with the catalog, and the local disk within its bytes; see `tiers`.

        StoreError without an object store, ObjectStoreError when that fails; commits never wait for it.
        """
        self._check_writable()
        tiers = self._remote()
        if self._remote_codec:
            leaving = tiers.disk.unready()
            for was, now in recode(
                self.root, self._catalog, self._files, self.identity, leaving, self._remote_codec
            ):
                tiers.disk.dropped(was.path)
                tiers.disk.added(now.path, now.file_bytes)
        return tiers.offload(on_segment)

    def tiers(self) -> TierState:
        """What lies where, and what waits. StoreError without an object store."""
        return self._remote().state()

    # ---- watches

    @property
    def watches(self) -> WatchRows:
        """Standing questions and what they told."""
        return self._catalog.watches

    # ---- another store's

    @property
    def adoption(self) -> Adoption:
        """What it takes over from a store of another model."""
        return self._catalog.adoption

    # ---- reading

    def reader(self, name: str, *, searchable: bool = True) -> StreamReader:
        """Follows one stream; opening opens no segment. Readers of a store share its open files.

        Not `searchable`: for one who knows which segments to read.
        """
        return StreamReader(
            name, self._catalog, self._files, self._vectors, self.identity, searchable=searchable
        )

    def segments(self, name: str, start: int, limit: int) -> list[SegmentPlace]:
        """Up to `limit` committed segments from number `start` on, in order."""
        return self._catalog.segments_from(self._id_of(name), start, limit)

    def verify(
        self,
        stream_id: str | None = None,
        on_file: Callable[[int, int], object] | None = None,
        *,
        read_objects: bool = False,
    ) -> list[Problem]:
        """Reads every committed byte on the disk and compares rows with files, objects and vectors; empty when all is
        well.

        Of one stream, if one is named. What is being written or deleted meanwhile may be named as extra. `on_file` is
        called with how many files are read, and of how many. Of objects only the sizes are looked at, unless
        `read_objects`. ObjectStoreError when that cannot be done.
        """
        only = stream_id if stream_id is None else self._id_of(stream_id)
        return find_problems(self._parts, only, on_file, read_objects=read_objects)

    def repair(self, problems: Sequence[Problem]) -> list[str]:
        """Does what can be done about what `verify` found; returns what was done, a line each.

        A file that is missing or damaged is fetched from the object store, an object uploaded again from the disk. A
        segment that is whole in neither leaves its stream for a gap, and what is left of it goes to `damaged/`. Orphans
        of a stream with a problem are removed, which takes it over from its writer. What is not the store's stays.
        ObjectStoreError when the object store cannot be asked; a segment that may be there is not given up.
        """
        self._check_writable()
        return Mending(self._parts).mend(problems, self.collect_orphans)

    # ---- inside

    def _id_of(self, name: str) -> str:
        """Of the stream that has the name now; an id of a later generation is its own."""
        return name if layout.is_later_id(name) else self._catalog.generations.id_of(name)

    def _makes_room(self, stream_id: str) -> bool:
        if self.retention.when_full != "oldest":
            return False
        return not (layout.is_later_id(stream_id) and self._catalog.record(stream_id).is_next)

    def _delete(self, what: str, removed: Sequence[Removed]) -> None:
        failed = [path for each in removed for path in self._deletion.delete_removed(*each)]
        if failed:
            raise StoreError(
                f"{what}, but not {len(failed)} of its files, such as {failed[0]}; they go when the store is next "
                "opened and allows it"
            )

    def _remote(self) -> Tiers:
        if self._tiers is None:
            raise StoreError("store.remote: got none; set it, as in store.remote=s3://bucket/prefix")
        return self._tiers

    def _check_writable(self) -> None:
        if self.read_only:
            raise StoreError(f"store {self.root} is open for reading only; open it without read_only")

    def _check_place(self, place: SegmentPlace) -> None:
        """That the place is under the root, by its one possible name, and whole."""
        path = layout.segment_path(place.stream_id, place.segment_no, place.epoch, place.checksum)
        if place.path != path:
            raise StoreError(f"segment path: got {place.path!r}, allowed {path!r}")
        try:
            found = (self.root / path).stat().st_size
        except OSError as exc:
            raise CorruptSegmentError(f"{self.root / path}: segment file missing ({exc.strerror})") from exc
        if found != place.file_bytes:
            raise CorruptSegmentError(f"{self.root / path}: {found} bytes, {place.file_bytes} were written")
