"""Whether watches fire when they should, and what they cost beside the prefill of the segment that they hear.

    python -m bench.watches --json
    python -m bench.watches --seed 300 --fit  prints weights for `method.watch_confidence`, fitted on these worlds

Every watch hears a whole generated world, segment by segment, and its events are compared with the script. An event is
right when the script's answer becomes the same within the tolerance of the event's time, the start of its segment; each
change counts for one event. `precision` is the share of events that are right, `recall` the share of changes that were
told. The tolerances are 2 s, as the field has it (StreamingBench's proactive output), and one sampling interval,
1 / `source.sample_fps`: the demo world is sampled every 2 s, so that a change is seen up to 2 s late and both are the
same there. Things come and go within scenes, and a segment is a whole scene: it tells of them as late or as early.

A live stream's watches look at its open segment with every frame, and tell when they see a change, once a segment;
an archive's hear closed segments alone. `output_2s` takes the time of telling for the event's time, which is the
field's rule to the letter: when the frame was on show that a look was at (seconds of computing are not in it), or else
when the segment closed.

- `precision_K_T`, `recall_K_T` for each kind K of question and tolerance T: `2s`, `interval`, `output_2s`, of a live
  stream; with `_closed` of an archive.
- `late_s`, `late_closed_s`: seconds of stream time from an event's time to when it was told.
- `kept_T`, `false_T`: the share of right and of wrong answers of closed segments whose confidence is at least T.
- `cost_N`: seconds for N watches over seconds for the prefill of the closed segment; `cost_open_N`: seconds of all
  looks at it while it was open, over the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from bench import worlds
from bench.machine import Figure, machine, report
from pipeline.settings import load_settings
from streamkv.confidence import Signs, confidence, fit
from streamkv.config import ConfidenceConfig, PipelineConfig
from streamkv.engine import Engine
from streamkv.memory import InMemoryVideo
from streamkv.models import load_model
from streamkv.segmentation import Segmenter
from streamkv.townsquare import Scene, World, is_correct
from streamkv.townsquare.questions import COUNT_WORDS
from streamkv.townsquare.script import COLOURS, KINDS
from streamkv.types import Segment, SegmentKV
from streamkv.watches import WatchAnswer, WatchQuestion, ask_segment, is_change, method_of_watches, shown

MAX_NEW_TOKENS = 8
FIELD_S = 2.0
"""The field's tolerance."""
COSTS = (1, 10, 100)
OPEN_COSTS = (1, 10)
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Standing:
    """A question with what the script answers to it."""

    kind: str
    text: str
    truth: Callable[[Scene, float], str]  # at a time of the world; empty: the footage does not show it


@dataclass(frozen=True)
class Change:
    time_s: float
    answer: str
    told_s: float = 0.0  # when an event can be told; stream time


@dataclass(frozen=True)
class Outcome:
    """One answer of one segment."""

    kind: str
    signs: Signs
    is_right: bool


@dataclass(frozen=True)
class Rule:
    """When an event is in time."""

    tolerance_s: float
    time_of: Callable[[Change], float]


def rules(sample_fps: float) -> dict[str, Rule]:
    return {
        "2s": Rule(FIELD_S, lambda event: event.time_s),
        "interval": Rule(1 / sample_fps, lambda event: event.time_s),
        "output_2s": Rule(FIELD_S, lambda event: event.told_s),
    }


def existence(thing: str) -> Callable[[Scene, float], str]:
    return lambda scene, t: "yes" if any(thing in (v.kind, v.name) for v in scene.visible(t)) else "no"


def colour(kind: str) -> Callable[[Scene, float], str]:
    return lambda scene, t: next((v.colour for v in scene.visible(t) if v.kind == kind), "")


def place(kind: str) -> Callable[[Scene, float], str]:
    return lambda scene, t: next((v.zone for v in scene.visible(t) if v.kind == kind), "")


def standing_questions() -> list[Standing]:
    """Of one scene as the demo model knows them: no clock and no sign names a moment."""
    made = [
        Standing("weather", "what is the weather?", lambda scene, _: scene.weather),
        Standing("sign", "what does the sign say?", lambda scene, _: scene.sign.text),
        Standing("count", "how many things are there?", lambda scene, _: COUNT_WORDS[len(scene.things)]),
    ]
    for kind in KINDS:
        article = "an" if kind[0] in "aeiou" else "a"
        made.append(Standing("existence", f"is there {article} {kind}?", existence(kind)))
        made.append(Standing("colour", f"what colour is the {kind}?", colour(kind)))
        made.append(Standing("place", f"where is the {kind}?", place(kind)))
    for i, kind in enumerate(KINDS):
        name = f"{COLOURS[i % len(COLOURS)]} {kind}"
        article = "an" if name[0] in "aeiou" else "a"
        made.append(Standing("existence", f"is there {article} {name}?", existence(name)))
    return made


