"""What a decoder keeps of sessions that have ended.

    python -m bench.sessions --streams 16 --rounds 5 --json

Live streams (MPEG-TS over UDP) are decoded in one process, as `DecodeEncode` does it, with a tower that does nothing.
Each round all sessions begin anew, as they do when the store or a prefill actor was lost. Memory is what the process
has for itself at a round's end.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from actors.decode_encode import DecodeEncode, DecodeParts
from actors.live_feed import LiveFeed
from actors.messages import SegmentMessage, StreamSpec
from actors.parts import _open_live, _open_source
from actors.views import GapView
from bench.fakes import SEGMENTS, MeanEncoder
from bench.machine import Figure, machine, report
from bench.soak import senders
from pipeline.worlds import write_world
from streamkv.config import SourceConfig
from streamkv.live import Connection
from streamkv.segmentation import Segmenter

SOURCE = SourceConfig(sample_fps=0.5)


class Nowhere:
    """A sink that takes all."""

    def ship(self, message: SegmentMessage) -> Future[bool]:
        return _done(True)

    def show(self, message: SegmentMessage) -> Future[bool]:
        return _done(True)

    def add_gap(self, stream_id: str, gap: GapView) -> Future[None]:
        return _done(None)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def measure(streams: int, rounds: int, seconds: float, work: Path) -> list[Figure]:
    world = write_world(work, "square", seed=900, minutes=1, questions=1)
    parts = DecodeParts(
        MeanEncoder(),
        partial(Segmenter, SEGMENTS),
        partial(_open_source, SOURCE),
        partial(_open_live, SOURCE),
    )
    decoder, process = DecodeEncode(lambda: parts, SOURCE, in_flight=2), psutil.Process()
    decoder.start()
    megabytes = []
    with senders(world, streams) as addresses:
        began = time.time()
        for no in range(rounds):
            start_s = time.time() - began if no else 0.0
            for i, uri in enumerate(addresses):
                spec = StreamSpec(f"s{i}", uri, no + 1, start_s, is_live=True, origin_s=began)
                decoder.add_stream(spec, Nowhere())
            time.sleep(seconds)
            megabytes.append(process.memory_full_info().uss / 1e6)
            print(f"round {no + 1}: {megabytes[-1]:.0f} MB", file=sys.stderr, flush=True)
        kept = Counter(type(each) for each in gc.get_objects() if type(each) in (LiveFeed, Connection))
        frames = sum(feed.frames for feed in decoder.status().feeds.values())
        decoder.shutdown()
    return [
        *(Figure(f"round_{no}_mb", "MB", (value,)) for no, value in enumerate(megabytes, 1)),
        Figure("last_over_first", "ratio", (megabytes[-1] / megabytes[0],)),
        Figure("feeds_kept", "", (float(kept[LiveFeed]),), f"{streams} are at work"),
        Figure("connections_kept", "", (float(kept[Connection]),), f"{streams} are at work"),
        Figure("frames_of_the_last_round", "", (float(frames),)),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sessions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--streams", type=int, default=16, help="live streams (default 16)")
    parser.add_argument("--rounds", type=int, default=5, help="how often all sessions begin (default 5)")
    parser.add_argument("--seconds", type=float, default=45.0, help="how long a session lasts (default 45)")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    given = parser.parse_args(arguments)
    if shutil.which("ffmpeg") is None:
        parser.error("ffmpeg is not there; install it (Debian: apt-get install ffmpeg)")
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        found = measure(given.streams, given.rounds, given.seconds, Path(work))
    report(found, machine(), as_json=given.json)


if __name__ == "__main__":
    main()
