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
from streamkv.grid import OnGap
from streamkv.types import Frame

MAX_QUEUE_BYTES = 64_000_000
"""Decoded frames of one stream that may wait; a 4K frame takes 25 MB, so a count alone bounds little."""
PATIENCE_S = 1.0
"""How long a feed waits for its turn to decode."""

OpenSource = Callable[[StreamSpec, OnGap], Iterator[Frame]]


class Turns:
    """How many feeds of a process decode at a time: two for each core.

    More of them would wait for the interpreter's lock between any two pictures, which costs processor time, and keeps
    cores from working at once. A source that waits for its network keeps its turn meanwhile, so who has waited for
    `PATIENCE_S` goes on without.
    """

    def __init__(self, count: int = 0) -> None:
        self._free = threading.BoundedSemaphore(count or 2 * num_cores())

    @contextmanager
    def one(self) -> Iterator[None]:
        has_turn = self._free.acquire(timeout=PATIENCE_S)
        try:
            yield
        finally:
            if has_turn:
                self._free.release()


class Feed:
    """Decodes ahead until its queue is full. One thread decodes; one other takes."""

    def __init__(
        self,
        spec: StreamSpec,
        open_source: OpenSource,
        *,
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
        self._queue_frames = queue_frames
        self._on_change = on_change
        self._clock = clock
        self._slot = slot or Slot()
        self._turns = turns or Turns(1)
        self._frames: deque[Frame] = deque()
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
            self._frames.clear()
            self._space.notify_all()

    def drain(self) -> None:
        """Goes no further: another reader will. An archive's frames that wait are dropped, it decodes them again."""
        self.stop()

    def take(self) -> Frame | None:
        """The oldest frame that waits, or None."""
        with self._space:
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._bytes -= frame.rgb.nbytes
            self._space.notify()
            return frame

    def take_gaps(self) -> list[GapView]:
        gaps = []
        while self._gaps:
            gaps.append(self._gaps.popleft())
        return gaps

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
            source = self._open_source(self.spec, self._on_gap)
            position_s = self.spec.start_s
            while not self._stopping:
                with (
                    self._turns.one(),
                    self._clock.time("decode"),
                    self._slot.of(self.spec.stream_id, position_s),
                ):
                    frame = next(source, None)
                if frame is None:
                    break
                position_s = frame.end_s
                self._put(frame)
        except SourceError as exc:
            self.error = str(exc)
        except Exception as exc:  # whatever a damaged file makes of a decoder ends this stream only
            self.error = describe(exc)
        finally:
            self._slot.release()
            with self._space:
                self._ended = True
            self._on_change()

    def _put(self, frame: Frame) -> None:
        with self._space:
            while self._is_full(frame) and not self._stopping:
                self._space.wait()
            if self._stopping:
                return
            self._frames.append(frame)
            self._bytes += frame.rgb.nbytes
        self._on_change()

    def _is_full(self, frame: Frame) -> bool:
        too_large = bool(self._frames) and self._bytes + frame.rgb.nbytes > MAX_QUEUE_BYTES
        return len(self._frames) >= self._queue_frames or too_large

    def _on_gap(self, start_s: float, end_s: float, reason: str) -> None:
        self._gaps.append(GapView(start_s, end_s, reason))
        self._on_change()
