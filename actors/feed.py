"""One stream's decoding thread and its bounded queue of frames. Knows nothing of models."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from actors.failures import describe
from actors.in_hand import Slot
from actors.messages import StreamSpec
from actors.timing import StageClock
from actors.views import GapView, LiveView
from streamkv.cores import num_cores
from streamkv.errors import SourceError
from streamkv.frame_batches import FrameBatches
from streamkv.grid import OnGap
from streamkv.types import Frame

MAX_QUEUE_BYTES = 64_000_000
"""Decoded frames of one stream that may wait; a 4K frame takes 25 MB, so a count alone bounds little."""
PATIENCE_S = 1.0
"""A feed waits for its turn to decode for as long as those that have one read a frame in this time."""

OpenSource = Callable[[StreamSpec, OnGap], Iterator[Frame]]


class Turns:
    """How many feeds of a process decode at a time: two for each core.

    More of them would wait for the interpreter's lock between any two pictures, which costs processor time, and keeps
    cores from working at once; and all would have half a batch before one has a whole one. A source that waits for its
    network keeps its turn meanwhile, so where all do others go on without.
    """

    def __init__(self, count: int = 0) -> None:
        self._free = threading.BoundedSemaphore(count or 2 * num_cores())
        self._frames = 0  # that were read

    @contextmanager
    def one(self) -> Iterator[None]:
        has_turn = self._wait()
        try:
            yield
        finally:
            if has_turn:
                self._free.release()

    def note_frame(self) -> None:
        self._frames += 1

    def _wait(self) -> bool:
        """Whether there is a turn."""
        seen = -1
        while seen != self._frames:
            seen = self._frames
            if self._free.acquire(timeout=PATIENCE_S):
                return True
        return False


class Feed:
    """Decodes ahead until its queue is full. One thread decodes; one other takes."""

    shares_batches = False
    """Whether its frames go through the tower with those of other streams."""

    def __init__(
        self,
        spec: StreamSpec,
        open_source: OpenSource,
        *,
        batches: FrameBatches,
        queue_frames: int,
        on_change: Callable[[], None],
        clock: StageClock,
        slot: Slot | None = None,
        turns: Turns | None = None,
    ) -> None:
        """`slot`: where its thread notes that it has the stream in hand. `turns`: what it shares with other feeds."""
        self.spec = spec
        self.error = ""  # why the source cannot go on
        self._open_source = open_source
        self._batches = batches
        self._queue_frames = queue_frames
        self._on_change = on_change
        self._clock = clock
        self._slot = slot or Slot()
        self._turns = turns or Turns(1)
        self._frames: deque[Frame] = deque()
        self._sizes: deque[int] = deque()  # of the batches that they make
        self._gaps: deque[GapView] = deque()
        self._bytes = 0
        self._ended = False
        self._stopping = False
        self._closed = False  # takes in nothing more
        self._space = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"decode-{spec.stream_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; it does after the picture at hand. Waiting frames are dropped."""
        with self._space:
            self._stopping = True
            self._clear()
            self._space.notify_all()

    def drain(self) -> None:
        """Goes no further: another reader will. An archive's frames that wait are dropped, it decodes them again."""
        self.stop()

    def take(self) -> list[Frame]:
        """The oldest batch that waits, to be encoded by itself unless `shares_batches`; empty when none does."""
        with self._space:
            if not self._sizes:
                return []
            batch = [self._frames.popleft() for _ in range(self._sizes.popleft())]
            self._bytes -= _num_bytes(batch)
            self._space.notify()
            return batch

    def take_gaps(self) -> list[GapView]:
        gaps = []
        while self._gaps:
            gaps.append(self._gaps.popleft())
        return gaps

    @property
    def next_s(self) -> float | None:
        """Stream time of the oldest frame that waits."""
        with self._space:
            return self._frames[0].start_s if self._frames else None

    @property
    def num_queued(self) -> int:
        return len(self._frames)

    @property
    def is_paused(self) -> bool:
        """Whether the source is away for a while, and all that it had sent was taken. An archive never is."""
        return False

    @property
    def live(self) -> LiveView | None:
        """How a live source fares; None for an archive."""
        return None

    @property
    def is_exhausted(self) -> bool:
        """Whether the source has come to its end and all of it was taken. One that was stopped never has."""
        with self._space:
            return (self._ended or self._closed) and not self._frames and not self._stopping

    def _run(self) -> None:
        try:
            for batch in self._read(self._open_source(self.spec, self._on_gap)):
                self._put(batch)
        except SourceError as exc:
            self.error = str(exc)
        except Exception as exc:  # whatever a damaged file makes of a decoder ends this stream only
            self.error = describe(exc)
        finally:
            if rest := self._batches.rest():
                self._put(rest)
            self._slot.release()
            with self._space:
                self._ended = True
            self._on_change()

    def _read(self, source: Iterator[Frame]) -> Iterator[list[Frame]]:
        """Batches, until the source ends or the feed is stopped; each read in one turn."""
        position_s, has_more = self.spec.start_s, True
        while has_more and not self._stopping:
            complete: list[list[Frame]] = []
            with self._turns.one():
                while not complete and has_more and not self._stopping:
                    with self._clock.time("decode"), self._slot.of(self.spec.stream_id, position_s):
                        frame = next(source, None)
                    self._turns.note_frame()
                    has_more = frame is not None
                    if frame is not None:
                        position_s = frame.end_s
                        complete = self._batches.add(frame)
            yield from complete

    def _put(self, batch: list[Frame]) -> None:
        with self._space:
            while self._is_full(batch) and not self._stopping:
                self._space.wait()
            if self._stopping:
                return
            self._append(batch)
        self._on_change()

    def _is_full(self, coming: list[Frame]) -> bool:
        """Whether that would be too much. A batch always finds room where nothing waits."""
        too_many = len(self._frames) + len(coming) > self._queue_frames
        return bool(self._frames) and (too_many or self._bytes + _num_bytes(coming) > MAX_QUEUE_BYTES)

    def _append(self, batch: list[Frame]) -> None:
        self._frames.extend(batch)
        self._sizes.append(len(batch))
        self._bytes += _num_bytes(batch)

    def _clear(self) -> None:
        self._frames.clear()
        self._sizes.clear()
        self._bytes = 0

    def _on_gap(self, start_s: float, end_s: float, reason: str) -> None:
        self._gaps.append(GapView(start_s, end_s, reason))
        self._on_change()


def _num_bytes(frames: list[Frame]) -> int:
    return sum(frame.rgb.nbytes for frame in frames)
