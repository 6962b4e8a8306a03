"""Memories that are whole and are to take their streams' places (`streamkv.store.generations`)."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from actors.failures import describe
from actors.workers import CatalogKeeper
from streamkv.errors import LegalHoldError, StoreError, UnknownStreamError
from streamkv.store.layout import is_later_id

RETRY_S = 5.0
"""Until one that could not take its place is tried again: a legal hold may last for years."""

log = logging.getLogger(__name__)


@dataclass
class _Whole:
    why_not: str = ""  # what kept it from its place; empty: nothing, or it was not tried
    not_before: float = 0.0  # time.monotonic() of the next attempt


class Switching:
    """Which they are, and what keeps them. `lock`: held by whoever has one take its place, or gives it up."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._whole: dict[str, _Whole] = {}  # by id

    def note_done(self, stream_id: str) -> None:
        """A stream has come to its end. One of a later id was ingested to take another's place."""
        if is_later_id(stream_id):
            self._whole[stream_id] = _Whole()

    def why_not(self, stream_id: str) -> str:
        whole = self._whole.get(stream_id)
        return whole.why_not if whole is not None else ""

    def try_all(self, store: CatalogKeeper) -> None:
        """Has each take its place, now or at a later look."""
        now = time.monotonic()
        for stream_id, whole in list(self._whole.items()):
            if now >= whole.not_before:
                whole.not_before = now + RETRY_S
                with self.lock:
                    self._try(store, stream_id, whole)

    def _try(self, store: CatalogKeeper, stream_id: str, whole: _Whole) -> None:
        try:
            store.switch_to(stream_id)
        except UnknownStreamError:  # given up, or removed with its stream
            self._whole.pop(stream_id, None)
        except LegalHoldError as exc:
            whole.why_not = str(exc)
        except StoreError as exc:  # of a database that is away, or of files that are left, which go later
            log.warning("stream %s is not in its place yet: %s", stream_id, describe(exc))
        else:  # also one that had its place before: then nothing was done
            self._whole.pop(stream_id, None)
