"""Whether answers are as often right as they say, and what is answered about things that never happened.

    python -m bench.confidence --json            measures the configuration's weights
    python -m bench.confidence --seed 300 --worlds 6 6 4 --fit  prints weights for it, fitted on these worlds

Half of the questions are about the world; the other half were made for another one, and name a sign or a clock that
this world never shows. For each threshold, `false_T` is the share of those that are answered all the same, and `kept_T`
the share of right answers that are still given; `kept_at_5` is that at the threshold at which one in twenty of the
former is answered. `off_by` is the mean distance of stated confidence and share of right answers, over tenths
(expected calibration error, Guo et al. 2017).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from bench import worlds
from bench.machine import Figure, machine, report
from pipeline.settings import load_settings
from streamkv.confidence import Signs, confidence, fit
from streamkv.config import ConfidenceConfig, PipelineConfig
from streamkv.engine import Engine
from streamkv.models import load_model
from streamkv.townsquare import Question, World, is_correct, make_questions, make_world

MAX_NEW_TOKENS = 8
THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8)
ELSEWHERE = 77_777
"""Seeds of the other worlds are so far away."""


@dataclass(frozen=True)
class Outcome:
    """One answer."""

    signs: Signs
    is_right: bool
    has_answer: bool


def absent(world: World, seed: int, count: int) -> list[Question]:
    """Questions that name a sign or a clock that the world never shows."""
    signs = {scene.sign.text for scene in world.scenes}
    clocks = {scene.clock for scene in world.scenes}
    elsewhere = make_questions(make_world(seed + ELSEWHERE, 60), 8 * count, seed)
    named = (
        (q, re.findall(r"[A-Z] \d\d", q.question), re.findall(r"\d\d:\d\d", q.question)) for q in elsewhere
    )
    found = [
        q
        for q, q_signs, q_clocks in named
        if (q_signs or q_clocks) and not (signs & {*q_signs} or clocks & {*q_clocks})
    ]
    return found[:count]


def outcomes(config: PipelineConfig, minutes: float, seeds: Sequence[int], count: int) -> Iterator[Outcome]:
    """Answers about worlds, and about what they do not show."""
    torch.set_num_threads(max(1, config.model.threads))
    model = load_model(config.model)
    engine = Engine(model, config.method)
    for seed in seeds:
        world, seen = worlds.show(model, seed, minutes, config.source.sample_fps)
        memory = worlds.remember(engine, worlds.prefilled(engine, seen))
        asked = [(q, True) for q in make_questions(world, count, seed)]
        asked += [(q, False) for q in absent(world, seed, count)]
        for question, has_answer in asked:
            signs = engine.read(memory, question.question).signs
            text = engine.answer(memory, question.question, max_new_tokens=MAX_NEW_TOKENS).text
            yield Outcome(signs, has_answer and is_correct(text, question.answer), has_answer)
        print(f"world {seed}, {minutes:g} minutes: {len(asked)} questions", file=sys.stderr, flush=True)


def figures(weights: ConfidenceConfig, found: Sequence[Outcome]) -> list[Figure]:
    sure = np.array([confidence(weights, o.signs) for o in found])
    right = np.array([o.is_right for o in found])
    absent_ = np.array([not o.has_answer for o in found])
    made = [
        Figure("off_by", "share", (off_by(sure, right),), "confidence against right answers, over tenths")
    ]
    strict = np.quantile(sure[absent_], 0.95)
    made.append(
        Figure("kept_at_5", "share", (float((sure[right] > strict).mean()),), f"from {strict:.2f} on")
    )
    for threshold in THRESHOLDS:
        given = sure >= threshold
        made.append(Figure(f"false_{threshold:g}", "share", (float(given[absent_].mean()),)))
        made.append(Figure(f"kept_{threshold:g}", "share", (float(given[right].mean()),)))
    return made


def off_by(sure: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error over tenths."""
    tenth = np.minimum((sure * 10).astype(int), 9)
    groups = [tenth == k for k in range(10) if (tenth == k).any()]
    return float(sum(abs(sure[g].mean() - right[g].mean()) * g.mean() for g in groups))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.confidence", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 10.0, 60.0])
    parser.add_argument(
        "--worlds", type=int, nargs="+", default=[2], help="of each length, or of each by itself"
    )
    parser.add_argument("--questions", type=int, default=100, help="of each world, and as many about nothing")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--fit", action="store_true", help="print weights fitted on these worlds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings a.b=c")
    given = parser.parse_args(arguments)
    counts = given.worlds * len(given.minutes) if len(given.worlds) == 1 else given.worlds
    if len(counts) != len(given.minutes):
        parser.error(
            f"--worlds: got {len(counts)} counts for {len(given.minutes)} lengths; give one, or one each"
        )
    facts = machine()
    config = load_settings("demo", given.overrides)
    found = [
        outcome
        for minutes, count in zip(given.minutes, counts, strict=True)
        for outcome in outcomes(config, minutes, range(given.seed, given.seed + count), given.questions)
    ]
    weights = config.method.confidence
    if given.fit or weights is None:
        weights = fit([o.signs for o in found], [o.is_right for o in found])
    report(figures(weights, found), facts, as_json=given.json, weights=asdict(weights))


if __name__ == "__main__":
    main()
