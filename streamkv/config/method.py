"""The model, and the method by which it remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from streamkv.config.checks import check, need

DEFAULT_GUIDANCE = (
    "Keep what questions are about: objects and people with their attributes and places, actions and changes of "
    "state with their times, text, numbers and clocks on the screen, causes and outcomes, counts and layout, and "
    "whatever tells this moment from a similar one."
)
"""The guidance prompt of ALGORITHM.md, section 5, in our own words."""


@dataclass(frozen=True)
class ModelConfig:
    path: str = "townsquare"
    """A Hugging Face folder or hub id, or `townsquare` for the bundled demo model."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1` ..."""
    dtype: str = "auto"
    """`auto` is float32 on CPU (half precision is a hundred times slower there) and bfloat16 on GPU."""
    threads: int = 1
    """Torch threads of each process that runs the model; 0 leaves torch's own choice."""

    def __post_init__(self) -> None:
        dtypes = ("auto", "float32", "bfloat16", "float16")
        check(
            [
                need(self.dtype in dtypes, "model.dtype", self.dtype, ", ".join(dtypes)),
                need(self.threads >= 0, "model.threads", self.threads, ">= 0"),
            ]
        )


@dataclass(frozen=True)
class SegmentConfig:
    policy: str = "semantic"
    """`semantic` closes on change; `uniform` every `max_frames`."""
    min_frames: int = 4
    max_frames: int = 64
    """A full open segment merges its most similar neighbours (semantic) or closes (uniform)."""
    theta: float = 0.99
    """Similarity at or below which a segment of at least `min_frames` closes."""
    similarity: str = "cosine"
    """Of neighbouring frames: `cosine` (the paper) or `dot` of their mean tokens, or `quartile`, the lower quartile
    of the cosines token by token (ours)."""
    max_seconds: float = 60.0
    """A segment closes after this much stream time, so that a still camera's past can be asked; 0: never."""
    still_seconds: float = 900.0
    """Unless nothing has changed since it began: then it goes on for up to this much stream time, as one frame. What is
    not yet closed is lost to a live stream whose decoder dies; 0 closes a still segment as any other."""
    still_above: float = 0.99
    """Nothing has changed in a frame whose every token's cosine with the segment's first frame is above this."""

    def __post_init__(self) -> None:
        check(
            [
                need(
                    1 <= self.min_frames <= self.max_frames,
                    "segment.min_frames",
                    self.min_frames,
                    f"1 to segment.max_frames ({self.max_frames})",
                ),
                need(self.max_seconds >= 0, "segment.max_seconds", self.max_seconds, ">= 0"),
                need(self.still_seconds >= 0, "segment.still_seconds", self.still_seconds, ">= 0"),
            ]
        )


@dataclass(frozen=True)
class BudgetConfig:
    policy: str = "adaptive"
    """`adaptive` finds one softmax mass for all layers (ALGORITHM.md, 6); `uniform` gives each the same."""
    zscore: bool = True
    """Normalise a layer's scores before the softmax (the released code; not in the paper)."""
    tau: float | None = 1.0
    """Clamp each layer to (1 - tau, 1 + tau) of the uniform share; null: no clamp (the paper)."""

    def __post_init__(self) -> None:
        check([need(self.tau is None or 0 <= self.tau <= 1, "budget.tau", self.tau, "0 to 1, or null")])


