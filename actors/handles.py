"""Typed handles of Ray actors, so that callers call methods and see our own errors.

Every call waits for at most a named time. An actor that died or does not answer is a `WorkerLostError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray

from actors.messages import Beginning, Replay, SegmentMessage, StreamSpec, WorkerStatus
from actors.remote import as_future, wait_for
from actors.spawn import CONTROL
from actors.views import GapView
from streamkv.store import ModelIdentity, SegmentPlace, StreamInfo, StreamRecord, StreamState, WatchRecord
from streamkv.video import VideoInfo
from streamkv.watches import OpenAnswers, Watch, WatchAnswer, WatchEvent, WatchQuestion

CONTROL_S = 5.0
"""Status and the like: answered by threads of their own, whatever the work."""
CALL_S = 60.0
START_S = 900.0
"""Loading a large model from a network file system."""
PROBE_S = 45.0
STORE_RETRIES = 5
"""Calls of the store that may be repeated are, while it is being restarted."""


class DecodeHandle:
    """A `DecodeEncode` elsewhere."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def start(self) -> None:
        wait_for(self.actor.start.remote(), START_S)

    def status(self) -> WorkerStatus:
        status: WorkerStatus = wait_for(_control(self.actor.status).remote(), CONTROL_S)
        return status

    def probe(self, uri: str) -> VideoInfo:
        info: VideoInfo = wait_for(_control(self.actor.probe).remote(uri), PROBE_S)
        return info

    def add_stream(self, spec: StreamSpec, sink: RaySink) -> None:
        wait_for(self.actor.add_stream.remote(spec, sink), CALL_S)

    def prepare_stream(self, spec: StreamSpec) -> None:
        wait_for(_control(self.actor.prepare_stream).remote(spec), CONTROL_S)

    def set_watched(self, stream_id: str, is_watched: bool) -> None:
        wait_for(_control(self.actor.set_watched).remote(stream_id, is_watched), CONTROL_S)

    def drain_stream(self, stream_id: str) -> None:
        wait_for(_control(self.actor.drain_stream).remote(stream_id), CONTROL_S)

    def remove_stream(self, stream_id: str) -> None:
        wait_for(_control(self.actor.remove_stream).remote(stream_id), CALL_S)

    def latest(self, stream_id: str) -> list[SegmentMessage]:
        messages: list[SegmentMessage] = wait_for(_control(self.actor.latest).remote(stream_id), CONTROL_S)
        return messages

    def shutdown(self) -> None:
        wait_for(_control(self.actor.shutdown).remote(), CALL_S)

    def kill(self) -> None:
        """Ends the process; Ray starts another in its place."""
        ray.kill(self.actor, no_restart=False)

    def dismiss(self) -> None:
        """Ends the process for good, or that it is waited for."""
        ray.kill(self.actor, no_restart=True)


