"""Prefill of many streams' segments: owns their sliding windows, writes their files, has them committed.

A window is only ever ahead of the store by the segment at hand. When anything goes wrong with that one, the
window is dropped, and the stream resumes from what is committed.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from actors.failures import SessionLostError
from actors.messages import SegmentMessage, WorkerStatus
from actors.timing import StageClock
from streamkv.memory import VideoMemory
from streamkv.store import ModelIdentity, SegmentPlace, write_segment
from streamkv.types import Segment, SegmentKV

CommitSegment = Callable[[SegmentPlace], bool]


class SegmentEngine(Protocol):
    """`streamkv.engine.Engine`, or what behaves like it; nobody else looks into its windows."""

    def open_window(self, memory: VideoMemory | None = None) -> Any: ...

    def prefill(self, window: Any, segment: Segment, guidance: str = "") -> SegmentKV: ...


@dataclass(frozen=True)
class PrefillParts:
    """What runs inside; loaded by `start`."""

    engine: SegmentEngine
    identity: ModelIdentity
    device: torch.device
    root: Path  # of the store
    codec: str  # of its files
    recall: Callable[[str], VideoMemory]  # a stream's committed past


@dataclass
class _Session:
    epoch: int
    window: Any
    next_segment_no: int
    guidance: str  # the stream's own prompt; empty: the method's


class Prefill:
    """See the module. Life: constructor, `start`, `check_health`, `shutdown`."""

    def __init__(self, load: Callable[[], PrefillParts], commit: CommitSegment | None = None) -> None:
        self.incarnation = uuid.uuid4().hex
        self.clock = StageClock()
        self._load = load
        self._commit = commit
        self._parts: PrefillParts | None = None
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()  # guards the dict; one thread alone does the work

    def start(self) -> ModelIdentity:
        """Loads the model; once more changes nothing. Returns what the store must be of."""
        if self._parts is None:
            self._parts = self._load()
        return self._parts.identity

    def set_commit(self, commit: CommitSegment) -> None:
        """Who commits: known only once the store is open, which needs the identity that `start` returns."""
        self._commit = commit

    def check_health(self) -> None:
        """Raises when no work can be done; there is no such state but death."""

    def shutdown(self) -> None:
        """Forgets all windows."""
        with self._lock:
            self._sessions.clear()

    def open_stream(self, stream_id: str, epoch: int, next_segment_no: int, guidance: str = "") -> None:
        """Makes the stream's window as it was after its last committed segment; keeps one that is there and is that."""
        parts = self._started()
        with self._lock:
            held = self._sessions.get(stream_id)
            if held is not None and held.next_segment_no == next_segment_no and held.guidance == guidance:
                held.epoch = epoch  # one rebuilt from what is stored would lack the frames that were not kept
                return
        with self.clock.time("rebuild"):
            window = parts.engine.open_window(parts.recall(stream_id) if next_segment_no else None)
        with self._lock:
            self._sessions[stream_id] = _Session(epoch, window, next_segment_no, guidance)

    def close_stream(self, stream_id: str) -> None:
        with self._lock:
            self._sessions.pop(stream_id, None)

    def ingest(self, message: SegmentMessage) -> bool:
        """Prefills, writes and commits one segment; returns when it is durable.

        Raises:
            SessionLostError: the stream is not open here under this epoch, or another segment is due.
            FencedError: another writer has taken the stream over.
        """
        parts = self._started()
        session = self._expect(message)
        with self._lock:
            del self._sessions[message.stream_id]  # back in place only if all goes well
        with self.clock.time("prefill"):
            segment = message.to_segment(parts.device)
            kv = parts.engine.prefill(session.window, segment, session.guidance)
        with self.clock.time("write"):
            place = write_segment(
                parts.root, parts.identity, message.stream_id, message.epoch, kv, parts.codec
            )
        with self.clock.time("commit"):
            assert self._commit is not None, "set_commit() comes first"
            is_new = self._commit(place)
        session.next_segment_no += 1
        with self._lock:
            self._sessions.setdefault(message.stream_id, session)
        self.clock.count("prefilled_frames", kv.num_frames)
        self.clock.count("committed_segments")
        self.clock.count("committed_bytes", place.file_bytes)
        return is_new

    def status(self) -> WorkerStatus:
        with self._lock:
            windows = {stream_id: session.epoch for stream_id, session in self._sessions.items()}
        return WorkerStatus(
            incarnation=self.incarnation,
            started=self._parts is not None and self._commit is not None,
            totals=self.clock.totals(),
            windows=windows,
        )

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
