"""A stage for the actors without Ray: fakes of what they load, and workers in this process that can die."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import random_segment_kv

from actors.decode_encode import DecodeEncode, DecodeParts
from actors.failures import WorkerLostError
from actors.messages import SegmentMessage, StreamSpec
from actors.prefill import Prefill, PrefillParts
from actors.store_actor import StoreActor
from actors.supervisor import Supervisor
from actors.views import GapView
from streamkv.config import PipelineConfig, SegmentConfig, SourceConfig, StoreConfig
from streamkv.grid import OnGap
from streamkv.memory import VideoMemory
from streamkv.segmentation import Segmenter
from streamkv.store import ModelIdentity, SegmentPlace, SegmentStore
from streamkv.types import Frame, Geometry, Segment, SegmentKV
from streamkv.video import VideoInfo

GEOMETRY = Geometry(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, hidden_dim=16, frame_tokens=3)
IDENTITY = ModelIdentity("fake", GEOMETRY, "float32")
SEGMENTS = SegmentConfig(policy="uniform", min_frames=1, max_frames=4, max_seconds=0)
SOURCE = SourceConfig(sample_fps=1.0, batch_frames=4, queue_frames=6)


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

    def __init__(self, *, pace_s: float = 0.0) -> None:
        self.pace_s = pace_s
        self.decoded: dict[str, list[float]] = {}

    def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        count = tape_length(spec.uri)
        seen = self.decoded.setdefault(spec.stream_id, [])
        for k in range(max(0, round(spec.start_s) - 1), count):
            time.sleep(self.pace_s)
            seen.append(float(k))
            yield Frame(np.full((2, 2, 3), k % 250, np.uint8), float(k), float(k + 1))
        on_gap(float(count), float(count + 1), "the tape ends")
        if spec.uri.endswith("!"):
            raise RuntimeError("the tape is torn")


class MeanEncoder:
    """A frame's features are its first pixel. A value in `poison` cannot be encoded."""

    def __init__(self, poison: Sequence[int] = ()) -> None:
        self.poison = set(poison)
        self.batches: list[int] = []

    def encode_frames(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        values = [int(frame[0, 0, 0]) for frame in frames]
        if self.poison & set(values):
            raise ValueError("poison")
        self.batches.append(len(frames))
        shape = (len(frames), GEOMETRY.frame_tokens, GEOMETRY.hidden_dim)
        return torch.tensor(values).view(-1, 1, 1).expand(shape).float().clone()


class CountingEngine:
    """A window is the list of segment numbers that went in; it must never see one twice or out of order."""

    def __init__(self) -> None:
        self.heard: set[str] = set()  # guidance prompts
        self.kept: set[float] = set()  # shares of frames

    def open_window(self, memory: VideoMemory | None = None) -> list[int]:
        return [s.segment_no for s in memory.segments] if memory is not None else []

    def prefill(
        self, window: list[int], segment: Segment, guidance: str = "", keep_ratio: float = 0.0
    ) -> SegmentKV:
        self.heard.add(guidance)
        self.kept.add(keep_ratio)
        # Retention may have taken the beginning of what it was opened with.
        wanted = list(range(segment.segment_no - len(window), segment.segment_no))
        assert window == wanted
        assert window or segment.segment_no == 0
        window.append(segment.segment_no)
        return replace(
            random_segment_kv(GEOMETRY, segment.segment_no, num_frames=len(segment.spans_s)),
            start_s=segment.start_s,
            end_s=segment.end_s,
            num_source_frames=segment.num_source_frames,
            resume_s=segment.resume_s,
        )


def recall(config: StoreConfig, stream_id: str) -> VideoMemory:
    with SegmentStore.open(config.root, catalog_url=config.catalog_url, read_only=True) as store:
        return store.reader(stream_id).refresh()


def decode_parts(footage: Footage, encoder: MeanEncoder) -> DecodeParts:
    return DecodeParts(encoder, partial(Segmenter, SEGMENTS), footage.open)


def prefill_parts(config: StoreConfig) -> PrefillParts:
    device, root = torch.device("cpu"), Path(config.root)
    return PrefillParts(CountingEngine(), IDENTITY, device, root, "fp16", partial(recall, config))


class Mortal:
    """Stands for an actor: calls go to an instance that can die and be made anew."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.instance = make()
        self.is_away = False
        self.lives = 1

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            instance = self.instance
            if self.is_away:
                raise WorkerLostError("away")
            result = getattr(instance, name)(*args)
            if instance is not self.instance:
                raise WorkerLostError("died meanwhile")  # whatever it did, nobody hears of it
            return result

        return call

    def kill(self) -> None:
        """Dies and comes back empty. A call that runs goes on, as in a process that was cut off."""
        old, self.instance = self.instance, self._make()
        self.lives += 1
        threading.Thread(target=old.shutdown, daemon=True).start()


@dataclass
class LocalSink:
    prefill: Mortal
    store: Mortal
    thread: ThreadPoolExecutor

    def ship(self, message: SegmentMessage) -> Future[bool]:
        return self.thread.submit(self.prefill.ingest, message)

    def add_gap(self, stream_id: str, gap: GapView) -> Future[None]:
        return self.thread.submit(self.store.add_gap, stream_id, gap.start_s, gap.end_s, gap.reason)


class TapeDecodeEncode(DecodeEncode):
    """Its probe reads the tape's length from the URI."""

    def probe(self, uri: str) -> VideoInfo:
        return VideoInfo(float(tape_length(uri)), 1.0, 2, 2, "tape")


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

    def decoder(self) -> Mortal:
        load = partial(decode_parts, self.footage, self.encoder)
        self.decoders.append(Mortal(lambda: TapeDecodeEncode(load, SOURCE, in_flight=2)))
        return self.decoders[-1]

    def prefiller(self) -> Mortal:
        self.prefillers.append(Mortal(lambda: Prefill(partial(prefill_parts, self.config))))
        return self.prefillers[-1]

    def store(self, identity: ModelIdentity) -> Mortal:
        self.stores.append(Mortal(lambda: StoreActor(self.config, identity)))
        return self.stores[-1]

    def sink(self, prefill: Mortal, store: Mortal) -> LocalSink:
        return LocalSink(prefill, store, self._thread)

    def commit(self, store: Mortal) -> Callable[[SegmentPlace], bool]:
        return lambda place: bool(store.commit(place))


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
