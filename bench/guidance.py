"""What a stream's own guidance prompt changes: which frames are kept, and what is answered from them.

    python -m bench.guidance --json

Worlds are cut into long uniform segments of several scenes, so that something has to go. For each kind of thing that a
world shows, its stream is prefilled by the configured prompt, by one that names the kind (`own`) and by one that names
another kind (`other`). The same model, the same frames and the same number of bytes; all that differs is the prompt:

- `shown_*`: the share of kept frames, over layers, that show the kind; `shown_anyhow` is that of all frames.
- `right_*`: the share of the world's questions about colour and place of that kind that are answered right.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench import worlds
from bench.machine import Figure, machine, report
from pipeline.settings import load_settings
from streamkv.config import PipelineConfig
from streamkv.engine import Engine
from streamkv.evaluation.runner import EncodedVideo
from streamkv.models import load_model
from streamkv.townsquare import Question, World, is_correct, make_questions
from streamkv.townsquare.script import KINDS

SETTINGS = (  # a segment holds about three scenes, and a layer keeps one frame in five of it
    "method.segment.policy=uniform",
    "method.segment.max_frames=16",
    "method.compress.keep_ratio=0.2",
)
ASKED = ("colour", "place")
QUESTIONS = 400  # drawn for each world; those about one kind are few of them
MAX_NEW_TOKENS = 4


@dataclass(frozen=True)
class Kept:
    """One stream under one prompt."""

    shown: float  # of the kept frames
    right: tuple[bool, ...]  # of the questions


def guidance_of(kind: str) -> str:
    return f"where is the {kind}? what colour is the {kind}?"


def about(kind: str, questions: Sequence[Question]) -> list[Question]:
    """Those that ask for the colour or the place of one of that kind, each text once."""
    asked = (
        q for q in questions if q.kind in ASKED and kind in re.split(r" at | when |\?", q.question)[0].split()
    )
    return list({q.question: q for q in asked}.values())


def shows(world: World, span_s: tuple[float, float], kind: str) -> bool:
    """Whether the frame was taken while one of that kind was there."""
    return any(t.kind == kind for t in world.scene_at(span_s[0]).visible(span_s[0]))


def keep(
    engine: Engine, world: World, seen: EncodedVideo, kind: str, guidance: str, questions: Sequence[Question]
) -> Kept:
    segments = list(worlds.prefilled(engine, seen, guidance))
    memory = worlds.remember(engine, iter(segments))
    shown = [
        shows(world, span, kind)
        for kv in segments
        for blocks in kv.layers
        for i, span in zip(blocks.frame_ids, blocks.spans_s, strict=True)
        if i < kv.num_frames
    ]
    answers = [engine.answer(memory, q.question, max_new_tokens=MAX_NEW_TOKENS).text for q in questions]
    return Kept(
        statistics.mean(shown),
        tuple(is_correct(a, q.answer) for q, a in zip(questions, answers, strict=True)),
    )


def measure(config: PipelineConfig, minutes: float, seeds: Sequence[int]) -> list[Figure]:
    """A run is a world: kinds that it shows sometimes, together."""
    torch.set_num_threads(max(1, config.model.threads))
    model = load_model(config.model)
    engine = Engine(model, config.method)
    runs: dict[str, list[float]] = {}
    for seed in seeds:
        world, seen = worlds.show(model, seed, minutes, config.source.sample_fps)
        questions = make_questions(world, QUESTIONS, seed)
        found: dict[str, list[float]] = {}
        for kind in KINDS:
            anyhow = statistics.mean(shows(world, span, kind) for span in seen.spans_s)
            asked = about(kind, questions)
            if not 0 < anyhow < 1 or not asked:
                continue
            other = KINDS[KINDS.index(kind) - 1]
            prompts = {"configured": "", "own": guidance_of(kind), "other": guidance_of(other)}
            found.setdefault("shown_anyhow", []).append(anyhow)
            for name, guidance in prompts.items():
                kept = keep(engine, world, seen, kind, guidance, asked)
                found.setdefault(f"shown_{name}", []).append(kept.shown)
                found.setdefault(f"right_{name}", []).extend(map(float, kept.right))
        for name, values in found.items():
            runs.setdefault(name, []).append(statistics.mean(values))
        print(f"world {seed}: {len(found['right_own'])} questions", file=sys.stderr, flush=True)
    runs["shown_gain"] = [a / b for a, b in zip(runs["shown_own"], runs["shown_configured"], strict=True)]
    runs["right_gain"] = [a - b for a, b in zip(runs["right_own"], runs["right_configured"], strict=True)]
    units = {"shown_gain": "ratio", "right_gain": "difference"}
    return [Figure(name, units.get(name, "share"), tuple(values)) for name, values in runs.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    given = worlds.parser("bench.guidance", __doc__, minutes=4, worlds=6).parse_args(arguments)
    facts = machine()
    config = load_settings("demo", [*SETTINGS, *given.overrides])
    figures = measure(config, given.minutes, worlds.seeds_of(given))
    report(figures, facts, as_json=given.json)


if __name__ == "__main__":
    main()
