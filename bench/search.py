"""Whether a question to many streams finds the one that it is about.

    python -m bench.search --streams 64 --json

Short town-square worlds, each a stream of one store, ingested for real (tower, segments, prefill, files). Asked are
questions whose moment occurs in one of the streams only: its sign, or its clock, or a thing, is in no other. For each,
the streams that a search of all of them ranks first; and whether the best one's own answer is right, beside that of the
right stream when it is asked alone. `bare` ranks by the queries of a pass that reads no video, as a search could that
does not wait for what its first layers find.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.machine import Figure, machine, report
from pipeline.settings import load_settings
from pipeline.worlds import write_world
from streamkv.config import PipelineConfig
from streamkv.engine import Engine
from streamkv.frame_batches import FrameBatches
from streamkv.ingest import ingest
from streamkv.many import ManyVideos, best_streams
from streamkv.memory import VideoMemory
from streamkv.models import load_model
from streamkv.retrieval import BlockChoice, Candidates, TopK
from streamkv.store import ModelIdentity, SegmentStore
from streamkv.townsquare import is_correct, make_questions, make_world
from streamkv.townsquare.questions import Question
from streamkv.townsquare.script import Scene, World
from streamkv.video import sample_frames

WITHIN = (1, 3, 5)
MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Asked:
    """A question and the one stream that it is about."""

    stream: int
    question: Question


def questions_of_one(worlds: Sequence[World], each: int, seed: int) -> list[Asked]:
    """Up to `each` questions of every world whose moment is named by what no other world shows."""
    seen = Counter(name for world in worlds for name in {n for s in world.scenes for n in _names(s)})
    asked = []
    for stream, world in enumerate(worlds):
        alone = [q for q in make_questions(world, 8 * each, seed) if _is_alone(q, world, seen)]
        asked += [Asked(stream, question) for question in alone[:each]]
    return asked


def _names(scene: Scene) -> set[str]:
    return {scene.sign.text, scene.clock, *(thing.name for thing in scene.things)}


def _is_alone(question: Question, world: World, seen: Counter[str]) -> bool:
    """Whether each moment's own name, as the question says it, is of this world only."""
    if question.ref == "none":
        return False
    scenes = [world.scenes[i] for i in question.scenes]
    return all(
        any(name in question.question and seen[name] == 1 for name in _names(scene)) for scene in scenes
    )


class Streams:
    """Worlds in a store."""

    def __init__(self, config: PipelineConfig, root: Path) -> None:
        model = load_model(config.model)
        self.engine = Engine(model, config.method)
        self._config = config
        self._store = SegmentStore.open(root, identity=ModelIdentity.of(model))

    def ingest(self, stream_id: str, video: Path) -> VideoMemory:
        self._store.add_stream(stream_id, str(video))
        source = self._config.source
        frames = sample_frames(str(video), source.sample_fps)
        ingest(
            self.engine,
            self._store,
            stream_id,
            frames,
            batches=FrameBatches.configured(source),
            codec=self._config.store.codec,
        )
        return self._store.reader(stream_id).snapshot


class Bare(TopK):
    """Reads nothing of what it finds, so that every layer asks with the bare question."""

    def choose(self, candidates: Candidates, count: int | None = None) -> BlockChoice:
        return candidates.take([])


@dataclass(frozen=True)
class Outcome:
    """What came of one question."""

    place: int  # of the right stream among those found, from 0; MISSED: it is not among the first
    bare_place: int
    search_ms: float
    first_is_right: bool  # the answer of the stream that was found first
    together_is_right: bool  # the answer from the best segments of all streams, read as one
    alone_is_right: bool  # the answer of the right stream


MISSED = max(WITHIN)


def try_one(engine: Engine, bare: TopK, memories: Sequence[VideoMemory], asked: Asked) -> Outcome:
    many, text = ManyVideos(memories), asked.question.question
    begun = time.perf_counter()
    found = [s.stream for s in best_streams(many, engine.find(many, text), MISSED, 1)]
    search_ms = 1000 * (time.perf_counter() - begun)
    scores = engine.find(many, text, bare)
    bare_found = [s.stream for s in best_streams(many, scores, MISSED, 1)]
    first, together, alone = (
        is_correct(engine.answer(memory, text, max_new_tokens=MAX_NEW_TOKENS).text, asked.question.answer)
        for memory in (memories[found[0]], many, memories[asked.stream])
    )
    return Outcome(
        _place(asked.stream, found), _place(asked.stream, bare_found), search_ms, first, together, alone
    )


def _place(stream: int, found: Sequence[int]) -> int:
    return found.index(stream) if stream in found else MISSED


def figures(outcomes: Sequence[Outcome]) -> list[Figure]:
    def share(name: str, hits: Sequence[bool], note: str = "") -> Figure:
        return Figure(name, "share", (sum(hits) / len(hits),), note)

    return [
        *(share(f"recall@{k}", [o.place < k for o in outcomes]) for k in WITHIN),
        *(share(f"bare_recall@{k}", [o.bare_place < k for o in outcomes]) for k in WITHIN),
        share("accuracy_first", [o.first_is_right for o in outcomes], "of the stream found first"),
        share("accuracy_together", [o.together_is_right for o in outcomes], "all streams read as one"),
        share("accuracy_alone", [o.alone_is_right for o in outcomes], "of the right stream, asked alone"),
        Figure("search", "ms", (statistics.median(o.search_ms for o in outcomes),), "median"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--questions", type=int, default=8, help="of each stream, at most")
    parser.add_argument("--seed", type=int, default=7_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings a.b=c")
    args = parser.parse_args(argv)
    config = load_settings("local", args.overrides)
    torch.set_num_threads(max(1, config.model.threads))
    seeds = range(args.seed, args.seed + args.streams)
    worlds = [make_world(seed, args.minutes) for seed in seeds]
    asked = questions_of_one(worlds, args.questions, args.seed)
    with tempfile.TemporaryDirectory(prefix="streamkv-search-") as folder:
        streams, memories = Streams(config, Path(folder) / "store"), []
        for seed in seeds:
            world = write_world(Path(folder), str(seed), seed=seed, minutes=args.minutes, questions=1)
            memories.append(streams.ingest(f"s{seed}", world.video))
            world.video.unlink()
        engine = streams.engine
        bare = Bare(engine.finder.method, engine.model.geometry)
        outcomes = [try_one(engine, bare, memories, one) for one in asked]
    by_ref = {
        ref: [o for one, o in zip(asked, outcomes, strict=True) if one.question.ref == ref]
        for ref in sorted({one.question.ref for one in asked})
    }
    about = {**machine(), "streams": args.streams, "minutes": args.minutes, "questions": len(asked)}
    about["segments"] = sum(len(memory.segments) for memory in memories)
    more = {ref: {f.name: round(f.value, 4) for f in figures(some)} for ref, some in by_ref.items()}
    report(figures(outcomes), about, as_json=args.json, named_by=more)


if __name__ == "__main__":
    main()
