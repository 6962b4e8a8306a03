"""Cameras on a socket, and workers that read them."""

from __future__ import annotations

import socket
import threading
import time
from functools import partial

from channel import LIVE
from stage import SEGMENTS, LocalWorkers, MeanEncoder, Mortal

from actors.decode_encode import DecodeEncode, DecodeParts
from actors.parts import _open_live, _open_source
from streamkv.config import SourceConfig
from streamkv.segmentation import Segmenter


class Camera:
    """Sends all of its footage in a burst to each client, then holds the line until it is cut or left."""

    def __init__(self, footage: bytes) -> None:
        self.footage = footage
        self.only_once = False  # later clients get nothing, until this is undone
        self._cut = threading.Event()

    def __call__(self, client: socket.socket, number: int) -> None:
        if not (self.only_once and number > 0):
            client.sendall(self.footage)
        client.settimeout(0.02)
        while not self._cut.is_set():
            try:
                if not client.recv(1):
                    return  # it has left
            except TimeoutError:
                continue
        self._cut.clear()

    def cut(self) -> None:
        self._cut.set()


class Broadcast:
    """Sends its footage at its pace, over and over, to each client from where it is by the clock."""

    def __init__(self, footage: bytes, seconds: float) -> None:
        self._footage, self._rate = footage, len(footage) / seconds
        self._began = time.monotonic()
        self.is_over = threading.Event()

    def __call__(self, client: socket.socket, number: int) -> None:
        sent = self._now()
        while not self.is_over.wait(0.05):
            for at in range(sent, now := self._now(), PACKET):
                from_byte = at % len(self._footage)
                client.sendall(self._footage[from_byte : from_byte + PACKET])
            sent = now

    def _now(self) -> int:
        return round((time.monotonic() - self._began) * self._rate) // PACKET * PACKET


PACKET = 188
"""Bytes of a packet of a transport stream."""


def parts(source: SourceConfig, encoder: MeanEncoder) -> DecodeParts:
    return DecodeParts(
        encoder,
        partial(Segmenter, SEGMENTS),
        partial(_open_source, source),
        partial(_open_live, source),
    )


class CameraWorkers(LocalWorkers):
    """Workers that read real sources."""

    source = LIVE

    def decoder(self, name: str) -> Mortal:
        load = partial(parts, self.source, self.encoder)
        self.decoders.append(Mortal(lambda: DecodeEncode(load, self.source, in_flight=2)))
        return self.decoders[-1]
