"""Pictures to frames at the sampling times, and to gaps where there is no picture.

pictures   |a    |b  |c                  (lost)      |d     |e
grid       0     1     2     3     4     5     6     7     8
frames     a     b     c     c     c  ^ gap (5, 7) ^ d     e      c is held while it says so
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from streamkv.decoding import MAX_HOLD_S, Picture, to_rgb
from streamkv.types import Frame

OnGap = Callable[[float, float, str], None]
"""Hears of footage that is missing: from, until (stream time, on the sampling grid), and why."""
NEAR_S = Fraction(1, 1000)
"""A picture this little after a sampling time still counts as on show: containers round their timestamps."""


class Grid:
    """Walks the sampling times; `due` is the next one."""

    def __init__(
        self,
        sample_fps: float,
        start_s: float | Fraction,
        on_gap: OnGap,
        max_hold_s: Fraction = MAX_HOLD_S,
    ) -> None:
        self.max_hold_s = max_hold_s
        self.step = 1 / Fraction(sample_fps).limit_denominator(1_000_000)
        self.index = max(0, math.ceil((Fraction(start_s) - NEAR_S) / self.step))
        self.on_gap = on_gap

    @property
    def due(self) -> Fraction:
        return self.index * self.step

    def pass_time(self, shown: Picture | None, coming: Picture) -> Iterator[Frame]:
        """Yields what `shown` covers until `coming` is on show; reports what nothing covers."""
        starts = coming.time - NEAR_S
        if shown is None:
            self.skip_to(starts, why_missing(coming, coming.time - self.due))
            return
        silence = coming.time - shown.until
        if coming.lost or silence > self.max_hold_s:
            yield from self.show(shown, min(shown.until, starts))
            self.skip_to(starts, why_missing(coming, silence))
        else:
            yield from self.show(shown, starts)

    def show(self, picture: Picture, until: Fraction) -> Iterator[Frame]:
        """The picture at each sampling time before `until`."""
        rgb: np.ndarray | None = None
        while self.due < until:
            if rgb is None:
                rgb = to_rgb(picture.image)
            self.index += 1
            yield Frame(rgb=rgb, start_s=float(self.due - self.step), end_s=float(self.due))

    def skip_to(self, time: Fraction, reason: str) -> None:
        """Passes the sampling times before `time`, as a gap if there are any."""
        start = self.due
        self.index = max(self.index, math.ceil(time / self.step))
        if self.due > start:
            self.on_gap(float(start), float(self.due), reason)


def why_missing(coming: Picture, silence: Fraction) -> str:
    if coming.lost:
        return f"{coming.lost} picture{'s' if coming.lost > 1 else ''} did not decode"
    return f"no picture for {float(silence):.1f} s"
