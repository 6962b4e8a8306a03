"""Posts the events of watches to their webhooks, signed as Standard Webhooks has it; beside the one catalog's writer.

How far an event has come stands in the catalog, so a restart goes on where the last process was. An event may arrive
twice, when the process ends between its arrival and the note of it; `webhook-id` is then the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
from standardwebhooks import Webhook

from actors.failures import describe
from actors.timing import StageClock
from streamkv.config import WatchConfig
from streamkv.store.watch_rows import Due, WatchRows
from streamkv.watches import WatchEvent, event_body

POLL_S, STEP_S = 1.0, 0.1
CONNECTIONS = 64
"""Receivers that are posted to at once, each one event at a time."""
STOP_S = 30.0
GONE = 410
"""The receiver wants no more; the only refusal that is not tried again."""

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs whole URLs, and some hold a password


def message_id(event: WatchEvent) -> str:
    """The same at every try, and of no other event."""
    return f"{event.watch_id}-{event.segment_no}"


def request_of(due: Due, now: float) -> tuple[dict[str, str], bytes]:
    """Headers and body of a try at `now`, seconds since 1970."""
    fired = datetime.fromtimestamp(due.event.fired_at, UTC).isoformat()
    content = {"type": "watch.fired", "timestamp": fired, "data": event_body(due.event)}
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    name, timestamp = message_id(due.event), int(now)
    signed = Webhook(due.secret).sign(name, datetime.fromtimestamp(timestamp, UTC), body)
    headers = {
        "content-type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signed,
    }
    return headers, body.encode()


def pause_s(tries: int, config: WatchConfig) -> float:
    """Until the next try, after so many that failed."""
    return float(min(config.longest_pause_s, config.first_pause_s * 2 ** min(tries - 1, 60)))


class WebhookSender:
    """One thread. Receivers are served apart, so a slow one delays its own events and no others."""

    def __init__(self, config: WatchConfig, watches: Callable[[], WatchRows], clock: StageClock) -> None:
        self._config = config
        self._watches = watches
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def shutdown(self) -> None:
        """Cuts off what is being posted; that is tried again by whoever comes next."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        sending: dict[str, asyncio.Task[None]] = {}
        limits = httpx.Limits(max_connections=CONNECTIONS)
        async with httpx.AsyncClient(limits=limits, timeout=None) as http:
            places = asyncio.Semaphore(CONNECTIONS)
            while not self._stopping.is_set():
                try:
                    urls = await asyncio.to_thread(lambda: self._watches().receivers(time.time()))
                except Exception as exc:  # of the catalog; the next look may go better
                    log.warning("webhooks: %s", describe(exc))
                    urls = []
                sending = {url: task for url, task in sending.items() if not task.done()}
                for url in urls:
                    if url not in sending:
                        sending[url] = asyncio.create_task(self._send_all(http, places, url))
                await self._pause()
            for task in sending.values():
                task.cancel()
            await asyncio.gather(*sending.values(), return_exceptions=True)

    async def _pause(self) -> None:
        end = time.monotonic() + POLL_S
        while not self._stopping.is_set() and time.monotonic() < end:
            await asyncio.sleep(STEP_S)  # no thread's wait: none is to be had where the process just ends

    async def _send_all(self, http: httpx.AsyncClient, places: asyncio.Semaphore, url: str) -> None:
        """All that is due at one receiver, one after the other."""
        try:
            while due := await asyncio.to_thread(lambda: self._watches().due(url, time.time())):
                async with places:
                    await self._send(http, due)
        except Exception as exc:
            log.warning("webhooks: %s", describe(exc))

    async def _send(self, http: httpx.AsyncClient, due: Due) -> None:
        problem, is_last = await self._post(http, due)
        tries = due.event.delivery.tries + 1
        watches, event = self._watches(), due.event
        if not problem:
            await asyncio.to_thread(watches.note_delivered, event)
            self._clock.count("webhooks_delivered")
            return
        self._clock.count("webhooks_failed")
        is_last = is_last or tries >= self._config.tries
        if is_last:
            log.warning("watch %s: event %d is given up: %s", event.watch_id, event.segment_no, problem)
        next_try_at = None if is_last else time.time() + pause_s(tries, self._config)
        await asyncio.to_thread(watches.note_failed, event, problem, next_try_at)

    async def _post(self, http: httpx.AsyncClient, due: Due) -> tuple[str, bool]:
        """Why it failed, empty when it did not, and whether that is for ever. Names no URL: it may hold a password."""
        headers, body = request_of(due, time.time())
        try:
            async with (
                asyncio.timeout(self._config.timeout_s),
                http.stream("POST", due.url, content=body, headers=headers) as response,
            ):
                if response.is_success:
                    return "", False
                return f"the receiver answered {response.status_code}", response.status_code == GONE
        except TimeoutError:
            return f"no answer within {self._config.timeout_s:g} s", False
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            return type(exc).__name__, False
