"""A stream's latest segments from wherever it is decoded, for whoever answers."""

from __future__ import annotations

import torch

from actors.failures import WorkerLostError
from actors.remote import wait_for
from actors.spawn import find_supervisor
from streamkv.types import Segment

FIND_S = 2.0
"""To learn where the stream is decoded: somebody waits for an answer, which is good without it too."""


def latest_segments(stream_id: str, device: torch.device) -> list[Segment]:
    """What it has shown and is not yet durable, in time order.

    Empty when nobody decodes it, and when whoever does is away: the answer is then from what is stored, and says as
    of when.
    """
    try:
        decoder = wait_for(find_supervisor().decoder_of.remote(stream_id), FIND_S)
        messages = decoder.latest(stream_id) if decoder is not None else []
    except (ValueError, WorkerLostError, TimeoutError):  # ValueError: there is no supervisor
        return []
    return [message.to_segment(device) for message in messages]
