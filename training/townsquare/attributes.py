"""What each of a frame's nine cells shows, as numbers: labels for the tower, and a stand-in for its features.

A cell is described by up to five attributes out of one numbered list: its place in the picture, and what is in it.
"""

from __future__ import annotations

import numpy as np

from streamkv.townsquare.script import COLOURS, KINDS, SIGN_LETTERS, WEATHERS, ZONES, Scene

SLOTS: dict[str, int] = {  # name: number of values
    "cell": 9,
    "letter": len(SIGN_LETTERS),
    "sign_tens": 10,
    "sign_ones": 10,
    "weather": len(WEATHERS),
    "hour_tens": 3,
    "hour_ones": 10,
    "minute_tens": 6,
    "minute_ones": 10,
    "kind": len(KINDS) + 1,  # the last: nothing there
    "colour": len(COLOURS) + 1,
}
OFFSETS: dict[str, int] = {}
_next = 1  # 0 pads
for _name, _size in SLOTS.items():
    OFFSETS[_name] = _next
    _next += _size
NUM_ATTRIBUTES = _next
MAX_ATTRIBUTES = 5
CELL_SLOTS = (
    ("letter", "sign_tens", "sign_ones"),
    ("weather",),
    ("hour_tens", "hour_ones", "minute_tens", "minute_ones"),
    *((("kind", "colour"),) * 6),
)
"""The slots that a cell answers to, by cell."""


def cell_values(scene: Scene, time_s: float) -> list[tuple[int, ...]]:
    """For each cell, the value of each of its slots at this time."""
    tens, ones = divmod(scene.sign.number, 10)
    hour, minute = divmod(scene.clock_minute, 60)
    things = {t.zone: t for t in scene.visible(time_s)}
    cells: list[tuple[int, ...]] = [
        (SIGN_LETTERS.index(scene.sign.letter), tens, ones),
        (WEATHERS.index(scene.weather),),
        (hour // 10, hour % 10, minute // 10, minute % 10),
    ]
    for zone in ZONES:
        thing = things.get(zone)
        cells.append(
            (KINDS.index(thing.kind), COLOURS.index(thing.colour)) if thing else (len(KINDS), len(COLOURS))
        )
    return cells


def attribute_ids(scene: Scene, time_s: float) -> np.ndarray:
    """(9, MAX_ATTRIBUTES) int64, padded with 0."""
    ids = np.zeros((9, MAX_ATTRIBUTES), np.int64)
    for cell, (slots, values) in enumerate(zip(CELL_SLOTS, cell_values(scene, time_s), strict=True)):
        ids[cell, 0] = OFFSETS["cell"] + cell
        for k, (slot, value) in enumerate(zip(slots, values, strict=True)):
            ids[cell, 1 + k] = OFFSETS[slot] + value
    return ids
