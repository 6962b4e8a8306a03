"""What the engine asks of a video language model, and what all adapters share. Knows no segment and no store.

Shapes follow the legend of `streamkv/types.py`; an adapter works on one sequence, without a batch axis.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamkv.conversation import Turn
from streamkv.errors import ModelError
from streamkv.types import Geometry


@dataclass(frozen=True)
class QuestionPrompt:
    """What follows the video: closing tokens of the video, earlier turns, the question, the answer's opening."""

    embeds_TD: Tensor
    question: slice  # rows that are the question's own words: their mean query searches the past


class VideoLLM(ABC):
    """One adapter a family: frames to features, decoder layers before rotary embedding, prompts."""

    geometry: Geometry
    device: torch.device
    dtype: torch.dtype
    eos_token_ids: frozenset[int]

    @property
    def num_layers(self) -> int:
        return self.geometry.num_layers

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Names weights, configuration and prompts: models with one fingerprint can share a store."""

    @abstractmethod
    def encode_frames(self, frames: Sequence[np.ndarray]) -> Tensor:
        """(B, N, D) features of B pictures, each (height, width, 3) uint8; sizes may differ."""

    @abstractmethod
    def system_embeds(self) -> Tensor:
        """(S, D): what stands before the video."""

    @abstractmethod
    def question_prompt(self, question: str, earlier: Sequence[Turn] = ()) -> QuestionPrompt:
        """What stands after the video. Markup of the chat format within the words is text, not markup.

        A user's turn without an answer, right before the question, stands in the question's own turn.
        """

    @abstractmethod
    def guidance_embeds(self, text: str) -> Tensor:
        """(T, D): a guidance prompt, as plain text."""

    @abstractmethod
    def embed_tokens(self, token_ids: Sequence[int]) -> Tensor:
        """(T, D)."""

    @abstractmethod
    def qkv(self, layer: int, hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, H, d), keys (T, G, d), values (T, G, d), before rotary embedding."""

    @abstractmethod
    def finish_layer(self, layer: int, hidden_TD: Tensor, attended_THd: Tensor) -> Tensor:
        """(T, D): output projection, residuals and feed-forward; hidden is what `qkv` was given."""

    @abstractmethod
    def rope(self, x_THd: Tensor, positions_T: Tensor) -> Tensor:
        """Rotary embedding of queries or keys at the given positions."""

    @abstractmethod
    def logits(self, hidden_TD: Tensor) -> Tensor:
        """(T, vocabulary), after the final norm."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, without special ones."""


_INTERPOLATION = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling -> torch


@dataclass(frozen=True)
class FrameNormaliser:
    """Pictures to pixel values, as the checkpoint's `preprocessor_config.json` says, in torch on any device.

    Equal to Pillow's but for single steps of 255 where a sum lies on the edge of rounding (test_models.py);
    Pillow 13 takes the columns first in very tall pictures, which makes up to three.
    """

    height: int
    width: int
    interpolation: str
    factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str) -> FrameNormaliser:
        size, resample = values.get("size") or {}, int(values.get("resample", 3))
        if "height" not in size or "width" not in size:
            raise ModelError(f"{source}: size: got {size}, need height and width")
        if resample not in _INTERPOLATION:
            raise ModelError(f"{source}: resample: got {resample}, allowed {sorted(_INTERPOLATION)}")
        normalise = values.get("do_normalize", True)
        return cls(
            height=int(size["height"]),
            width=int(size["width"]),
            interpolation=_INTERPOLATION[resample],
            factor=float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0,
            mean=_channels(values.get("image_mean", 0.5) if normalise else 0.0),
            std=_channels(values.get("image_std", 0.5) if normalise else 1.0),
        )

    def __call__(self, frames: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype) -> Tensor:
        """(B, 3, height, width) pixel values; pictures of one size are resized together."""
        out = torch.empty((len(frames), 3, self.height, self.width), device=device, dtype=dtype)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, frame in enumerate(frames):
            by_shape.setdefault(frame.shape, []).append(i)
        for rows in by_shape.values():
            stacked = torch.from_numpy(np.stack([frames[i] for i in rows])).to(device)
            out[rows] = self._normalise(stacked).to(dtype)
        return out

    def _normalise(self, rgb_Bhw3: Tensor) -> Tensor:
        pixels = rgb_Bhw3.permute(0, 3, 1, 2).float()
        antialias = self.interpolation != "nearest-exact"
        # Pillow resizes bytes to bytes, first each row, then each column, and rounds after both.
        for size in ((pixels.shape[-2], self.width), (self.height, self.width)):
            if pixels.shape[-2:] != size:
                pixels = torch.nn.functional.interpolate(
                    pixels, size=size, mode=self.interpolation, antialias=antialias
                )
                pixels = pixels.round().clamp(0, 255)
        mean, std = (pixels.new_tensor(c).view(3, 1, 1) for c in (self.mean, self.std))
        return (pixels * self.factor - mean) / std


def _channels(value: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = [value] * 3 if isinstance(value, int | float) else value
    return float(red), float(green), float(blue)


def read_frame_normaliser(folder: Path) -> FrameNormaliser:
    """From `video_preprocessor_config.json` where there is one, else `preprocessor_config.json`."""
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        path = folder / name
        if path.is_file():
            return FrameNormaliser.from_dict(json.loads(path.read_text()), source=str(path))
    raise ModelError(f"{folder}: no preprocessor_config.json; it says how frames become pixel values")


def hash_checkpoint(folder: Path, chat_template: str) -> str:
    """SHA-256 over weights, configuration, tokenizer and chat template: all that shapes keys and values."""
    digest = hashlib.sha256(chat_template.encode())
    named = {"config.json", "tokenizer.json", "preprocessor_config.json", "video_preprocessor_config.json"}
    files = [p for p in folder.iterdir() if p.name in named or p.suffix == ".safetensors"]
    for path in sorted(files, key=lambda p: p.name):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
