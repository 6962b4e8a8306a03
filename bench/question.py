"""How long a question waits for its first token, against what else could answer it, in one run.

    python -m bench.question --json

All in one process with the demo model and the demo's settings, on synthetic memories of its geometry: blocks drawn
from a pool of random ones (as if from the page cache), summary vectors spread as bench.index says. What an answer says
is without meaning; what it costs is not. Each figure is the median over questions asked by turns:

- `ttft_100k_over_100`: a stream of 100,000 segments against one of 100.
- `ttft_over_full_10k`: 10,000 frames, against `full` with its keys and values kept rotated in place from question to
  question, so that it pays for attention alone.
- `ttft_over_rekv`: 10,000 frames, against ReKV's flat scan of all frames.
- `ttft_store_over_memory`: 10,000 frames in the files of a store, of which fewer may be open, against the same memory
  without files; the questions were asked of the store before. `first_asked_ms`: when they were not.
- `query_ms` to `first_token_ms`: how far an answer from 10,000 frames has come; `each_token_ms`: of those after the
  first. What HTTP and routing add is in `bench.serving`.
- `ttft_over_transformers_64`: against `transformers` handed 64 sampled frames of a world (tower, prefill, first token).
- `ttft_over_transformers_64_kept`: against the same with the frames' cache kept from question to question.
- `ttft_over_transformers_64_quantised`: with its quantised cache instead, 4 bits by quanto, if the `peers` extra
  is installed (it compiles for minutes when first used). Its offloaded cache needs an accelerator.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers.utils import is_optimum_quanto_available

from bench.index import make_vectors
from bench.machine import Figure, machine, report, table
from bench.store import DEFAULT, FRAMES, STREAM, folder, random_segment
from pipeline.settings import load_settings
from streamkv.config import PipelineConfig
from streamkv.engine import Engine
from streamkv.layer_cache import LayerCache, attend_next
from streamkv.memory import BlockTable, Ranked, SegmentInfo, VideoMemory
from streamkv.models import load_model
from streamkv.store import ModelIdentity, SegmentStore, write_segment
from streamkv.store.index import SummaryIndex
from streamkv.townsquare import make_questions, make_world
from streamkv.types import Geometry, LayerBlocks

POOL = 512
SEGMENT_S = 10.0
BLOCKS_KEPT = 3
"""Blocks of a segment in each layer: what the demo model's segments keep, summary included."""
PHASES = ("query", "search", "fetch", "prefill", "first_token")
IN_FILES = "streamkv, 10,000 frames in files"
MORE_TOKENS = 8
"""After the first one, for what each takes."""


class SyntheticVideo(VideoMemory):
    """A `VideoMemory` of any length: block i of a layer has its own mean key and the pool's keys and values."""

    def __init__(
        self, geometry: Geometry, num_segments: int, blocks: int, *, indexed: bool, seed: int
    ) -> None:
        self._geometry = geometry
        self.num_segments, self.blocks = num_segments, blocks
        rng = np.random.default_rng(seed)
        shape = (POOL, geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim)
        self._pool = [torch.from_numpy(rng.standard_normal((2, *shape), np.float32)) for _ in range(2)]
        count = num_segments * blocks
        self._mean_keys = [
            torch.from_numpy(make_vectors("as_real", count, geometry.summary_dim, rng)[0])
            for _ in range(geometry.num_layers)
        ]
        self._index = SummaryIndex()
        if indexed:
            summaries = torch.stack([keys[blocks - 1 :: blocks] for keys in self._mean_keys], 1)
            self._index = self._index.added(np.arange(num_segments), summaries.numpy()).compacted()

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    @property
    def as_of_s(self) -> float:
        return self.num_segments * SEGMENT_S

    @cached_property
    def segments(self) -> tuple[SegmentInfo, ...]:
        return tuple(
            SegmentInfo(i, i * SEGMENT_S, (i + 1) * SEGMENT_S, self.blocks) for i in range(self.num_segments)
        )

    def search_each(
        self, layer: int, queries: torch.Tensor, k: int, among: np.ndarray | None = None
    ) -> list[Ranked]:
        return self._index.search_each(layer, queries, k, among)

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        nos = np.arange(self.num_segments) if segment_nos is None else np.sort(segment_nos)
        rows = (nos[:, None] * self.blocks + np.arange(self.blocks)).ravel()
        keys = self._mean_keys[layer]
        return BlockTable(
            np.repeat(nos, self.blocks),
            np.tile(np.arange(self.blocks), len(nos)),
            keys if segment_nos is None else keys[torch.from_numpy(rows)],
        )

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        rows = torch.from_numpy((segment_nos * self.blocks + slots) % POOL)
        keys, values = self._pool[layer % len(self._pool)]
        spans = tuple((no * SEGMENT_S, (no + 1) * SEGMENT_S) for no in segment_nos.tolist())
        return LayerBlocks(keys[rows], values[rows], tuple(slots.tolist()), spans)


