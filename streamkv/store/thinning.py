"""Which blocks of an old segment stay when it is to have fewer: those that are least like their neighbours.

What made prefill keep a block, the guidance prompt's scores, is gone with the frames that it was compared to. What is
left says how much each block adds to the others: two frames whose mean keys point the same way answer the same
questions. So of the pair of neighbours that are most alike one goes, again and again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from streamkv.budget import round_within
from streamkv.store.segment_file import SegmentFile

if TYPE_CHECKING:
    from torch import Tensor


def num_left(num_blocks: int, num_frames: int, num_layers: int, keep_ratio: float) -> int:
    """Blocks of all layers that stay: `keep_ratio` of the frames, summaries counted, and one a layer."""
    return min(num_blocks, max(num_layers, math.ceil(keep_ratio * num_frames * num_layers)))


def rows_left(file: SegmentFile, total: int) -> list[list[int]]:
    """Those of each layer's blocks that stay, ascending; `total` in all, at least one for each layer that has any.

    Summaries stay, and each layer has the share of the blocks that it has now, as prefill's budgets gave it.
    """
    num_layers, summary = len(file.header.layers), file.header.num_frames
    counts = [layer.num_blocks for layer in file.header.layers]
    least = [min(1, count) for count in counts]
    share = total / sum(counts)
    left = round_within([count * share for count in counts], total, list(zip(least, counts, strict=True)))
    rows = []
    for layer in range(num_layers):
        has_summary = summary in file.stored(layer).frame_ids
        frames = counts[layer] - has_summary
        kept = distinct(file.mean_keys(layer)[:frames], left[layer] - has_summary)
        rows.append([*kept, *range(frames, counts[layer])])
    return rows


def distinct(mean_keys_bc: Tensor, count: int) -> list[int]:
    """(b, c) to `count` rows, ascending: what is left when the later of the two neighbours with the largest cosine
    goes, until no more are left. Of equals the earliest goes."""
    vectors = mean_keys_bc.double().numpy()
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    rows = list(range(len(vectors)))
    while len(rows) > max(0, count):
        if len(rows) == 1:
            return []
        cosines = (vectors[rows[:-1]] * vectors[rows[1:]]).sum(axis=1)
        del rows[int(cosines.argmax()) + 1]
    return rows
