"""Streams on one GPU, by arithmetic from a model's shape: nothing here is measured.

    python -m bench.capacity                        the table of docs/capacity.md
    python -m bench.capacity --utilisation 0.3      with the share of the GPU's peak that you measured
    python -m bench.capacity method.n_local=4000 method.compress.keep_ratio=0.1

A multiply and an add are two operations. Of a decoder token: 2 x the layers' weights, and for each of the `n_local`
tokens that it sees 4 x heads x head_dim (a score and a weighted value). Of a tower token: the same with all the
picture's tokens. A segment adds its summary frame and the guidance prompt.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bench.machine import Figure, machine, report
from pipeline.settings import load_settings
from streamkv.config import MethodConfig
from streamkv.store.codecs import make_codec
from streamkv.types import Geometry

SEGMENT_FRAMES = 16
GUIDANCE_TOKENS = 64
CODECS = ("fp16", "int8", "int4")
VALUE_BYTES = 2  # bfloat16
PROCESSES = 3  # tower, prefill, answers: each holds the weights


@dataclass(frozen=True)
class Gpu:
    """As its maker states."""

    flops: float = 989e12  # dense bfloat16 of an H100 SXM
    memory_bytes: float = 80e9


@dataclass(frozen=True)
class Tower:
    """SigLIP so400m, whose last layer LLaVA-OneVision does not run."""

    layers: int = 26
    width: int = 1152
    mlp: int = 4304
    tokens: int = 729

    @property
    def weights(self) -> int:
        return self.layers * (4 * self.width**2 + 2 * self.width * self.mlp)

    @property
    def flops(self) -> float:
        """Of one picture."""
        attention = 4 * self.width * self.tokens * self.layers
        return self.tokens * (2 * self.weights + attention)


@dataclass(frozen=True)
class Decoder:
    """Layers of a Qwen2."""

    geometry: Geometry
    mlp: int
    vocabulary: int

    @property
    def layer_weights(self) -> int:
        g = self.geometry
        attention = 2 * g.hidden_dim * g.num_heads * g.head_dim + 2 * g.hidden_dim * g.summary_dim
        return g.num_layers * (attention + 3 * g.hidden_dim * self.mlp)

    def flops(self, visible_tokens: int) -> float:
        """Of one token."""
        g = self.geometry
        return 2 * self.layer_weights + 4 * g.num_layers * g.num_heads * g.head_dim * visible_tokens

    @property
    def token_bytes(self) -> int:
        """Keys and values of a token in all layers."""
        g = self.geometry
        return g.num_layers * g.block_bytes(VALUE_BYTES) // g.frame_tokens


MODELS = {
    "0.5B": Decoder(
        Geometry(num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64, hidden_dim=896, frame_tokens=196),
        mlp=4864,
        vocabulary=151_936,
    ),
    "7B": Decoder(
        Geometry(
            num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, hidden_dim=3584, frame_tokens=196
        ),
        mlp=18_944,
        vocabulary=152_128,
    ),
}


@dataclass(frozen=True)
class Plan:
    """One model under one method on one GPU."""

    decoder: Decoder
    method: MethodConfig
    utilisation: float
    tower: Tower = Tower()
    gpu: Gpu = Gpu()

    @property
    def frame_flops(self) -> float:
        frame_tokens = self.decoder.geometry.frame_tokens
        extra = (frame_tokens * self.method.compress.summary + GUIDANCE_TOKENS) / SEGMENT_FRAMES
        return self.tower.flops + (frame_tokens + extra) * self.decoder.flops(self.method.n_local)

    @property
    def frames_per_s(self) -> float:
        return self.utilisation * self.gpu.flops / self.frame_flops

    @property
    def weight_bytes(self) -> float:
        embeddings = self.decoder.vocabulary * self.decoder.geometry.hidden_dim
        return VALUE_BYTES * (self.tower.weights + self.decoder.layer_weights + embeddings)

    @property
    def window_bytes(self) -> int:
        """Of one stream's sliding window, which stays on the GPU."""
        return self.method.n_local * self.decoder.token_bytes

    @property
    def windows(self) -> float:
        """How many fit; a tenth of the memory is left for what is being computed."""
        return max(0.0, 0.9 * self.gpu.memory_bytes - PROCESSES * self.weight_bytes) / self.window_bytes

    def streams(self, fps: float) -> float:
        return min(self.frames_per_s / fps, self.windows)

    def stored_bytes(self, codec: str) -> float:
        """Of one sampled frame: what is kept of it, and its share of the summary; an index's vectors are small."""
        g = self.decoder.geometry
        kept = self.method.compress.keep_ratio + self.method.compress.summary / SEGMENT_FRAMES
        stored = make_codec(codec).stored_bytes
        block = sum(stored(g, torch.bfloat16.itemsize, keys=keys) for keys in (True, False))
        return kept * g.num_layers * block


def figures(method: MethodConfig, utilisation: float) -> list[Figure]:
    return [
        Figure(f"{name} {title}", unit, (value,))
        for name, decoder in MODELS.items()
        for title, unit, value in rows(Plan(decoder, method, utilisation))
    ]


def rows(plan: Plan) -> Iterator[tuple[str, str, float]]:
    decoder = plan.decoder
    yield "tower_tflop_per_frame", "10^12", plan.tower.flops / 1e12
    yield "tflop_per_frame", "10^12", plan.frame_flops / 1e12
    yield "frames_per_s_at_peak", "frames/s", plan.frames_per_s / plan.utilisation
    yield "frames_per_s", "frames/s", plan.frames_per_s
    yield "weights_gb", "GB", plan.weight_bytes / 1e9
    yield "kv_mb_per_frame", "MB", decoder.token_bytes * decoder.geometry.frame_tokens / 1e6
    yield "window_mb_per_stream", "MB", plan.window_bytes / 1e6
    yield "windows_that_fit", "streams", plan.windows
    for fps in (0.5, 1.0):
        yield f"streams_at_{fps:g}_fps", "streams", plan.streams(fps)
    for codec in CODECS:
        hour = 3600 * plan.stored_bytes(codec)
        yield f"gb_per_hour_at_1_fps_{codec}", "GB", hour / 1e9
        yield f"disk_mb_per_s_{codec}", "MB/s", plan.streams(1.0) * hour / 3600 / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--utilisation", type=float, default=0.5, help="share of the GPU's peak that is reached"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings a.b=c")
    given = parser.parse_args(arguments)
    config = load_settings("gpu", given.overrides)
    report(figures(config.method, given.utilisation), machine(), as_json=given.json)


if __name__ == "__main__":
    main()