class FullWithCache:
    """`full` whose rotated keys and values stay where they are: a question appends itself and is cut off again."""

    def __init__(self, engine: Engine, memory: SyntheticVideo, room: int = 256) -> None:
        self._engine = engine
        self._caches = []
        model, everything = engine.model, memory.table(0)
        for layer in range(model.num_layers):
            blocks = memory.gather(layer, everything.segment_nos, everything.slots)
            system = engine.system[layer]
            keys = torch.cat([system.keys_TGd, blocks.keys_bNGd.flatten(0, 1)])
            values = torch.cat([system.values_TGd, blocks.values_bNGd.flatten(0, 1)])
            cache = LayerCache(len(keys) + room, like=system)
            cache.append(model.rope(keys, torch.arange(len(keys))), values)
            self._caches.append(cache)

    @torch.inference_mode()
    def first_token(self, question: str) -> int:
        model = self._engine.model
        hidden = model.question_prompt(question).embeds_TD
        for layer, cache in enumerate(self._caches):
            before = cache.num_tokens
            attended, _ = attend_next(model.rope, [cache], [len(hidden)], *model.qkv(layer, hidden))
            cache.num_tokens = before
            hidden = model.finish_layer(layer, hidden, attended)
        return int(model.logits(hidden[-1:])[-1].argmax())


class Transformers64:
    """`transformers` by itself: 64 pictures and the question, first token."""

    def __init__(self, config: PipelineConfig, folder: Any, frames: int = 64) -> None:
        from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

        from streamkv.models.base import read_frame_normaliser
        from streamkv.townsquare.draw import draw_moment

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        world = make_world(7, frames * 2 / 60)
        pictures = [draw_moment(world, 2.0 * i) for i in range(frames)]
        self._pixels = read_frame_normaliser(folder)(pictures, torch.device("cpu"), torch.float32)[None]
        with torch.inference_mode():
            video = self._model.model.get_video_features(self._pixels).pooler_output[0]
        self._video = "<video> " * len(video)

    def first_token(self, question: str, **options: Any) -> int:
        return self._generate(self._inputs(question), pixel_values_videos=self._pixels, **options)

    def first_token_quantised(self, question: str) -> int:
        config = {"backend": "quanto", "nbits": 4}
        return self.first_token(question, cache_implementation="quantized", cache_config=config)

    def first_token_kept(self, question: str) -> int:
        """Of a cache that is cut back to what comes before the question."""
        inputs = self._inputs(question)
        self._kept.crop(self._num_before - self._kept.get_seq_length())
        return self._generate(inputs, cache=self._kept)

    @cached_property
    def _num_before(self) -> int:
        """Tokens that all questions begin with."""
        one, other = (self._inputs(question)["input_ids"][0].tolist() for question in ("yes", "no"))
        return next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)

    @cached_property
    def _kept(self) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        self.first_token("yes", cache=cache)
        return cache

    def _inputs(self, question: str) -> Any:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return self._tokenizer(
            text.replace("<video>\n", self._video), return_tensors="pt", return_token_type_ids=False
        )

    @torch.inference_mode()
    def _generate(self, inputs: Any, **options: Any) -> int:
        return int(self._model.generate(**inputs, max_new_tokens=1, do_sample=False, **options)[0, -1])


