"""Guided compression (ALGORITHM.md, section 5): guidance scores to the frames that each layer keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamkv.budget import allocate, bounds_around, budget_policy, top_in_time_order
from streamkv.config import CompressConfig
from streamkv.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def block_scores(query: Tensor, mean_keys_bGd: Tensor, similarity: str = "dot") -> Tensor:
    """(b,) float32: a grouped query (G * d,) times mean keys (b, G * d), both before rotation; no scale.

    Several queries as columns (G * d, Q) give (b, Q). For `cosine` the keys are brought to length 1;
    `grouped_query` has done its part.
    """
    keys_bGd = mean_keys_bGd.float()
    if similarity == "cosine":
        keys_bGd = keys_bGd / keys_bGd.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return keys_bGd @ query.float()


class Compressor(ABC):
    """Which of a segment's n frames each layer keeps. The summary is extra and always kept."""

    def __init__(self, config: CompressConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def needs_scores(self) -> bool:
        """Whether the guidance prompt has to run."""

    @abstractmethod
    def keep(self, num_layers: int, num_frames: int, scores: Sequence[Tensor]) -> list[list[int]]:
        """Frame indices that each layer keeps, ascending, at least one.

        `scores`: (n,) for each layer; empty unless `needs_scores`.
        """


class KeepAll(Compressor):
    """Keeps every frame, whatever `keep_ratio` says."""

    @property
    def needs_scores(self) -> bool:
        return False

    def keep(self, num_layers: int, num_frames: int, scores: Sequence[Tensor]) -> list[list[int]]:
        return [list(range(num_frames)) for _ in range(num_layers)]


class Guided(Compressor):
    """Keeps the frames with the highest guidance scores: `keep_ratio` of them, on average over layers."""

    def __init__(self, config: CompressConfig) -> None:
        super().__init__(config)
        budget_policy(config.budget.policy)  # an unknown name fails here, not at the first segment
        if not config.guidance.strip():
            raise ConfigError("compress.guidance: got no text; policy `guided` scores frames by it")

    @property
    def needs_scores(self) -> bool:
        return self.config.keep_ratio < 1

    def keep(self, num_layers: int, num_frames: int, scores: Sequence[Tensor]) -> list[list[int]]:
        if not self.needs_scores:
            return [list(range(num_frames)) for _ in range(num_layers)]
        share = num_frames * self.config.keep_ratio
        bounds = bounds_around(share, self.config.budget.tau, at_most=num_frames)
        counts = allocate(scores, round(num_layers * share), bounds, self.config.budget)
        return [top_in_time_order(s, count) for s, count in zip(scores, counts, strict=True)]


COMPRESSORS: dict[str, type[Compressor]] = {"guided": Guided, "none": KeepAll}
"""Compression policies by name. To add one: a `Compressor` and a row here."""


def make_compressor(config: CompressConfig) -> Compressor:
    if config.policy not in COMPRESSORS:
        known = ", ".join(sorted(COMPRESSORS))
        raise ConfigError(f"compress.policy: unknown {config.policy!r}; known: {known}")
    return COMPRESSORS[config.policy](config)