class PrefillHandle:
    """A `Prefill` elsewhere."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def start(self) -> ModelIdentity:
        identity: ModelIdentity = wait_for(self.actor.start.remote(), START_S)
        return identity

    def set_commit(self, commit: CommitThroughStore, hear_open: HearOpenThroughStore) -> None:
        wait_for(self.actor.set_commit.remote(commit, hear_open), CALL_S)

    def status(self) -> WorkerStatus:
        status: WorkerStatus = wait_for(_control(self.actor.status).remote(), CONTROL_S)
        return status

    def open_stream(
        self,
        stream_id: str,
        epoch: int,
        next_segment_no: int,
        guidance: str,
        keep_ratio: float,
        watches: Sequence[WatchQuestion],
        may_replay: bool,
    ) -> Replay | None:
        call = self.actor.open_stream.remote(
            stream_id, epoch, next_segment_no, guidance, keep_ratio, watches, may_replay
        )
        replay: Replay | None = wait_for(call, CALL_S)
        return replay

    def set_watches(self, stream_id: str, watches: Sequence[WatchQuestion]) -> None:
        wait_for(_control(self.actor.set_watches).remote(stream_id, watches), CONTROL_S)

    def close_stream(self, stream_id: str) -> None:
        """Returns when what was shipped before is done with."""
        wait_for(self.actor.close_stream.remote(stream_id), CALL_S)

    def shutdown(self) -> None:
        wait_for(_control(self.actor.shutdown).remote(), CALL_S)

    def kill(self) -> None:
        """Ends the process; Ray starts another in its place."""
        ray.kill(self.actor, no_restart=False)

    def dismiss(self) -> None:
        """Ends the process for good, or that it is waited for."""
        ray.kill(self.actor, no_restart=True)


class StoreHandle:
    """A `StoreActor` elsewhere."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def start(self) -> None:
        self._again(self.actor.start)

    def add_stream(self, stream_id: str, uri: str, config: Mapping[str, Any], tenant: str) -> None:
        # Never repeated by itself: a second one would find the first one's row, and call it another's.
        wait_for(self.actor.add_stream.remote(stream_id, uri, dict(config), tenant), CALL_S)

    def remove_stream(self, stream_id: str) -> None:
        wait_for(self.actor.remove_stream.remote(stream_id), CALL_S)

    def begin_next(self, stream_id: str, config: Mapping[str, Any]) -> str:
        # Never repeated by itself: a second one would find the first one's row.
        next_id: str = wait_for(self.actor.begin_next.remote(stream_id, dict(config)), CALL_S)
        return next_id

    def switch_to(self, stream_id: str) -> None:
        self._again(self.actor.switch_to, stream_id)

    def streams(self) -> list[StreamInfo]:
        infos: list[StreamInfo] = self._again(self.actor.streams)
        return infos

    def stream(self, stream_id: str) -> StreamInfo:
        info: StreamInfo = self._again(self.actor.stream, stream_id)
        return info

    def record(self, stream_id: str) -> StreamRecord:
        record: StreamRecord = self._again(self.actor.record, stream_id)
        return record

    def set_state(self, stream_id: str, state: StreamState, detail: str) -> None:
        self._again(self.actor.set_state, stream_id, state, detail)

    def begin_session(self, stream_id: str) -> Beginning:
        beginning: Beginning = self._again(self.actor.begin_session, stream_id)
        return beginning

    def commit(self, place: SegmentPlace, answers: Sequence[WatchAnswer]) -> bool:
        is_new: bool = self._again(self.actor.commit, place, answers)
        return is_new

    def hear_open(self, heard: OpenAnswers) -> int:
        fired: int = self._again(self.actor.hear_open, heard)
        return fired

    def add_watch(self, watch: Watch, limit: int) -> None:
        self._again(self.actor.add_watch, watch, limit)

    def remove_watch(self, watch_id: str) -> str:
        # Never repeated by itself: a second one would find nothing to remove.
        stream_id: str = wait_for(self.actor.remove_watch.remote(watch_id), CALL_S)
        return stream_id

    def watches_of(self, stream_id: str) -> list[Watch]:
        watches: list[Watch] = self._again(self.actor.watches_of, stream_id)
        return watches

    def watch_records(self, stream_id: str | None) -> list[WatchRecord]:
        records: list[WatchRecord] = self._again(self.actor.watch_records, stream_id)
        return records

    def watch_record(self, watch_id: str) -> WatchRecord:
        record: WatchRecord = self._again(self.actor.watch_record, watch_id)
        return record

    def watch_events(self, after: Sequence[tuple[str, int]], limit: int) -> list[list[WatchEvent] | None]:
        events: list[list[WatchEvent] | None] = self._again(self.actor.watch_events, after, limit)
        return events

    def add_gap(self, stream_id: str, gap: GapView) -> Future[None]:
        method = self.actor.add_gap.options(max_task_retries=STORE_RETRIES)
        return as_future(method.remote(stream_id, gap.start_s, gap.end_s, gap.reason))

    def totals(self) -> dict[str, float]:
        totals: dict[str, float] = self._again(self.actor.totals)
        return totals

    def shutdown(self) -> None:
        wait_for(self.actor.shutdown.remote(), CALL_S)

    def _again(self, method: Any, *args: Any) -> Any:
        return wait_for(method.options(max_task_retries=STORE_RETRIES).remote(*args), CALL_S)


class RaySink:
    """A stream's way out of `DecodeEncode`: one object a segment, put once, and one call with its ref."""

    def __init__(self, prefill: PrefillHandle, store: StoreHandle) -> None:
        self._prefill = prefill
        self._store = store

    def ship(self, message: SegmentMessage) -> Future[bool]:
        return as_future(self._prefill.actor.ingest.remote(ray.put(message)))

    def show(self, message: SegmentMessage) -> Future[bool]:
        return as_future(self._prefill.actor.look.remote(ray.put(message)))

    def add_gap(self, stream_id: str, gap: GapView) -> Future[None]:
        return self._store.add_gap(stream_id, gap)


class CommitThroughStore:
    """A segment's place and its answers to the store: the one call that `Prefill` makes for a segment."""

    def __init__(self, store: StoreHandle) -> None:
        self._store = store

    def __call__(self, place: SegmentPlace, answers: Sequence[WatchAnswer]) -> bool:
        return self._store.commit(place, answers)


class HearOpenThroughStore:
    """What watches make of an open segment, to the store."""

    def __init__(self, store: StoreHandle) -> None:
        self._store = store

    def __call__(self, heard: OpenAnswers) -> int:
        return self._store.hear_open(heard)


def _control(method: Any) -> Any:
    return method.options(concurrency_group=CONTROL)
