"""Small pictures inside an answer, for whoever shows it at once. Knows neither Ray nor a decoder."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence

from pipeline.schemas import Answer

MOST = 8
"""Of one answer: the heaviest evidence."""
WIDTH = 160
"""Pixels; a smaller picture stays as it is."""
WAIT_S = 15.0
"""An answer waits no longer for its pictures, and goes without them."""

Look = Callable[[str, Sequence[float], int], Awaitable[Sequence[bytes | None]]]
"""A stream, times and a width to JPEGs; None where there is none."""

log = logging.getLogger("streamkv.thumbnails")


async def add_thumbnails(look: Look, stream_id: str, answer: Answer) -> None:
    """Fills in what can be had; whatever goes wrong costs pictures, never the answer."""
    shown = [e for e in answer.evidence if e.frame is not None][:MOST]
    if not shown:
        return
    times = [(e.start_s + e.end_s) / 2 for e in shown]
    try:
        pictures = await asyncio.wait_for(look(stream_id, times, WIDTH), WAIT_S)
    except Exception as exc:
        log.warning("no thumbnails of %s: %s", stream_id, exc)
        return
    for evidence, jpeg in zip(shown, pictures, strict=True):
        if jpeg is not None:
            evidence.thumbnail = f"data:image/jpeg;base64,{b64encode(jpeg).decode()}"
