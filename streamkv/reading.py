"""What an engine makes of a question before its first word, and what the answer rests on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from streamkv.confidence import Signs
from streamkv.layer_cache import LayerCache
from streamkv.memory import VideoMemory, find_segment
from streamkv.retrieval import BlockChoice, Candidates
from streamkv.retrieval.agreement import standing_out
from streamkv.types import Evidence

NUM_EVIDENCE = 5


@dataclass(frozen=True)
class LayerReading:
    """One layer after the question's prompt."""

    input_TD: Tensor  # what the layer was given
    cache: LayerCache
    choice: BlockChoice
    video_weights_S: Tensor  # the last prompt token's attention on each token of the blocks, mean over heads

    @cached_property
    def block_mass_b(self) -> Tensor:
        """(b,) the same on each block."""
        b = self.choice.num_blocks
        return self.video_weights_S.view(b, len(self.video_weights_S) // max(1, b)).sum(dim=1)


@dataclass(frozen=True)
class Reading:
    """A question read together with the video: ready to be answered, once."""

    layers: tuple[LayerReading, ...]
    logits: Tensor  # (vocabulary,) for the answer's first token
    candidates: tuple[Candidates, ...]  # of the layers that say how sure the search is
    num_segments: int  # that were searched

    @property
    def signs(self) -> Signs:
        """What is known of the answer's chances."""
        mass = [layer.block_mass_b for layer in self.layers]
        return Signs(
            stands_out=standing_out(self.candidates),
            first_token=float(self.logits.float().softmax(dim=-1).max()),
            num_segments=self.num_segments,
            scores=[float(c.scores.max()) if c.num_blocks else 0.0 for c in self.candidates],
            attention=[float(mass_b.sum()) for mass_b in mass],
            heaviest=[float(mass_b.max()) if len(mass_b) else 0.0 for mass_b in mass],
            hidden=self.layers[-1].input_TD[-1].tolist(),
        )

    @property
    def num_prompt_tokens(self) -> int:
        """Of what follows the video."""
        return self.layers[0].input_TD.shape[0]


def find_evidence(reading: Reading, memory: VideoMemory, count: int = NUM_EVIDENCE) -> tuple[Evidence, ...]:
    """The segments with the largest shares of the last prompt token's attention on video, heaviest first.

    A layer's shares sum to 1; weights are their mean over layers.
    """
    weights: dict[int, float] = {}
    num_layers: dict[int, int] = {}
    for layer in reading.layers:
        mass = layer.block_mass_b.double().cpu().numpy()
        total = mass.sum()
        for segment_no in np.unique(layer.choice.segment_nos).tolist():
            share = mass[layer.choice.segment_nos == segment_no].sum() / total if total > 0 else 0.0
            weights[segment_no] = weights.get(segment_no, 0.0) + float(share) / len(reading.layers)
            num_layers[segment_no] = num_layers.get(segment_no, 0) + 1
    heaviest = sorted(weights, key=lambda no: (-weights[no], no))[:count]
    found = ((no, find_segment(memory, no)) for no in heaviest)
    return tuple(Evidence(no, s.start_s, s.end_s, weights[no], num_layers[no]) for no, s in found)
