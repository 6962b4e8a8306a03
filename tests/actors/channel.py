"""A live source that a test holds in its hands, and workers that read it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue

import numpy as np
from stage import SEGMENTS, LocalWorkers, MeanEncoder, Mortal

from actors.decode_encode import DecodeEncode, DecodeParts
from actors.messages import StreamSpec
from actors.parts import _open_source
from streamkv.config import SourceConfig
from streamkv.live import Waiting
from streamkv.segmentation import Segmenter
from streamkv.types import Frame
from streamkv.video import VideoInfo

LIVE = SourceConfig(sample_fps=2.0, batch_frames=4, queue_frames=4, live_timeout_s=2.0)


def spec_of(uri: str, **values: float) -> StreamSpec:
    return StreamSpec("s", uri, epoch=1, is_live=True, origin_s=time.time(), **values)


class Channel:
    """A live source that shows a frame whenever it is told to, and does not see at once that it is to stop."""

    outage = None
    connections = 1

    def __init__(self) -> None:
        self.shown: SimpleQueue[Frame | None] = SimpleQueue()
        self.is_stopped = False
        self.count = 0

    def show(self, count: int) -> None:
        for _ in range(count):
            self.shown.put(
                Frame(np.full((2, 2, 3), self.count, np.uint8), self.count / 2, self.count / 2 + 0.5)
            )
            self.count += 1

    def frames(self, waiting: Waiting) -> Iterator[Frame]:
        return iter(self.shown.get, None)

    def stop(self) -> None:
        self.is_stopped = True


def channel_parts(channel: Channel, *others: Channel) -> DecodeParts:
    """`others`: who opens it again gets these, one after the other."""
    channels = iter((channel, *others))
    return DecodeParts(
        MeanEncoder(),
        partial(Segmenter, SEGMENTS),
        partial(_open_source, LIVE),
        lambda spec, on_gap: next(channels, channel),
        lambda uri, timeout_s: VideoInfo(0.0, 2.0, 2, 2, "channel", is_live=True),
    )


class ChannelWorkers(LocalWorkers):
    """Workers that read one channel."""

    channel: Channel

    def decoder(self, name: str) -> Mortal:
        self.channel = Channel()
        load = partial(channel_parts, self.channel)
        self.decoders.append(Mortal(lambda: DecodeEncode(load, LIVE, in_flight=2)))
        return self.decoders[-1]
