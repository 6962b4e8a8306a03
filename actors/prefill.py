"""Prefill of many streams' segments: owns their sliding windows, writes their files, has them committed.

A stream's watches are asked of each segment once it is prefilled; what they answer is committed with it. A live one's
look at its open segment, too, as often as there is time for it; of that nothing stays but what they tell.

A window is only ever ahead of the store by the segment at hand. When anything goes wrong with that one, the
window is dropped, and the stream resumes from what is committed: an archive some segments before, which are prefilled
again so that its window becomes what it was, and are not written.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from actors.failures import SessionLostError, describe
from actors.in_hand import InHand
from actors.messages import Replay, SegmentMessage, WorkerStatus
from actors.right_of_way import go_on
from actors.share import Share
from actors.timing import StageClock
from actors.workers import HearOpen
from streamkv.memory import SegmentInfo, VideoMemory
from streamkv.store import ModelIdentity, SegmentPlace, write_segment
from streamkv.types import Segment, SegmentKV
from streamkv.watches import OpenAnswers, WatchAnswer, WatchQuestion

if TYPE_CHECKING:
    import torch

CommitSegment = Callable[[SegmentPlace, Sequence[WatchAnswer]], bool]
AskSegment = Callable[[SegmentKV, Sequence[WatchQuestion]], Sequence[WatchAnswer | Exception]]

log = logging.getLogger(__name__)


class SegmentEngine(Protocol):
    """`streamkv.engine.Engine`, or what behaves like it; nobody else looks into its windows."""

    def open_window(self, memory: VideoMemory | None = None) -> Any: ...

    def replay(self, memory: VideoMemory) -> tuple[Any, tuple[SegmentInfo, ...]]: ...

    def prefill(
        self, window: Any, segment: Segment, guidance: str = "", keep_ratio: float = 0.0
    ) -> SegmentKV: ...

    def peek(
        self, window: Any, segment: Segment, guidance: str = "", keep_ratio: float = 0.0
    ) -> SegmentKV: ...


@dataclass(frozen=True)
class PrefillParts:
    """What runs inside; loaded by `start`."""

    engine: SegmentEngine
    identity: ModelIdentity
    device: torch.device
    root: Path  # of the store
    codec: str  # of its files
    recall: Callable[[str], VideoMemory]  # a stream's committed past
    ask: AskSegment  # for its watches
    replays: bool = True  # archives, after a window was lost
    open_share: float = 0.5  # of the time, for looks at open segments
    give_way: Callable[[], None] = go_on  # before a segment


@dataclass
class _Session:
    epoch: int
    window: Any
    next_segment_no: int
    guidance: str  # the stream's own prompt; empty: the method's
    keep_ratio: float  # the stream's own; 0: the method's
    replay: deque[SegmentInfo]  # committed segments that the window has yet to see again

    @property
    def own(self) -> tuple[str, float]:
        """Settings of the stream's."""
        return self.guidance, self.keep_ratio