@dataclass(frozen=True)
class CompressConfig:
    policy: str = "guided"
    """`guided` scores frames by the guidance prompt; `none` keeps everything."""
    keep_ratio: float = 0.4
    """Share of a segment's frames that is KEPT in each layer, on average. Not the paper's share discarded."""
    summary: bool = True
    """Append the segment's mean frame, prefill it and keep its block in every layer."""
    guidance: str = DEFAULT_GUIDANCE
    similarity: Literal["dot", "cosine"] = "dot"
    """Of the guidance prompt and a frame: dot product (the released code) or cosine (the paper) of mean query and mean
    key, before rotary embedding."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        check([need(0 < self.keep_ratio <= 1, "compress.keep_ratio", self.keep_ratio, "above 0, up to 1")])


@dataclass(frozen=True)
class RetrieveConfig:
    policy: str = "topk"
    """`topk` by score; `agree` the same among the segments that all layers choose together; `cover` as `agree`, and for
    a question that names several moments a segment of each; `recent` the last `recent_blocks`; `window` the last
    `n_local` tokens; `everything`."""
    blocks_per_layer: int = 64
    """K: blocks retrieved in a layer, on average over layers."""
    recent_blocks: int = 8
    """Latest blocks that are always taken; they count towards K."""
    candidate_segments: int = 64
    """Segments taken from each layer's index, whose blocks are then scored; 0 scores every block (exact)."""
    agree_segments: int = 3
    """Policies `agree` and `cover`: at most this many segments, which all layers choose together, and then read nothing
    else."""
    agree_share: float = 0.0
    """The same policies: leave out segments with less than this share of the best one's score."""
    agree_layers: list[int] = field(default_factory=list)
    """The same policies: the layers that choose, from 0, ascending. The last of them and those after it read what was
    chosen, those before it what each finds by itself, and the prompt runs once; counts are then `uniform`. Empty: all
    layers choose, and the prompt runs again."""
    cover_share: float = 0.95
    """Policy `cover`: a question names several moments if its mean query's best segment stands out less than this share
    of what a single token's best segment does."""
    cover_above: float = 4 / 3
    """Policy `cover`: how far a segment must stand out for a token to count, in standard deviations."""
    cover_gain: float = 0.25
    """Policy `cover`: leave out segments that add less than this share of what the first one added."""
    similarity: Literal["dot", "cosine"] = "dot"
    """Of the question and a block; as `compress.similarity`. The index finds candidates by dot product."""
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(tau=0.5))
    looks: Literal["reading", "first"] = "reading"
    """When layers' queries are made: while the layers below are `reading` what they found, or `first`, before any has
    read. Policies and budgets that need one run of the prompt alone make them while reading."""

    def __post_init__(self) -> None:
        check(
            [
                need(self.blocks_per_layer >= 1, "retrieve.blocks_per_layer", self.blocks_per_layer, ">= 1"),
                need(self.recent_blocks >= 0, "retrieve.recent_blocks", self.recent_blocks, ">= 0"),
                need(
                    self.candidate_segments >= 0,
                    "retrieve.candidate_segments",
                    self.candidate_segments,
                    ">= 0",
                ),
                need(self.agree_segments >= 1, "retrieve.agree_segments", self.agree_segments, ">= 1"),
                need(
                    all(layer >= 0 for layer in self.agree_layers)
                    and all(a < b for a, b in pairwise(self.agree_layers)),
                    "retrieve.agree_layers",
                    self.agree_layers,
                    "layers from 0 on, ascending",
                ),
                *(
                    need(0 <= value <= 1, f"retrieve.{name}", value, "0 to 1")
                    for name, value in (
                        ("agree_share", self.agree_share),
                        ("cover_share", self.cover_share),
                        ("cover_gain", self.cover_gain),
                    )
                ),
                need(self.cover_above >= 0, "retrieve.cover_above", self.cover_above, ">= 0"),
            ]
        )


@dataclass(frozen=True)
class ConfidenceConfig:
    """What the signs of a right answer are worth: a logistic regression (`python -m bench.confidence --fit`)."""

    intercept: float = 0.0
    stands_out: float = 0.0
    """Of how far the best segment's score stands out, in standard deviations, mean over layers."""
    first_token: float = 0.0
    """Of the probability of the answer's first token."""
    log_segments: float = 0.0
    """Of the logarithm of how many segments were searched."""
    scores: list[float] = field(default_factory=list)
    """Of the best block's score in each layer that chooses segments; empty: of none, as below."""
    attention: list[float] = field(default_factory=list)
    """Of the last prompt token's attention to all blocks in each layer, 0 to 1."""
    heaviest: list[float] = field(default_factory=list)
    """The same to the block that gets most."""
    hidden: list[float] = field(default_factory=list)
    """Of each number that the last layer is given for the last prompt token: a linear probe."""


@dataclass(frozen=True)
class MethodConfig:
    """The whole method; a preset is one of these."""

    n_local: int = 15_000
    """Tokens of the stream that a token sees in prefill, besides the system prompt; 0: all (for `full`)."""
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    retrieve: RetrieveConfig = field(default_factory=RetrieveConfig)
    confidence: ConfidenceConfig | None = None
    """How likely an answer is right; null: it is not said. Fitted for one model and method."""
    watch_confidence: ConfidenceConfig | None = None
    """The same for a watch, which is asked of one segment (`python -m bench.watches --fit`)."""

    def __post_init__(self) -> None:
        check([need(self.n_local >= 0, "method.n_local", self.n_local, ">= 0")])
