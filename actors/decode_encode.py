"""Decoding and encoding of many streams: a thread each decodes, one loop encodes.

Frames of live streams are encoded together, those of an archive in batches of its own (`streamkv.frame_batches`), so
that what it becomes depends on the archive alone.

Where there is more to encode than can be, each stream gets a share by its priority. What leaves is one message a
closed segment. Everything is bounded: a stream with `in_flight` segments that
are not yet durable gives no more frames to the tower, so its queue fills, so its decoding waits, so its
source waits. A live source does not: `actors.live_feed` says what goes then.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from actors.failures import NotReadyError, describe
from actors.feed import Feed, OpenSource, Turns
from actors.in_hand import InHand
from actors.live_feed import LiveFeed, OpenLive
from actors.messages import SegmentMessage, SegmentSink, StreamSpec, WorkerStatus
from actors.prepared import PreparedSources
from actors.right_of_way import go_on
from actors.session import SegmentMaker, Session
from actors.timing import StageClock
from streamkv.config import SourceConfig
from streamkv.errors import StoreFullError
from streamkv.frame_batches import FrameBatches
from streamkv.sources import probe_source
from streamkv.types import Frame
from streamkv.video import VideoInfo

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

LINGER_S = 0.05
"""How long a batch that is not full waits for more frames; small beside the seconds that a segment takes."""
IDLE_S = 0.5
LATEST_S = 2.0
"""Somebody waits for an answer meanwhile."""
PROBE_STEP_S = 10.0
"""To connect, to learn what it is, to see a picture: each may take this long while somebody waits for the answer."""


class FrameEncoder(Protocol):
    def encode_frames(self, frames: Sequence[np.ndarray]) -> Tensor: ...


class ProbeSource(Protocol):
    def __call__(self, uri: str, *, timeout_s: float) -> VideoInfo: ...


@dataclass(frozen=True)
class DecodeParts:
    """What runs inside; loaded by `start`, because a constructor that loads a model cannot be watched."""

    encoder: FrameEncoder
    make_segmenter: Callable[[int], SegmentMaker]  # from the number of its first segment
    open_source: OpenSource
    open_live: OpenLive | None = None  # None: no live sources
    probe: ProbeSource = probe_source
    give_way: Callable[[Callable[[], None]], None] = go_on  # before a batch; calls the other meanwhile


class DecodeEncode:
    """See the module. Life: constructor, `start`, `check_health`, `shutdown`."""

    def __init__(
        self,
        load: Callable[[], DecodeParts],
        source: SourceConfig,
        *,
        in_flight: int,
        hears_crashes: bool = False,
    ) -> None:
        self.incarnation = uuid.uuid4().hex
        self.clock = StageClock()
        self._load = load
        self._source = source
        self._in_flight = in_flight
        self._parts: DecodeParts | None = None
        self._failure = ""
        self._hand = InHand(hears_crashes=hears_crashes)
        self._at = self._hand.slot()  # of the loop
        self._turns = Turns()  # of archives: a camera's feed mostly waits
        self._sessions: dict[str, Session] = {}
        self._prepared = PreparedSources()
        self._had = 0.0  # of the stream whose turn it was last
        self._acks: SimpleQueue[tuple[Session, int | None, Future[Any]]] = SimpleQueue()
        self._asked: SimpleQueue[tuple[str, Future[list[SegmentMessage]]]] = SimpleQueue()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # guards the dict of sessions, not what is in them
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)

    # ---- called by the supervisor

    def start(self) -> None:
        """Loads the model and begins to work; once more changes nothing."""
        if self._parts is None:
            self._parts = self._load()
            self._thread.start()

    def check_health(self) -> None:
        if self._failure:
            raise RuntimeError(self._failure)

    def shutdown(self) -> None:
        """Stops every stream; what is in flight may still be committed."""
        self._stopping.set()
        self._wake.set()
        for session in self._now():
            session.feed.stop()
        self._prepared.end()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._hand.remove()

    def probe(self, uri: str) -> VideoInfo:
        """What the source is, as this process sees it; SourceError when it is no video."""
        return self._started().probe(uri, timeout_s=min(self._source.live_timeout_s, PROBE_STEP_S))

    def add_stream(self, spec: StreamSpec, sink: SegmentSink) -> None:
        """Starts a session; an earlier one of the same stream ends."""
        parts, prepared = self._started(), self._prepared.take(spec)
        feed = prepared or self._feed(spec, parts)
        session = Session(spec, feed, sink, position_s=spec.start_s, is_watched=spec.is_watched)
        self.remove_stream(spec.stream_id)
        with self._lock:
            self._sessions[spec.stream_id] = session
        if prepared is None:
            feed.start()
        else:
            self._wake.set()

    def prepare_stream(self, spec: StreamSpec) -> None:
        """Begins to read a live stream that is about to come here; `WorkerStatus.prepared` says what it shows."""
        feed = self._feed(spec, self._started())
        assert isinstance(feed, LiveFeed), "an archive can be read again"
        self._prepared.add(feed)

    def _started(self) -> DecodeParts:
        if self._parts is None:
            raise NotReadyError("this decoder is being started again; try again a little later")
        return self._parts

    def _feed(self, spec: StreamSpec, parts: DecodeParts) -> Feed:
        if not spec.is_live:
            return Feed(
                spec,
                parts.open_source,
                batches=FrameBatches.configured(self._source),
                queue_frames=self._source.queue_frames,
                on_change=self._wake.set,
                clock=self.clock,
                slot=self._hand.slot(),
                turns=self._turns,
            )
        assert parts.open_live is not None, "live sources need open_live"
        return LiveFeed(
            spec,
            parts.open_live,
            sample_fps=self._source.sample_fps,
            queue_frames=self._source.queue_frames,
            on_change=self._wake.set,
            clock=self.clock,
            slot=self._hand.slot(),
        )

    def remove_stream(self, stream_id: str) -> None:
        """Ends a stream's session, if there is one; it sends nothing from then on."""
        with self._lock:
            session = self._sessions.pop(stream_id, None)
        if session is not None:
            session.state = "lost"
            session.feed.stop()

    def set_watched(self, stream_id: str, is_watched: bool) -> None:
        """Whether the stream has watches. A live one's are shown its open segment as it grows."""
        session = self._session(stream_id)
        if session is not None:
            session.is_watched = is_watched

    def drain_stream(self, stream_id: str) -> None:
        """Stops a stream so that nothing of it is lost: what it sent is committed first, then it is `drained`.

        A live one sends all that it has shown, its open segment too.
        """
        session = self._session(stream_id)
        if session is not None and not session.flushed:
            session.feed.drain()
            session.is_draining = True
            self._wake.set()

    def latest(self, stream_id: str) -> list[SegmentMessage]:
        """What the stream has shown and is not yet durable, in time order; the open segment as if it closed now.

        Empty when there is nothing, or no such stream here. TimeoutError when the loop is too busy to say.
        """
        answer: Future[list[SegmentMessage]] = Future()
        self._asked.put((stream_id, answer))
        self._wake.set()
        return answer.result(timeout=LATEST_S)

    def status(self) -> WorkerStatus:
        return WorkerStatus(
            incarnation=self.incarnation,
            started=self._parts is not None,
            totals=self.clock.totals(),
            feeds={s.spec.stream_id: s.status() for s in self._now()},
            prepared=self._prepared.shown(),
            failure=self._failure,
            in_hand=self._hand.place,
        )

    # ---- the loop

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.clear()  # first, so that what happens meanwhile is not slept through
                self._settle()
                self._tell_latest()
                self._prepared.end(before=time.monotonic())
                batch = self._next_batch()
                if batch:
                    self._encode(batch)
                for session in self._now():
                    self._send(session)
                if not batch:
                    self._wake.wait(IDLE_S)
        except Exception as exc:
            self._failure = f"the encoding loop ended: {describe(exc)}"
            raise

    def _session(self, stream_id: str) -> Session | None:
        with self._lock:
            return self._sessions.get(stream_id)

    def _now(self) -> list[Session]:
        with self._lock:
            return list(self._sessions.values())

    def _next_batch(self) -> list[tuple[Session, Frame]]:
        """A batch of one archive, or frames of live streams in turn, up to a full batch.

        Waits a little for one that is not full, unless an archive has one.
        """
        batch: list[tuple[Session, Frame]] = []
        deadline = 0.0
        while True:
            self._take_in_turn(batch)
            if not batch or not batch[0][0].feed.shares_batches or len(batch) >= self._source.batch_frames:
                return batch
            deadline = deadline or time.monotonic() + LINGER_S
            rest = deadline - time.monotonic()
            running = [s for s in self._now() if s.takes_frames]
            more = any(s.feed.shares_batches and not s.feed.is_exhausted for s in running)
            is_awaited = any(not s.feed.shares_batches and s.feed.num_queued for s in running)
            if rest <= 0 or not more or is_awaited or not self._asked.empty():
                return batch
            self._wake.wait(rest)
            self._wake.clear()

    def _take_in_turn(self, batch: list[tuple[Session, Frame]]) -> None:
        """What whoever had least for its priority has to give, again and again.

        Who had nothing to give for a while begins where the others are: it does not make up for it at their cost.
        """
        waiting = [(max(s.had, self._had), i, s) for i, s in enumerate(self._now()) if s.takes_frames]
        heapify(waiting)
        while waiting and len(batch) < self._source.batch_frames:
            had, i, session = heappop(waiting)
            shares = session.feed.shares_batches
            if (batch and not shares) or not (taken := session.feed.take()):
                continue
            batch += [(session, frame) for frame in taken]
            self._had, session.had = had, had + len(taken) / session.spec.priority
            if not shares:
                return
            heappush(waiting, (session.had, i, session))

    def _encode(self, batch: list[tuple[Session, Frame]]) -> None:
        assert self._parts is not None
        with self.clock.time("give_way"):
            self._parts.give_way(self._tell_latest)
        try:
            with self.clock.time("encode"):
                features = self._parts.encoder.encode_frames([frame.rgb for _, frame in batch])
        except Exception as exc:
            if len(batch) == 1:
                session = batch[0][0]
                session.end("failed", f"a frame cannot be encoded: {describe(exc)}")
                return
            for one in batch:  # so that one stream's bad frame fails that stream alone
                self._encode([one])
            return
        self.clock.count("frames", len(batch))
        self.clock.count("batches")
        with self.clock.time("segment"):
            for (session, frame), features_ND in zip(batch, features, strict=True):
                with self._at.of(session.spec.stream_id, frame.start_s):
                    session.advance(frame, features_ND, self._parts.make_segmenter)

    def _send(self, session: Session) -> None:
        """Ships what is closed while there is room, tells gaps, and notices the end."""
        if session.state != "running":
            return
        is_exhausted = session.feed.is_exhausted  # before gaps are taken: none comes after it
        for gap in session.feed.take_gaps():
            self._track(session, session.sink.add_gap(session.spec.stream_id, gap))
            self.clock.count("gaps")
        if is_exhausted and not session.flushed and not session.closed:
            session.flushed = True
            session.close_open_segment()
        elif session.feed.is_paused and not session.paused:
            session.paused = True
            session.close_open_segment()
        while session.closed and session.in_flight < self._in_flight * session.spec.priority:
            segment = session.closed.popleft()
            session.sent[segment.segment_no] = segment
            message = SegmentMessage.of(session.spec, segment)
            with self.clock.time("ship"):
                self._track(session, session.sink.ship(message), segment.segment_no)
            self.clock.count("segments")
            self.clock.count("shipped_bytes", message.features.nbytes)
        if session.is_watched and session.spec.is_live:
            self._show(session)
        if session.is_drained:
            session.end("drained", "")
        elif session.flushed and not session.closed and session.in_flight == 0:
            session.end("failed" if session.feed.error else "done", session.feed.error)

    def _show(self, session: Session) -> None:
        """What is new of the open segment, one look at a time; segments that are closed go first."""
        is_looked_at = session.look is not None and not session.look.done()
        if session.in_flight or is_looked_at or session.looked == session.frames:
            return
        open_segment = session.segmenter.open_segment if session.segmenter is not None else None
        session.looked = session.frames
        if open_segment is not None:
            message = SegmentMessage.of(session.spec, open_segment)
            self.clock.count("shown_bytes", message.features.nbytes)
            session.look = session.sink.show(message)
            session.look.add_done_callback(self._note_look)

    def _note_look(self, look: Future[bool]) -> None:  # in another thread
        if (failure := look.exception()) is not None:
            self.clock.count("look_errors")
            log.warning("watches could not look at an open segment: %s", describe(failure))
        self._wake.set()

    def _track(self, session: Session, future: Future[Any], segment_no: int | None = None) -> None:
        session.in_flight += 1

        def settled(done: Future[Any]) -> None:  # in another thread
            self._acks.put((session, segment_no, done))
            self._wake.set()

        future.add_done_callback(settled)

    def _settle(self) -> None:
        while True:
            try:
                session, segment_no, future = self._acks.get_nowait()
            except Empty:
                return
            session.in_flight -= 1
            failure = future.exception()
            if segment_no is not None:
                segment = session.sent.pop(segment_no)
                if failure is None and future.result():
                    session.committed_s = segment.spans_s[-1][1]
            if failure is not None and session.state == "running":
                is_full = isinstance(failure, StoreFullError)
                session.end("full" if is_full else "lost", str(failure) if is_full else describe(failure))

    def _tell_latest(self) -> None:
        while True:
            try:
                stream_id, answer = self._asked.get_nowait()
            except Empty:
                return
            session = self._sessions.get(stream_id)
            if session is None or session.state != "running":
                answer.set_result([])
            else:
                answer.set_result([SegmentMessage.of(session.spec, s) for s in session.latest()])