class Prefill:
    """See the module. Life: constructor, `start`, `check_health`, `shutdown`."""

    def __init__(
        self,
        load: Callable[[], PrefillParts],
        commit: CommitSegment | None = None,
        *,
        hears_crashes: bool = False,
    ) -> None:
        self.incarnation = uuid.uuid4().hex
        self.clock = StageClock()
        self._load = load
        self._commit = commit
        self._hand = InHand(hears_crashes=hears_crashes)
        self._at = self._hand.slot()
        self._hear_open: HearOpen | None = None
        self._looks = Share(0.0)
        self._parts: PrefillParts | None = None
        self._sessions: dict[str, _Session] = {}
        self._watches: dict[str, tuple[WatchQuestion, ...]] = {}  # of streams that are open, or about to be
        self._changed: set[str] = set()  # streams whose source or settings are not those of what is committed
        self._lock = threading.Lock()  # guards the dicts; one thread alone does the work

    def start(self) -> ModelIdentity:
        """Loads the model; once more changes nothing. Returns what the store must be of."""
        if self._parts is None:
            self._parts = self._load()
            self._looks = Share(self._parts.open_share)
        return self._parts.identity

    def set_commit(self, commit: CommitSegment, hear_open: HearOpen | None = None) -> None:
        """Who commits, and who hears what watches make of open segments (None: they do not look).

        Known only once the store is open, which needs the identity that `start` returns.
        """
        self._commit, self._hear_open = commit, hear_open

    def check_health(self) -> None:
        """Raises when no work can be done; there is no such state but death."""

    def shutdown(self) -> None:
        """Forgets all windows."""
        with self._lock:
            self._sessions.clear()
            self._watches.clear()
        self._hand.remove()

    def open_stream(
        self,
        stream_id: str,
        epoch: int,
        next_segment_no: int,
        guidance: str = "",
        keep_ratio: float = 0.0,
        watches: Sequence[WatchQuestion] = (),
        may_replay: bool = False,
    ) -> Replay | None:
        """Makes the stream's window as it was after its last committed segment; keeps one that is there and is that.

        With `may_replay` it may ask for committed segments first, from where it returns; else it is made of what is
        stored, which lacks the frames that were not kept.
        """
        parts = self._started()
        own = (guidance, keep_ratio)
        with self._lock:
            self._watches[stream_id] = tuple(watches)
            if not next_segment_no:
                self._changed.discard(stream_id)  # a new one of that name
            held = self._sessions.get(stream_id)
            if held is not None and held.next_segment_no == next_segment_no and held.own == own:
                held.epoch = epoch
                return None
        replay: Sequence[SegmentInfo] = ()
        before: Sequence[SegmentInfo] = ()
        with self.clock.time("rebuild"):
            memory = parts.recall(stream_id) if next_segment_no else None
            may_replay = may_replay and parts.replays and stream_id not in self._changed
            if memory is not None and may_replay and _ends_before(next_segment_no, memory):
                window, replay = parts.engine.replay(memory)
                before = memory.segments[: len(memory.segments) - len(replay)]
            else:
                window = parts.engine.open_window(memory)
        first_no = replay[0].segment_no if replay else next_segment_no
        with self._lock:
            self._sessions[stream_id] = _Session(epoch, window, first_no, *own, deque(replay))
        if not replay:
            return None
        # A gap of the source lies before the segment, not within what is read again.
        follows = bool(before) and before[-1].segment_no + 1 == first_no
        return Replay(first_no, before[-1].end_s if follows else replay[0].start_s)

    def set_watches(self, stream_id: str, watches: Sequence[WatchQuestion]) -> None:
        """What is asked of an open stream's segments from now on; those whose prefill has ended are not asked again."""
        with self._lock:
            self._watches[stream_id] = tuple(watches)

    def close_stream(self, stream_id: str) -> None:
        with self._lock:
            self._sessions.pop(stream_id, None)
            self._watches.pop(stream_id, None)

    def ingest(self, message: SegmentMessage) -> bool:
        """Prefills, writes and commits one segment; returns when it is durable. False: it was committed before.

        Raises:
            SessionLostError: the stream is not open here under this epoch, another segment is due, or one that is
                replayed is not what it was.
            FencedError: another writer has taken the stream over.
        """
        with self._at.of(message.stream_id, message.spans_s[-1][0]):
            return self._ingest(message)

    def _ingest(self, message: SegmentMessage) -> bool:
        parts = self._started()
        session = self._expect(message)
        with self._lock:
            del self._sessions[message.stream_id]  # back in place only if all goes well
        with self.clock.time("give_way"):
            parts.give_way()
        with self.clock.time("prefill"):
            segment = message.to_segment(parts.device)
            kv = parts.engine.prefill(session.window, segment, session.guidance, session.keep_ratio)
        if session.replay:
            self._check_replayed(message.stream_id, kv, session.replay.popleft())
            self.clock.count("replayed_segments")
            self._put_back(message.stream_id, session)
            return False
        answers = self._ask_watches(message.stream_id, kv)
        with self.clock.time("write"):
            place = write_segment(
                parts.root, parts.identity, message.stream_id, message.epoch, kv, parts.codec
            )
        with self.clock.time("commit"):
            assert self._commit is not None, "set_commit() comes first"
            is_new = self._commit(place, answers)
        self._put_back(message.stream_id, session)
        self.clock.count("prefilled_frames", kv.num_frames)
        self.clock.count("committed_segments")
        self.clock.count("committed_bytes", place.file_bytes)
        return is_new

    def look(self, message: SegmentMessage) -> bool:
        """Has the stream's watches look at its open segment, and tells what is new. False: they did not look.

        They do not when another segment is due, or when looks have had their share of the time.
        """
        parts = self._started()
        with self._lock:
            session = self._sessions.get(message.stream_id)
            questions = self._watches.get(message.stream_id)
        is_due = session is not None and (session.epoch, session.next_segment_no) == (
            message.epoch,
            message.segment_no,
        )
        if session is None or not is_due or not questions or self._hear_open is None:
            return False
        if not self._looks.has_room:
            self.clock.count("looks_left_out")
            return False
        with self.clock.time("give_way"):
            parts.give_way()
        with self._looks.spend():
            with self.clock.time("look"):
                segment = message.to_segment(parts.device)
                kv = parts.engine.peek(session.window, segment, session.guidance, session.keep_ratio)
            answers = self._ask_watches(message.stream_id, kv)
            if answers:
                span_s = kv.start_s, kv.end_s
                heard = OpenAnswers(message.stream_id, message.epoch, message.segment_no, span_s, answers)
                with self.clock.time("commit"):
                    self.clock.count("told_early", self._hear_open(heard))
        self.clock.count("looks")
        return True

    def status(self) -> WorkerStatus:
        with self._lock:
            windows = {stream_id: session.epoch for stream_id, session in self._sessions.items()}
        return WorkerStatus(
            incarnation=self.incarnation,
            started=self._parts is not None and self._commit is not None,
            totals=self.clock.totals(),
            windows=windows,
            in_hand=self._hand.place,
        )

    def _put_back(self, stream_id: str, session: _Session) -> None:
        session.next_segment_no += 1
        with self._lock:
            self._sessions.setdefault(stream_id, session)

    def _check_replayed(self, stream_id: str, kv: SegmentKV, was: SegmentInfo) -> None:
        """The next session is not replayed when it is another: what is committed stays, and the stream goes on."""
        now = SegmentInfo(kv.segment_no, kv.start_s, kv.end_s, kv.num_frames)
        if now != was:
            with self._lock:
                self._changed.add(stream_id)
            raise SessionLostError(
                f"stream {stream_id!r}: its source or settings have changed: {was} was committed, now it is {now}"
            )

    def _ask_watches(self, stream_id: str, kv: SegmentKV) -> Sequence[WatchAnswer]:
        with self._lock:
            questions = self._watches.get(stream_id, ())
        if not questions:
            return ()
        try:
            with self.clock.time("watch"):
                found = self._started().ask(kv, questions)
        except Exception as exc:  # a question must not end its stream, which would come to it again and again
            self.clock.count("watch_errors", len(questions))
            log.warning("stream %s: segment %d, its watches: %s", stream_id, kv.segment_no, describe(exc))
            return ()
        answers = [answer for answer in found if isinstance(answer, WatchAnswer)]
        failures = [failure for failure in found if isinstance(failure, Exception)]
        if failures:
            self.clock.count("watch_errors", len(failures))
            log.warning(
                "stream %s: a watch of segment %d: %s", stream_id, kv.segment_no, describe(failures[0])
            )
        self.clock.count("watch_answers", len(answers))
        return answers

    def _started(self) -> PrefillParts:
        if self._parts is None:
            raise SessionLostError("this Prefill has just been started; its streams are to be opened again")
        return self._parts

    def _expect(self, message: SegmentMessage) -> _Session:
        with self._lock:
            session = self._sessions.get(message.stream_id)
        if session is None or session.epoch != message.epoch:
            have = f"epoch {session.epoch}" if session else "no window"
            raise SessionLostError(
                f"stream {message.stream_id!r}: segment {message.segment_no} of epoch {message.epoch}, "
                f"have {have}"
            )
        if session.next_segment_no != message.segment_no:
            raise SessionLostError(
                f"stream {message.stream_id!r}: got segment {message.segment_no}, "
                f"segment {session.next_segment_no} is due"
            )
        return session


def _ends_before(segment_no: int, memory: VideoMemory) -> bool:
    """Else what came last was lost."""
    return bool(memory.segments) and memory.segments[-1].segment_no + 1 == segment_no