def by_turns(ways: dict[str, Callable[[str], Any]], questions: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds of each way for each question; every way is tried once before."""
    for ask in ways.values():
        ask(questions[0])
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for question in questions:
        for name, ask in ways.items():
            begun = time.perf_counter()
            ask(question)
            taken[name].append(1000 * (time.perf_counter() - begun))
    return taken


@contextmanager
def stored(identity: ModelIdentity, num_segments: int) -> Iterator[VideoMemory]:
    """As many segments of noise, in files, with the blocks that a `SyntheticVideo` has."""
    with folder() as root, SegmentStore.open(root, identity=identity) as store:
        store.add_stream(STREAM, "noise")
        epoch = store.begin_writing(STREAM)
        for number in range(num_segments):
            kv = random_segment(identity.geometry, (BLOCKS_KEPT - 1) / FRAMES, number)
            store.commit(write_segment(root, identity, STREAM, epoch, kv, DEFAULT))
        yield store.reader(STREAM).refresh()


def measure(
    config: PipelineConfig, num_questions: int, *, quick: bool
) -> tuple[list[Figure], dict[str, float]]:
    torch.set_num_threads(max(1, config.model.threads))
    model = load_model(config.model)
    geometry = model.geometry
    ours, rekv = (Engine(model, load_settings("demo", [f"preset={p}"]).method) for p in ("streamkv", "rekv"))
    many, frames = (2_000, 500) if quick else (100_000, 10_000)
    _say("drawing memories")
    long = SyntheticVideo(geometry, many, BLOCKS_KEPT, indexed=True, seed=1)
    short = SyntheticVideo(geometry, 100, BLOCKS_KEPT, indexed=True, seed=2)
    segments = frames // 5  # scenes of ten seconds at half a frame a second
    compressed = SyntheticVideo(geometry, segments, BLOCKS_KEPT, indexed=True, seed=3)
    whole = SyntheticVideo(geometry, frames, 1, indexed=False, seed=4)
    full = FullWithCache(ours, whole)
    plain = Transformers64(config, _folder(config))
    questions = [q.question for q in make_questions(make_world(5, 10), num_questions, 5)]

    def first(engine: Engine, memory: VideoMemory) -> Callable[[str], Any]:
        return lambda question: engine.answer(memory, question, max_new_tokens=1)

    ways = {
        "streamkv, 100,000 segments": first(ours, long),
        "streamkv, 100 segments": first(ours, short),
        "streamkv, 10,000 frames": first(ours, compressed),
        "rekv, 10,000 frames": first(rekv, whole),
        "full with its cache, 10,000 frames": full.first_token,
        "transformers, 64 frames": plain.first_token,
        "transformers, 64 frames kept": plain.first_token_kept,
    }
    if is_optimum_quanto_available():
        ways["transformers, 64 frames, quantised"] = plain.first_token_quantised
    _say("writing a store")
    with stored(ModelIdentity.of(model), segments) as files:
        ways[IN_FILES] = first(ours, files)
        _say("asking")
        first_asked = by_turns({IN_FILES: ways[IN_FILES]}, questions)[IN_FILES]
        taken = by_turns(ways, questions)
    ms = {name: statistics.median(times) for name, times in taken.items()}

    def ratio(name: str, over: str, under: str) -> Figure:
        pairs = zip(taken[over], taken[under], strict=True)
        return Figure(name, "ratio", tuple(a / b for a, b in pairs))

    at_10k = "streamkv, 10,000 frames"
    figures = [
        ratio("ttft_100k_over_100", "streamkv, 100,000 segments", "streamkv, 100 segments"),
        ratio("ttft_over_full_10k", at_10k, "full with its cache, 10,000 frames"),
        ratio("ttft_over_rekv", at_10k, "rekv, 10,000 frames"),
        ratio("ttft_store_over_memory", IN_FILES, at_10k),
        Figure("first_asked_ms", "ms", tuple(first_asked)),
        ratio("ttft_over_transformers_64", at_10k, "transformers, 64 frames"),
        ratio("ttft_over_transformers_64_kept", at_10k, "transformers, 64 frames kept"),
    ]
    if "transformers, 64 frames, quantised" in ways:
        quantised = "transformers, 64 frames, quantised"
        figures.append(ratio("ttft_over_transformers_64_quantised", at_10k, quantised))
    laps = [ours.answer(compressed, question, max_new_tokens=1).timings_ms for question in questions]
    figures += [Figure(f"{phase}_ms", "ms", tuple(lap[phase] for lap in laps)) for phase in PHASES]
    figures.append(Figure("each_token_ms", "ms", tuple(_each_token(ours, compressed, q) for q in questions)))
    return figures, ms


def _each_token(engine: Engine, memory: VideoMemory, question: str) -> float:
    """Milliseconds of each token after the first."""
    answer = engine.answer(memory, question, max_new_tokens=1 + MORE_TOKENS)
    return (answer.timings_ms["total"] - answer.timings_ms["first_token"]) / max(1, answer.num_tokens - 1)


def _folder(config: PipelineConfig) -> Any:
    from streamkv.models import find_folder

    return find_folder(config.model.path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.question", description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="small memories, to see that it runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings a.b=c")
    given = parser.parse_args(arguments)
    about = machine()
    config = load_settings("demo", given.overrides)
    figures, ms = measure(config, given.questions, quick=given.quick)
    report(
        figures, about, as_json=given.json, median_ms={name: round(value, 3) for name, value in ms.items()}
    )
    if not given.json:
        base = ms["streamkv, 10,000 frames"]
        table("first token", [(n, v, v / base) for n, v in ms.items()], ("ms", "x ours"))


if __name__ == "__main__":
    main()
