"""Live sources that are read before their streams come here, so that a stream that moves misses nothing."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

from actors.live_feed import LiveFeed
from actors.messages import StreamSpec

KEPT_S = 90.0
"""How long a source is read for a stream that then does not come."""


@dataclass(frozen=True)
class _Prepared:
    feed: LiveFeed
    until: float  # time.monotonic()


class PreparedSources:
    """By stream; any thread may call."""

    def __init__(self) -> None:
        self._by_stream: dict[str, _Prepared] = {}
        self._lock = threading.Lock()

    def add(self, feed: LiveFeed) -> None:
        """Begins to read it, in the place of an earlier one of the stream."""
        with self._lock:
            earlier = self._by_stream.get(feed.spec.stream_id)
            self._by_stream[feed.spec.stream_id] = _Prepared(feed, time.monotonic() + KEPT_S)
        if earlier is not None:
            earlier.feed.stop()
        feed.start()

    def take(self, spec: StreamSpec) -> LiveFeed | None:
        """The source, from the session's beginning on.

        One that has shown nothing is let go: a camera may take one client at a time, and is best tried anew.
        """
        with self._lock:
            prepared = self._by_stream.pop(spec.stream_id, None)
        if prepared is None:
            return None
        if prepared.feed.next_s is None:
            prepared.feed.stop()
            return None
        prepared.feed.spec = spec
        return prepared.feed

    def shown(self) -> dict[str, float]:
        """Of each that has shown something, the stream time from which on it is read."""
        with self._lock:
            shown = {name: prepared.feed.next_s for name, prepared in self._by_stream.items()}
        return {name: start_s for name, start_s in shown.items() if start_s is not None}

    def end(self, before: float = math.inf) -> None:
        """Lets those go that were to be taken by then (`time.monotonic()`)."""
        with self._lock:
            late = [name for name, prepared in self._by_stream.items() if prepared.until < before]
            feeds = [self._by_stream.pop(name).feed for name in late]
        for feed in feeds:
            feed.stop()