def true_changes(world: World, standing: Standing) -> list[Change]:
    """When the script's answer becomes another one that is shown, from nothing on."""
    found, before = list[Change](), ""
    for scene in world.scenes:
        offsets = {0.0, *(t.enter_s for t in scene.things), *(t.leave_s for t in scene.things)}
        for offset in sorted(o for o in offsets if o < scene.end_s - scene.start_s):
            now = standing.truth(scene, scene.start_s + offset)
            if is_change(before, now, when_gone=False):
                found.append(Change(scene.start_s + offset, now))
            before = now
    return found


def is_right(world: World, standing: Standing, segment: SegmentKV, answer: str) -> bool:
    """Whether the script says so at some time of the segment."""
    times = np.arange(segment.start_s, segment.end_s, 0.5)
    truths = {standing.truth(world.scene_at(t), t) for t in times.tolist()} - {""}
    return any(is_correct(answer, truth) for truth in truths)


def num_matched(events: Sequence[Change], changes: Sequence[Change], rule: Rule) -> int:
    """Events that tell a change, each another one: the earliest that is left."""
    left = list(changes)
    matched = 0
    for event in events:
        near = (
            c
            for c in left
            if abs(c.time_s - rule.time_of(event)) <= rule.tolerance_s and is_correct(event.answer, c.answer)
        )
        if change := next(near, None):
            left.remove(change)
            matched += 1
    return matched


class Told:
    """Counts of one kind of question."""

    def __init__(self) -> None:
        self.num_events = self.num_changes = 0
        self.matched: dict[str, int] = {}

    def add(self, events: Sequence[Change], changes: Sequence[Change], by: dict[str, Rule]) -> None:
        self.num_events += len(events)
        self.num_changes += len(changes)
        for name, rule in by.items():
            self.matched[name] = self.matched.get(name, 0) + num_matched(events, changes, rule)


class Hearing:
    """What one way of listening tells of each question: it fires once a segment."""

    def __init__(self, texts: Sequence[str], min_confidence: float) -> None:
        self.events: dict[str, list[Change]] = {text: [] for text in texts}
        self._heard = dict.fromkeys(texts, "")
        self._told_in = dict.fromkeys(texts, -1)
        self._min_confidence = min_confidence

    def look(self, segment: SegmentKV, answers: Iterable[WatchAnswer], now_s: float) -> None:
        """At a segment that is open."""
        for said in answers:
            if shown(said, self._min_confidence):
                self._hear(segment, said, now_s)

    def close(self, segment: SegmentKV, answers: Iterable[WatchAnswer]) -> None:
        for said in answers:
            self._hear(segment, said, segment.end_s)

    def _hear(self, segment: SegmentKV, said: WatchAnswer, now_s: float) -> None:
        text, now = said.watch_id, shown(said, self._min_confidence)
        if self._told_in[text] == segment.segment_no:
            return
        if is_change(self._heard[text], now, when_gone=False):
            self.events[text].append(Change(said.evidence[0].start_s, now, now_s))
            self._told_in[text] = segment.segment_no
        self._heard[text] = now


