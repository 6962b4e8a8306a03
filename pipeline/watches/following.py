"""Followers of watches: however many there are, one look a second serves them all. Knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress

from actors.views import WatchEventView
from pipeline.http_errors import OverloadedError
from streamkv.errors import UnknownWatchError

POLL_S = 1.0
PAGE = 100
"""Events of one watch that are fetched at once; no more until the follower has taken these."""
PATIENCE_S = 5.0
"""For how long looks may fail before followers are told. They may come again, and miss nothing."""

Page = Sequence[WatchEventView]
Look = Callable[[list[tuple[str, int]], int], Awaitable[Sequence[Page | None]]]
"""Up to so many events after each watch's segment number; None for a watch that is not there."""


class _Follower:
    def __init__(self, watch_id: str, after: int) -> None:
        self.watch_id = watch_id
        self.after = after
        self.page: Page | None = ()
        self.error: Exception | None = None
        self.has_news = asyncio.Event()

    def hear(self, page: Page | None) -> None:
        if page is None:
            self.fail(UnknownWatchError(f"watch {self.watch_id!r}: it was removed; there are no more events"))
        elif page:
            self.page, self.after = page, int(page[-1].body["segment"])
            self.has_news.set()

    def fail(self, exc: Exception) -> None:
        self.error = exc
        self.has_news.set()


class Followers:
    """Of one process's event loop."""

    def __init__(
        self, look: Look, limit: int, *, poll_s: float = POLL_S, patience_s: float = PATIENCE_S
    ) -> None:
        self._look, self._limit = look, limit
        self._poll_s, self._patience_s = poll_s, patience_s
        self._followers: set[_Follower] = set()
        self._task: asyncio.Task[None] | None = None

    def follow(self, watch_id: str, after: int, wait_s: float) -> AsyncGenerator[WatchEventView | None, None]:
        """Events of segments after that number as they are fired; None whenever none came for `wait_s`.

        OverloadedError when there are as many followers as there may be. The events end with an error alone:
        UnknownWatchError when the watch was removed, or what kept looks from succeeding for too long.
        """
        if len(self._followers) >= self._limit:
            raise OverloadedError(
                f"{self._limit} connections wait for events already (watch.max_followers); close some, or use a webhook"
            )
        return self._follow(_Follower(watch_id, after), wait_s)

    async def _follow(
        self, follower: _Follower, wait_s: float
    ) -> AsyncGenerator[WatchEventView | None, None]:
        self._followers.add(follower)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_for_all())
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(follower.has_news.wait(), wait_s)
                if not follower.has_news.is_set():
                    yield None
                    continue
                if follower.error is not None:
                    raise follower.error
                for event in follower.page or ():
                    yield event
                follower.has_news.clear()  # the next look fetches more
        finally:
            self._followers.discard(follower)

    async def _look_for_all(self) -> None:
        """Until nobody follows any more."""
        failing_since: float | None = None
        while self._followers:
            asking = [f for f in self._followers if not f.has_news.is_set()]
            try:
                pages = await self._look([(f.watch_id, f.after) for f in asking], PAGE) if asking else ()
            except Exception as exc:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since >= self._patience_s:
                    for follower in asking:
                        follower.fail(exc)
            else:
                failing_since = None
                for follower, page in zip(asking, pages, strict=True):
                    follower.hear(page)
            await asyncio.sleep(self._poll_s)
