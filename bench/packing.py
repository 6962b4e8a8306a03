"""What prefill would gain if segments of several streams went through the decoder's weights together.

    python -m bench.packing --json                      the demo model on a CPU
    python -m bench.packing --config gpu model.path=... another model, where it is

Each stream has a window of its own, so attention cannot be shared; what can are the products with the weights. Segments
of a world are prefilled one by one, and the share of that time that such products take is `weights_share`. The same
products for K segments' tokens at once are compared with K times one's: `saved_K` is the share of them that packing
saves, and `gain_K` is the most that prefill would get faster, attention and the rest being as they are.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from bench import worlds
from bench.machine import Figure, machine, report
from pipeline.settings import load_settings
from streamkv.config import PipelineConfig
from streamkv.engine import Engine
from streamkv.models import VideoLLM, load_model

TOGETHER = (2, 4, 8)
REPEATS = 50


class Watched:
    """A model that counts the seconds of its products with weights."""

    def __init__(self, model: VideoLLM) -> None:
        self._model = model
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def qkv(self, *given: Any) -> Any:
        return self._timed(self._model.qkv, *given)

    def finish_layer(self, *given: Any) -> Any:
        return self._timed(self._model.finish_layer, *given)

    def _timed(self, call: Callable[..., Any], *given: Any) -> Any:
        begun = _now(self._model)
        made = call(*given)
        self.seconds += _now(self._model) - begun
        return made


def _now(model: VideoLLM) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def seconds_of(model: VideoLLM, num_tokens: int) -> float:
    """Of one layer's products; the least of many."""
    hidden_TD = torch.randn(num_tokens, model.geometry.hidden_dim, device=model.device).to(model.dtype)
    taken = []
    for _ in range(REPEATS):
        begun = _now(model)
        attended, _, _ = model.qkv(0, hidden_TD)
        model.finish_layer(0, hidden_TD, attended)
        taken.append(_now(model) - begun)
    return min(taken)


@torch.inference_mode()
def measure(config: PipelineConfig, minutes: float, seeds: Sequence[int]) -> list[Figure]:
    """A run is a world."""
    torch.set_num_threads(max(1, config.model.threads))
    model = load_model(config.model)
    watched = Watched(model)
    engine = Engine(cast(VideoLLM, watched), config.method)
    runs: dict[str, list[float]] = {}
    for seed in seeds:
        _, seen = worlds.show(model, seed, minutes, config.source.sample_fps)
        watched.seconds, begun = 0.0, _now(model)
        segments = list(worlds.prefilled(engine, seen))
        share = watched.seconds / (_now(model) - begun)
        blocks = statistics.mean(kv.num_frames + config.method.compress.summary for kv in segments)
        tokens = round(blocks * model.geometry.frame_tokens)
        runs.setdefault("segment_tokens", []).append(tokens)
        runs.setdefault("weights_share", []).append(share)
        alone = seconds_of(model, tokens)
        for count in TOGETHER:
            saved = 1 - seconds_of(model, count * tokens) / (count * alone)
            runs.setdefault(f"saved_{count}", []).append(saved)
            runs.setdefault(f"gain_{count}", []).append(1 / (1 - share * saved))
    units = {"segment_tokens": "tokens"}
    return [
        Figure(name, units.get(name, "ratio" if name.startswith("gain") else "share"), tuple(values))
        for name, values in runs.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = worlds.parser("bench.packing", __doc__ or "", minutes=4, worlds=3)
    parser.add_argument("--config", default="demo")
    given = parser.parse_args(arguments)
    facts = machine()
    config = load_settings(given.config, given.overrides)
    report(measure(config, given.minutes, worlds.seeds_of(given)), facts, as_json=given.json)


if __name__ == "__main__":
    main()