class Bench:
    """One model, any number of worlds."""

    def __init__(self, config: PipelineConfig, *, reads_signs: bool) -> None:
        torch.set_num_threads(max(1, config.model.threads))
        self._config, self._reads_signs = config, reads_signs
        self._model = load_model(config.model)
        self._engine = Engine(self._model, config.method)
        self._asked = Engine(self._model, method_of_watches(config.method))
        self._standing = standing_questions()
        self._min_confidence = config.watch.min_confidence
        self._rules = rules(config.source.sample_fps)
        self._late_s: dict[str, list[float]] = {}
        self.told: dict[str, dict[str, Told]] = {
            "": {},
            "_closed": {},
        }  # by the way of listening, then by kind
        self.outcomes: list[Outcome] = []
        self.costs: dict[str, list[float]] = {}

    def hear(self, seed: int, minutes: float) -> None:
        """A whole world, and every standing question of each frame and each segment."""
        world, seen = worlds.show(self._model, seed, minutes, self._config.source.sample_fps)
        texts = [s.text for s in self._standing]
        live, archive = (Hearing(texts, self._min_confidence) for _ in range(2))
        window, segmenter = self._engine.open_window(), Segmenter(self._config.method.segment)
        looks_s = dict.fromkeys(OPEN_COSTS, 0.0)

        def close(segment: Segment | None) -> None:
            if segment is None:
                return
            begun = time.perf_counter()
            kv = self._engine.prefill(window, segment)
            prefill_s = time.perf_counter() - begun
            answers = self._ask(kv, texts)
            live.close(kv, answers)
            archive.close(kv, answers)
            self._cost(kv, prefill_s)
            for count in OPEN_COSTS:
                self.costs.setdefault(f"open_{count}", []).append(looks_s[count] / prefill_s)
                looks_s[count] = 0.0
            if self._reads_signs:
                self._read_signs(world, kv)

        for features_ND, (start_s, end_s) in zip(seen.features_FND, seen.spans_s, strict=True):
            close(segmenter.push(features_ND, start_s, end_s))
            segment = segmenter.open_segment
            if segment is not None:
                begun = time.perf_counter()
                kv = self._engine.peek(window, segment)
                peek_s = time.perf_counter() - begun
                live.look(kv, self._ask(kv, texts), start_s)
                for count in OPEN_COSTS:
                    looks_s[count] += peek_s + self._seconds_of(kv, count)
        close(segmenter.flush())

        for way, hearing in (("", live), ("_closed", archive)):
            for standing in self._standing:
                events, changes = hearing.events[standing.text], true_changes(world, standing)
                for kind in (standing.kind, "all"):
                    self.told[way].setdefault(kind, Told()).add(events, changes, self._rules)
                self._late_s.setdefault(f"late{way}_s", []).extend(e.told_s - e.time_s for e in events)

    def _read_signs(self, world: World, kv: SegmentKV) -> None:
        memory = InMemoryVideo(self._model.geometry, [kv])
        for standing in self._standing:
            reading = self._asked.read(memory, standing.text)
            (said,) = self._ask(kv, [standing.text])
            right = is_right(world, standing, kv, said.text)
            self.outcomes.append(Outcome(standing.kind, reading.signs, right))

    def _ask(self, kv: SegmentKV, texts: Sequence[str]) -> list[WatchAnswer]:
        questions = [WatchQuestion(text, text) for text in texts]
        found = ask_segment(self._asked, self._model.geometry, MAX_NEW_TOKENS, kv, questions)
        return [answer for answer in found if isinstance(answer, WatchAnswer)]

    def _cost(self, kv: SegmentKV, prefill_s: float) -> None:
        for count in COSTS:
            self.costs.setdefault(str(count), []).append(self._seconds_of(kv, count) / prefill_s)

    def _seconds_of(self, kv: SegmentKV, count: int) -> float:
        """So many watches take."""
        questions = [self._standing[i % len(self._standing)].text for i in range(count)]
        begun = time.perf_counter()
        self._ask(kv, questions)
        return time.perf_counter() - begun

    def figures(self) -> list[Figure]:
        made = []
        for way, by_kind in self.told.items():
            for kind, told in by_kind.items():
                note = f"{told.num_events} events, {told.num_changes} changes"
                for name, matched in told.matched.items():
                    precision = matched / told.num_events if told.num_events else float("nan")
                    made.append(Figure(f"precision_{kind}_{name}{way}", "share", (precision,), note))
                    recall = matched / told.num_changes
                    made.append(Figure(f"recall_{kind}_{name}{way}", "share", (recall,), note))
        made += [Figure(name, "s", tuple(late_s)) for name, late_s in self._late_s.items()]
        made += [Figure(f"cost_{n}", "ratio", tuple(r), "of the prefill") for n, r in self.costs.items()]
        return made


def sureness(weights: ConfidenceConfig, outcomes: Sequence[Outcome]) -> list[Figure]:
    sure = np.array([confidence(weights, o.signs) for o in outcomes])
    right = np.array([o.is_right for o in outcomes])
    return [
        Figure(f"{name}_{threshold:g}", "share", (float((sure >= threshold)[which].mean()),))
        for threshold in THRESHOLDS
        for name, which in (("kept", right), ("false", ~right))
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.watches", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--worlds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--fit", action="store_true", help="print weights fitted on these worlds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings a.b=c")
    given = parser.parse_args(arguments)
    facts = machine()
    config = load_settings("demo", given.overrides)
    bench = Bench(config, reads_signs=True)
    for seed in range(given.seed, given.seed + given.worlds):
        bench.hear(seed, given.minutes)
        print(f"world {seed}", file=sys.stderr, flush=True)
    weights = config.method.watch_confidence
    if given.fit or weights is None:
        weights = fit([o.signs for o in bench.outcomes], [o.is_right for o in bench.outcomes])
    figures = [*bench.figures(), *sureness(weights, bench.outcomes)]
    report(figures, facts, as_json=given.json, weights=asdict(weights))
    if given.fit and not given.json:
        print(asdict(weights))


if __name__ == "__main__":
    main()
