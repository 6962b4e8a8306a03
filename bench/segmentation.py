"""How well each similarity of neighbouring frames tells a cut from a thing that moves.

    python -m bench.segmentation --json

Worlds say where their cuts are. Of the pairs of neighbouring frames, for each similarity:

- `*_errors`: the share that the best threshold gets wrong, chosen on these very pairs: the similarity's own limit.
- `configured_missed` and `configured_split`: with the similarity and threshold of the configuration, the share of cuts
  that are not seen, so that two scenes share a segment, and the share of other pairs that are taken for cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from bench import worlds
from bench.machine import Figure, machine, report
from pipeline.settings import load_settings
from streamkv.config import PipelineConfig
from streamkv.evaluation.runner import EncodedVideo
from streamkv.models import load_model
from streamkv.segmentation import SIMILARITIES
from streamkv.townsquare import World


def cuts_of(world: World, seen: EncodedVideo) -> np.ndarray:
    """For each pair of neighbouring frames, whether a cut lies between them."""
    scenes = [world.scene_at(start_s) for start_s, _ in seen.spans_s]
    return np.array([a is not b for a, b in pairwise(scenes)])


def least_errors(values: np.ndarray, is_cut: np.ndarray) -> float:
    """The share of pairs on the wrong side of the best threshold; a cut is at or below it."""
    cut = is_cut[np.argsort(values, kind="stable")]
    below = np.concatenate([[0], np.cumsum(~cut)])  # taken for cuts, and none
    above = cut.sum() - np.concatenate([[0], np.cumsum(cut)])  # cuts that are not seen
    return float((below + above).min() / len(values))


def measure(config: PipelineConfig, minutes: float, seeds: Sequence[int]) -> list[Figure]:
    """A run is a world."""
    torch.set_num_threads(max(1, config.model.threads))
    model = load_model(config.model)
    runs: dict[str, list[float]] = {}
    for seed in seeds:
        world, seen = worlds.show(model, seed, minutes, config.source.sample_fps)
        is_cut = cuts_of(world, seen)
        pairs = list(pairwise(seen.features_FND))
        for name, similarity in SIMILARITIES.items():
            values = np.array([similarity(a, b) for a, b in pairs])
            runs.setdefault(f"{name}_errors", []).append(least_errors(values, is_cut))
            if name == config.method.segment.similarity:
                closes = values <= config.method.segment.theta
                runs.setdefault("configured_missed", []).append(float((~closes)[is_cut].mean()))
                runs.setdefault("configured_split", []).append(float(closes[~is_cut].mean()))
    return [Figure(name, "share", tuple(values)) for name, values in runs.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    given = worlds.parser("bench.segmentation", __doc__, minutes=10, worlds=4).parse_args(arguments)
    facts = machine()
    config = load_settings("demo", given.overrides)
    figures = measure(config, given.minutes, worlds.seeds_of(given))
    report(figures, facts, as_json=given.json)


if __name__ == "__main__":
    main()
