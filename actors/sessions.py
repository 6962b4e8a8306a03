"""What is done about one stream's session: begun, ended, moved. Each takes calls, so other threads do it, for many
streams at once and for each of them one thing at a time. When it is done, the supervisor decides."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal

from actors.failures import NotReadyError, WorkerLostError, describe
from actors.messages import StreamSpec
from actors.placement import Charge, Decoding, Prefilling
from actors.standing import questions_of
from actors.timing import StageClock
from actors.workers import CatalogKeeper, Workers
from streamkv.errors import StoreFullError, StreamKVError, UnknownStreamError

AT_ONCE = 32
"""Streams about which something is done at a time: mostly it is waited, for the store and for prefill at work."""

log = logging.getLogger(__name__)


class Sessions:
    """`let_go`: what to call with a stream that is not in care any more; `has` says whether it is. `on_done` hears the
    ids of streams that have come to their end."""

    def __init__(
        self,
        workers: Workers,
        clock: StageClock,
        *,
        has: Callable[[Charge], bool],
        let_go: Callable[[Charge], None],
        on_done: Callable[[str], None],
    ) -> None:
        self._workers = workers
        self._clock = clock
        self._has = has
        self._let_go = let_go
        self._on_done = on_done
        self._store: CatalogKeeper | None = None
        self._threads = ThreadPoolExecutor(AT_ONCE, "session")

    def open(self, store: CatalogKeeper) -> None:
        self._store = store

    def shutdown(self) -> None:
        """Returns when what is under way is done."""
        self._threads.shutdown(cancel_futures=True)

    # ---- from the supervisor's thread

    def begin(self, charge: Charge, decoding: Decoding, prefilling: Prefilling) -> None:
        """Opens a session on these workers, from the stream's last commit on."""
        self._do(charge, lambda: self._begin(charge, decoding, prefilling))

    def prepare(self, charge: Charge) -> None:
        """Has the decoder where a live stream will be begin to read it, so that nothing is missed while it moves."""
        self._do(charge, lambda: self._prepare(charge))

    def drain(self, charge: Charge) -> None:
        """Has the stream's decoder stop it in good order, and say so."""
        self._do(charge, lambda: self._drain(charge))

    def hand_over(self, charge: Charge, *, goes_on: bool = True) -> None:
        """Ends the session where it is, and, if it goes on at once, begins the next one where the stream moves to."""
        self._do(charge, lambda: self._hand_over(charge, goes_on))

    def pause(self, charge: Charge, why: str) -> None:
        """Until there is room: what is committed stays, what is in flight is ingested again then."""
        self._do(charge, lambda: self._pause(charge, why))

    def finish(self, charge: Charge, state: Literal["done", "failed"], detail: str) -> None:
        self._do(charge, lambda: self._finish(charge, state, detail))

    def tell_watches(self, charge: Charge) -> None:
        """Has the stream's prefiller ask what its watches are now."""
        self._do(charge, lambda: self.tell_watches_now(charge))

    def lose(self, charge: Charge, why: str, *, is_blamed: bool = True) -> None:
        """Notes that a session is over; the next one begins later, unless there were too many."""
        if too_often := _note_loss(charge, why, is_blamed=is_blamed):
            self.finish(charge, "failed", too_often)

    def forget(self, end: Callable[[str], None], stream_id: str) -> None:
        """Ends what a worker goes on with that is not its own any more."""

        def forget() -> None:
            with suppress(WorkerLostError):
                end(stream_id)

        self._threads.submit(forget)

    def _do(self, charge: Charge, work: Callable[[], None]) -> None:
        def locked() -> None:
            try:
                with charge.lock:
                    if self._has(charge):  # else it was removed
                        work()
            except Exception as exc:
                # The next look tries again: most likely the store is full, or being restarted.
                log.warning("stream %s: %s", charge.stream_id, describe(exc))
            finally:
                charge.is_busy = False

        charge.is_busy = True
        self._threads.submit(locked)

    # ---- with the stream's lock held

    def close(self, charge: Charge, *, keeps_window: bool = False) -> None:
        """The decoder first: what it had shipped is then done with when the window closes."""
        if charge.decoding is not None:
            with suppress(WorkerLostError):
                charge.decoding.worker.remove_stream(charge.stream_id)
        if charge.prefilling is not None and not keeps_window:
            with suppress(WorkerLostError):
                charge.prefilling.worker.close_stream(charge.stream_id)

    def tell_watches_now(self, charge: Charge) -> None:
        """Should it fail, `charge.has_untold_watches` says so. The next session hears of them when it begins."""
        if not charge.epoch or charge.prefilling is None:
            return
        charge.has_untold_watches = True
        with suppress(WorkerLostError, UnknownStreamError):
            questions = questions_of(self._opened.watches_of(charge.stream_id))
            charge.prefilling.worker.set_watches(charge.stream_id, questions)
            if charge.decoding is not None:
                charge.decoding.worker.set_watched(charge.stream_id, bool(questions))
            charge.has_untold_watches = False

    def _begin(self, charge: Charge, decoding: Decoding, prefilling: Prefilling) -> None:
        store = self._opened
        charge.opened_at = time.monotonic()
        try:
            if charge.last_epoch and charge.is_taken(store.record(charge.stream_id).epoch):
                log.warning("stream %s: another supervisor has taken it over", charge.stream_id)
                self._let_go(charge)
                return
            last_epoch = charge.last_epoch
            charge.last_epoch = 0  # should the call fail, nobody knows whether it took one
            beginning = store.begin_session(charge.stream_id)
            info = beginning.record
            if info is None:
                charge.last_epoch = last_epoch
                self._pause(charge, beginning.why_not)
                return
            epoch = charge.last_epoch = info.epoch
            guidance = str(info.config.get("guidance", ""))
            keep_ratio = float(info.config.get("keep_ratio", 0.0))
            is_live = charge.is_live = bool(info.config.get("is_live", False))
            replay = prefilling.worker.open_stream(
                info.stream_id,
                epoch,
                info.next_segment_no,
                guidance,
                keep_ratio,
                beginning.watches,
                not is_live,  # a camera shows nothing twice
            )
            spec = StreamSpec(
                info.stream_id,
                info.uri,
                epoch,
                start_s=replay.start_s if replay else info.resume_s,
                next_segment_no=replay.segment_no if replay else info.next_segment_no,
                num_committed=info.next_segment_no,
                is_live=is_live,
                is_watched=bool(beginning.watches),
                origin_s=info.created_at,
                priority=int(info.config.get("priority", 1)),
            )
            decoding.worker.add_stream(spec, self._workers.sink(prefilling.worker, store))
        except UnknownStreamError:  # removed behind our back
            self._let_go(charge)
        except StoreFullError as exc:  # of the catalog
            self._pause(charge, str(exc))
        except NotReadyError as exc:  # nobody's doing: the next look sees that the decoder is being started
            log.warning("stream %s: %s", charge.stream_id, exc)
        except (StreamKVError, RuntimeError) as exc:
            if too_often := _note_loss(charge, describe(exc)):
                self._finish(charge, "failed", too_often)
        else:
            charge.begin(epoch, info.next_segment_no)
            charge.feed = None
            self._clock.count("sessions")

    def _drain(self, charge: Charge) -> None:
        assert charge.decoding is not None
        charge.decoding.worker.drain_stream(charge.stream_id)

    def _prepare(self, charge: Charge) -> None:
        there = charge.to_decoding or charge.decoding
        assert there is not None
        info = self._opened.record(charge.stream_id)
        spec = StreamSpec(
            info.stream_id,
            info.uri,
            charge.epoch,
            start_s=info.resume_s,
            is_live=True,
            origin_s=info.created_at,
        )
        there.worker.prepare_stream(spec)

    def _hand_over(self, charge: Charge, goes_on: bool) -> None:
        self.close(charge, keeps_window=charge.to_prefilling is None)
        charge.hand_over()
        self._clock.count("handovers")
        decoding, prefilling = charge.decoding, charge.prefilling
        assert decoding is not None
        assert prefilling is not None
        # A suspect waits for its turn there; and should one be away, the next look sees to it.
        if goes_on and decoding.has_place and prefilling.has_place and not charge.is_suspect:
            self._begin(charge, decoding, prefilling)

    def _pause(self, charge: Charge, why: str) -> None:
        log.warning("stream %s: paused: %s", charge.stream_id, why)
        self.close(charge)
        charge.pause(why)
        with suppress(UnknownStreamError):
            self._opened.set_state(charge.stream_id, "paused", why)

    def _finish(self, charge: Charge, state: Literal["done", "failed"], detail: str) -> None:
        with suppress(UnknownStreamError):
            self._opened.set_state(charge.stream_id, state, detail)
            if state == "done":
                self._on_done(charge.stream_id)
        self._let_go(charge)
        self.close(charge)

    @property
    def _opened(self) -> CatalogKeeper:
        assert self._store is not None, "open() comes first"
        return self._store


def _note_loss(charge: Charge, why: str, *, is_blamed: bool = True) -> str:
    """Returns why the stream is to be set aside; empty: it is tried again."""
    log.warning("stream %s: its session is lost: %s", charge.stream_id, why)
    charge.lose(is_blamed=is_blamed)
    if not charge.is_poisoned:
        return ""
    count = max(charge.strikes, charge.num_ended)
    return f"set aside after {count} restarts without getting further; the last: {why}"
