"""A stage for the actors without Ray: fakes of what they load, and workers in this process that can die."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actors.decode_encode import DecodeEncode, DecodeParts
from actors.failures import WorkerLostError
from actors.in_hand import NUM_SLOTS, SLOT_BYTES, LastWords, Place, last_words
from actors.messages import SegmentMessage, StreamSpec
from actors.prefill import Prefill, PrefillParts
from actors.store_actor import StoreActor
from actors.supervisor import Supervisor
from actors.views import GapView
from actors.workers import HearOpen
from bench import fakes
from bench.fakes import GEOMETRY, IDENTITY, SEGMENTS, CountingEngine, MeanEncoder
from streamkv.config import PipelineConfig, SourceConfig, StoreConfig
from streamkv.frame_batches import FrameBatches
from streamkv.grid import OnGap
from streamkv.segmentation import Segmenter
from streamkv.store import ModelIdentity, SegmentPlace, SegmentStore
from streamkv.types import Evidence, Frame, SegmentKV
from streamkv.video import VideoInfo
from streamkv.watches import WatchAnswer, WatchQuestion

__all__ = ["GEOMETRY", "IDENTITY", "SEGMENTS", "CountingEngine", "MeanEncoder", "prefill_parts"]

CRASH = "a crash (Segmentation fault)"
TRACE = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x{:016x} (most recent call first):\n"
SOURCE = SourceConfig(sample_fps=1.0, batch_frames=4, queue_frames=8)


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def tape_length(uri: str) -> int:
    """`40`, or `rtsp://user:word@camera/40`; a `!` at the end is for a tape that breaks there."""
    return int(uri.rstrip("!").rpartition("/")[2])


class Footage:
    """Streams of one frame a second, without files."""

    def __init__(self, *, pace_s: float = 0.0, source: SourceConfig = SOURCE) -> None:
        self.pace_s = pace_s
        self.source = source
        self.decoded: dict[str, list[float]] = {}

    def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        count = tape_length(spec.uri)
        seen = self.decoded.setdefault(spec.stream_id, [])
        from_s = FrameBatches.configured(self.source).first_s(max(0.0, spec.start_s - 1))
        for k in range(math.ceil(from_s), count):
            time.sleep(self.pace_s)
            seen.append(float(k))
            yield Frame(np.full((2, 2, 3), k % 250, np.uint8), float(k), float(k + 1))
        on_gap(float(count), float(count + 1), "the tape ends")
        if spec.uri.endswith("!"):
            raise RuntimeError("the tape is torn")


def ask(segment: SegmentKV, questions: Sequence[WatchQuestion]) -> list[WatchAnswer]:
    """To `every N` it answers how many times N segments there were before; `never` is not shown."""
    evidence = (Evidence(segment.segment_no, segment.start_s, segment.end_s, 1.0, 1),)
    return [
        WatchAnswer(
            question.watch_id,
            "" if question.text == "never" else str(segment.segment_no // int(question.text.split()[-1])),
            0.9,
            evidence,
        )
        for question in questions
    ]


def prefill_parts(config: StoreConfig) -> PrefillParts:
    return replace(fakes.prefill_parts(config), ask=ask)


def probe(uri: str, *, timeout_s: float) -> VideoInfo:
    return VideoInfo(float(tape_length(uri)), 1.0, 2, 2, "tape")


def decode_parts(footage: Footage, encoder: MeanEncoder) -> DecodeParts:
    return DecodeParts(encoder, partial(Segmenter, SEGMENTS), footage.open, probe=probe)


class Mortal:
    """Stands for an actor: calls go to an instance that can die and be made anew."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.instance = make()
        self.is_away = False
        self.failure = WorkerLostError  # of calls while it is away
        self.is_dismissed = False
        self.lives = 1
        self.last_words: dict[str, LastWords] = {}  # by the path of the page

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            instance = self.instance
            if self.is_away:
                raise self.failure("away")
            result = getattr(instance, name)(*args)
            if instance is not self.instance:
                raise WorkerLostError("died meanwhile")  # whatever it did, nobody hears of it
            return result

        return call

    def kill(self, cause: str = "") -> None:
        """Dies and comes back empty. A call that runs goes on, as in a process that was cut off.

        `CRASH`: of what the calling thread does, as `faulthandler` has it.
        """
        if isinstance(self.instance, DecodeEncode | Prefill) and (place := self.instance.status().in_hand):
            if cause == CRASH:
                with Path(place.path).open("r+b") as page:
                    page.seek(NUM_SLOTS * SLOT_BYTES)
                    page.write(TRACE.format(threading.get_ident()).encode())
                self.last_words[place.path] = last_words(place)
            else:
                self.last_words[place.path] = replace(last_words(place), cause=cause)
        old, self.instance = self.instance, self._make()
        self.lives += 1
        threading.Thread(target=old.shutdown, daemon=True).start()

    def dismiss(self) -> None:
        """Ends for good."""
        self.is_away = self.is_dismissed = True


class MortalPrefill(Mortal):
    """Ingests one segment at a time; closing a stream waits its turn, as in the actor."""

    def __init__(self, make: Callable[[], Any], thread: ThreadPoolExecutor) -> None:
        super().__init__(make)
        self._thread = thread

    def close_stream(self, stream_id: str) -> None:
        self._thread.submit(self.__getattr__("close_stream"), stream_id).result()


@dataclass
class LocalSink:
    prefill: Mortal
    store: Mortal
    thread: ThreadPoolExecutor

    def ship(self, message: SegmentMessage) -> Future[bool]:
        return self.thread.submit(self.prefill.ingest, message)

    def show(self, message: SegmentMessage) -> Future[bool]:
        return self.thread.submit(self.prefill.look, message)

    def add_gap(self, stream_id: str, gap: GapView) -> Future[None]:
        return self.thread.submit(self.store.add_gap, stream_id, gap.start_s, gap.end_s, gap.reason)


class LocalWorkers:
    """Workers for a `Supervisor`, all in this process."""

    def __init__(
        self,
        root: Path,
        footage: Footage,
        encoder: MeanEncoder | None = None,
        **store: Any,
    ) -> None:
        self.config = StoreConfig(root=str(root), **store)
        self.footage = footage
        self.encoder = encoder or MeanEncoder()
        self.decoders: list[Mortal] = []
        self.prefillers: list[Mortal] = []
        self.stores: list[Mortal] = []
        self._thread = ThreadPoolExecutor(1)  # one, so that a stream's segments stay in order

    def found(self, pool: str) -> list[str]:
        return []

    def last_words(self, place: Place) -> LastWords:
        workers = (*self.decoders, *self.prefillers)
        return next((w.last_words[place.path] for w in workers if place.path in w.last_words), LastWords())

    def decoder(self, name: str) -> Mortal:
        load = partial(decode_parts, self.footage, self.encoder)
        self.decoders.append(Mortal(lambda: DecodeEncode(load, SOURCE, in_flight=2)))
        return self.decoders[-1]

    def prefiller(self, name: str) -> Mortal:
        make = partial(Prefill, partial(prefill_parts, self.config))
        self.prefillers.append(MortalPrefill(make, self._thread))
        return self.prefillers[-1]

    def store(self, identity: ModelIdentity) -> Mortal:
        self.stores.append(Mortal(lambda: StoreActor(self.config, identity)))
        return self.stores[-1]

    def sink(self, prefill: Mortal, store: Mortal) -> LocalSink:
        return LocalSink(prefill, store, self._thread)

    def commit(self, store: Mortal) -> Callable[[SegmentPlace, Sequence[WatchAnswer]], bool]:
        return lambda place, answers: bool(store.commit(place, answers))

    def hear_open(self, store: Mortal) -> HearOpen:
        return lambda heard: int(store.hear_open(heard))


class LastingWorkers(LocalWorkers):
    """Those that outlive their supervisor, and that the next one finds by their names."""

    def __init__(self, *args: Any, **store: Any) -> None:
        super().__init__(*args, **store)
        self._by_name: dict[str, Mortal] = {}

    def found(self, pool: str) -> list[str]:
        return [
            name for name, w in self._by_name.items() if name.startswith(f"{pool}-") and not w.is_dismissed
        ]

    def decoder(self, name: str) -> Mortal:
        return self._once(name, partial(super().decoder, name))

    def prefiller(self, name: str) -> Mortal:
        return self._once(name, partial(super().prefiller, name))

    def store(self, identity: ModelIdentity) -> Mortal:
        return self._once("store", partial(super().store, identity))

    def _once(self, name: str, make: Callable[[], Mortal]) -> Mortal:
        if name not in self._by_name or self._by_name[name].is_dismissed:
            self._by_name[name] = make()
        return self._by_name[name]


class Stage:
    """Supervisors of one store, and what must be in it when they are done."""

    def __init__(self, root: Path, catalog_url: str = "") -> None:
        self.root = root
        self.catalog_url = catalog_url
        self.supervisors: list[Supervisor] = []

    def open(self, workers: LocalWorkers, **settings: Any) -> Supervisor:
        config = PipelineConfig(store=workers.config, source=SourceConfig(sample_fps=1.0), **settings)
        supervisor = Supervisor(config, workers)
        self.supervisors.append(supervisor)
        wait_until(lambda: supervisor.state().phase != "starting")
        return supervisor

    def check(self, lengths: dict[str, int]) -> None:
        """Every frame of every stream is committed once, in segments of four, and every file is sound.

        A file that no row names may lie about: what a writer left that was cut off goes with the next one.
        """
        with SegmentStore.open(self.root, catalog_url=self.catalog_url, read_only=True) as store:
            assert [problem for problem in store.verify() if problem.kind != "extra"] == []
            for stream_id, count in lengths.items():
                info = store.stream(stream_id)
                spans = [(s.start_s, s.end_s) for s in store.reader(stream_id).refresh().segments]
                assert spans == [(float(k), float(min(k + 4, count))) for k in range(0, count, 4)]
                assert info.num_source_frames == count
                assert (info.as_of_s, info.state) == (count, "done")
                assert [g.reason for g in info.gaps] == ["the tape ends"]


def states(supervisor: Supervisor) -> dict[str, str]:
    return {view.stream_id: view.state for view in supervisor.streams()}


def wait_for_end(supervisor: Supervisor, timeout_s: float = 30) -> None:
    wait_until(lambda: set(states(supervisor).values()) <= {"done", "failed"}, timeout_s)
