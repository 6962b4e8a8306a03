"""Batches of clips with packed questions, each of which sees the video and itself only."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from streamkv.townsquare.questions import Question, make_questions
from streamkv.townsquare.script import (
    COLOURS,
    KINDS,
    SIGN_LETTERS,
    TRAIN_SEED_BASE,
    WEATHERS,
    ZONES,
    Scene,
    World,
    make_scenes,
)
from training.townsquare.attributes import attribute_ids
from training.townsquare.build import FRAME_TOKENS, SYSTEM_PROMPT, vocabulary, words_of

SAMPLE_S = 2.0  # stream seconds between sampled frames
IDS = {word: i for i, word in enumerate(vocabulary())}
NEWLINE = -1  # stands for the model's image_newline embedding
IGNORE = -100
T = TypeVar("T", int, float)
PREFIX = [IDS[w] for w in words_of(f"<|im_start|>system {SYSTEM_PROMPT}<|im_end|><|im_start|>user")]
ASSISTANT = [IDS[w] for w in words_of("<|im_end|><|im_start|>assistant")]


@dataclass(frozen=True)
class ClipSpec:
    """What the clips of a batch are like; the curriculum changes these."""

    scenes: tuple[int, int]
    frames: tuple[int, int]  # sampled frames of a scene
    questions: int
    kinds: tuple[str, ...] = ()  # kinds of question; empty: all
    refs: tuple[str, ...] = ()  # ways to name the moment; empty: all
    summary: float = 0.0  # share of clips with a mean frame after each scene
    drop: float = (
        0.0  # share of questions that see only some of the frames, as after compression and retrieval
    )
    window: int = 0  # frames before it that a frame's tokens see, as in a long stream's prefill; 0: all


@dataclass
class Batch:
    """B clips. The row of a clip is [system | video | question 1 | question 2 | ...]."""

    attributes: Tensor  # (B, F, 9, 5) int64, padded frames 0
    frame_scene: Tensor  # (B, F) scene of each frame, -1 pads
    mean_of: Tensor  # (B, F, F) float: how each frame is made of sampled frames (a summary is a mean)
    tokens: Tensor  # (B, T) ids of the system prompt and the questions, in their place; video places hold 0
    targets: Tensor  # (B, T) the next token where it is to be learnt, else IGNORE
    positions: Tensor  # (B, T)
    mask: Tensor  # (B, 1, T, T) bool: may attend
    query_of: Tensor  # (Q, T) float: averages a question's own tokens
    clip_of: Tensor  # (Q,)
    positive: Tensor  # (Q, B, F) bool: frames of the scenes that the question is about
    rival: Tensor  # (Q, B, F) bool: frames that it must be told from
    frame_names: (
        Tensor  # (B, F, 6) letter, number, hour, minute, weather, count of each frame's scene; IGNORE pads
    )
    mentions: (
        Tensor  # (Q, 6) letter, number, hour, minute, kind, colour that the question mentions, else IGNORE
    )
    last: Tensor  # (Q,) place of the last prompt token, which says the answer's first
    focus: Tensor  # (Q, F * 9) bool: the tokens of its clip that show what is asked; none for some kinds
    kinds: list[str]
    answers: list[tuple[int, int, int]]  # clip, first answer place, end, for each question
    starts: list[int]  # first place of each question's prompt
    questions: list[Question]


MIDDLE = 0.8
"""Share of scenes shown by at least one frame of their middle half, when everything is on stage."""


def pick(rng: random.Random, grid: Sequence[T], start: float, length: float, count: int) -> list[T]:
    """`count` of the grid's places in a scene, in order: frames that all miss a thing teach nothing about it."""
    middle = [at for at in grid if 0.25 <= (at - start) / length <= 0.75]
    first = [rng.choice(middle)] if middle and rng.random() < MIDDLE else []
    rest = [at for at in grid if at not in first]
    return sorted([*first, *rng.sample(rest, min(len(rest), count - len(first)))])


def scene_times(world: World, index: int, count: int, rng: random.Random) -> list[float]:
    """`count` sampling times in a scene, on a grid of random phase; the grid is cut or thinned to fit."""
    scene = world.scenes[index]
    start = scene.start_s + rng.uniform(0, SAMPLE_S)
    times = np.arange(start, scene.end_s - 0.05, SAMPLE_S).tolist()
    return pick(rng, times, scene.start_s, scene.end_s - scene.start_s, count)


@dataclass(frozen=True)
class Clip:
    world: World
    frames: list[
        list[np.ndarray]
    ]  # for each scene, each sampled frame as (9, 5) int64: its description or its place

    @property
    def num_frames(self) -> int:
        return sum(map(len, self.frames))


def make_clip(rng: random.Random, spec: ClipSpec) -> Clip:
    """A described clip of a world of training seeds."""
    scenes = rng.randint(*spec.scenes)
    world = make_scenes(rng, [float(rng.randint(8, 14)) for _ in range(scenes)], TRAIN_SEED_BASE)
    times = [scene_times(world, i, rng.randint(*spec.frames), rng) for i in range(scenes)]
    return Clip(world, [[attribute_ids(s, t) for t in ts] for s, ts in zip(world.scenes, times, strict=True)])


ClipMaker = Callable[[random.Random, ClipSpec], Clip]


def make_batch(rng: random.Random, spec: ClipSpec, size: int, clip: ClipMaker = make_clip) -> Batch:
    """Draws `size` clips and their questions."""
    clips = [clip(rng, spec) for _ in range(size)]
    with_summary = [rng.random() < spec.summary for _ in clips]
    num_frames = max(c.num_frames + len(c.frames) * s for c, s in zip(clips, with_summary, strict=True))
    attributes = np.zeros((size, num_frames, 9, 5), np.int64)
    frame_scene = np.full((size, num_frames), -1)
    mean_of = np.zeros((size, num_frames, num_frames), np.float32)
    for b, made in enumerate(clips):
        f = 0
        for s, frames in enumerate(made.frames):
            first = f
            for frame in frames:
                attributes[b, f] = frame
                frame_scene[b, f], mean_of[b, f, f] = s, 1
                f += 1
            if with_summary[b]:
                frame_scene[b, f], mean_of[b, f, first:f] = s, 1 / (f - first)
                f += 1
    asked = [_questions(rng, c.world, spec) for c in clips]
    return _pack(rng, spec, [c.world for c in clips], asked, attributes, frame_scene, mean_of)


def _questions(rng: random.Random, world: World, spec: ClipSpec) -> list[Question]:
    if not spec.kinds and not spec.refs:
        return make_questions(world, spec.questions, rng.randrange(1 << 40))
    found = [
        q
        for q in make_questions(world, 12 * spec.questions, rng.randrange(1 << 40))
        if (not spec.kinds or q.kind in spec.kinds) and (not spec.refs or q.ref in spec.refs)
    ]
    return found[: spec.questions]


def question_tokens(question: Question) -> tuple[list[int], int, list[int]]:
    """Prompt ids (the newline first), how many of them are the question's own words, answer ids."""
    words = [IDS[w] for w in words_of(question.question)]
    answer = [IDS[w] for w in words_of(question.answer)] + [IDS["<|im_end|>"]]
    return [NEWLINE, *words, *ASSISTANT], len(words), answer


def _pack(
    rng: random.Random,
    spec: ClipSpec,
    worlds: list[World],
    asked: list[list[Question]],
    attributes: np.ndarray,
    frame_scene: np.ndarray,
    mean_of: np.ndarray,
) -> Batch:
    size, num_frames = frame_scene.shape
    video_at, video_len = len(PREFIX), num_frames * FRAME_TOKENS
    parts = [[question_tokens(q) for q in questions] for questions in asked]
    total = video_at + video_len + max(sum(len(p) + len(a) for p, _, a in row) for row in parts)
    tokens = np.zeros((size, total), np.int64)
    targets = np.full((size, total), IGNORE, np.int64)
    positions = np.zeros((size, total), np.int64)
    mask = np.zeros((size, total, total), bool)
    num_questions = sum(map(len, asked))
    query_of = np.zeros((num_questions, total), np.float32)
    positive = np.zeros((num_questions, size, num_frames), bool)
    rival = np.zeros((num_questions, size, num_frames), bool)
    frame_names = np.full((size, num_frames, 6), IGNORE)
    mentions = np.array([_mentions(q.question) for questions in asked for q in questions])
    focus = np.zeros((num_questions, num_frames, FRAME_TOKENS), bool)
    clip_of, last, answers, starts, g = [], [], [], [], 0
    for b, questions in enumerate(asked):
        used = int((frame_scene[b] >= 0).sum()) * FRAME_TOKENS
        tokens[b, :video_at] = PREFIX
        for f in np.flatnonzero(frame_scene[b] >= 0):
            frame_names[b, f] = _names(worlds[b].scenes[frame_scene[b, f]])
        positions[b, : video_at + video_len] = np.arange(video_at + video_len)
        context = video_at + used
        mask[b, :context, :context] = np.tri(context, dtype=bool)
        if spec.window:
            far = ~np.tri(context, k=spec.window * FRAME_TOKENS, dtype=bool).T
            mask[b, :context, video_at:context] &= ~far[:, video_at:]
        at = video_at + video_len
        for question, (prompt, words, answer) in zip(questions, parts[b], strict=True):
            end = at + len(prompt) + len(answer)
            tokens[b, at:end] = [*prompt, *answer]
            first = at + len(prompt)
            targets[b, first - 1 : end - 1] = answer
            seen = _seen_frames(rng, spec.drop, frame_scene[b], question)
            mask[b, at:end, :video_at] = True
            mask[b, at:end, video_at : video_at + video_len] = np.repeat(seen, FRAME_TOKENS)
            mask[b, at:end, at:end] = np.tri(end - at, dtype=bool)
            # Retrieved blocks get consecutive positions: the question follows as if only they were there.
            positions[b, at:end] = context + np.arange(end - at)
            query_of[g, at + 1 : at + 1 + words] = 1 / words
            positive[g, b] = np.isin(frame_scene[b], question.scenes)
            rival[g] = _rivals(worlds, frame_scene, b, question)
            focus[g][np.ix_(np.flatnonzero(positive[g, b]), _focus_cells(question))] = True
            clip_of.append(b)
            last.append(first - 1)
            answers.append((b, first, end))
            starts.append(at)
            at, g = end, g + 1
        idle = ~mask[b].any(axis=1)
        mask[b, idle, 0] = True  # a padded row must attend to something
    flat = [q for questions in asked for q in questions]
    arrays = (attributes, frame_scene, mean_of, tokens, targets, positions, mask[:, None], query_of, np.array(clip_of),
              positive, rival, frame_names, mentions, np.array(last), focus.reshape(num_questions, -1))  # fmt: skip
    return Batch(*map(torch.from_numpy, arrays), [q.kind for q in flat], answers, starts, flat)


def _focus_cells(question: Question) -> list[int]:
    """The cells that can answer. A cell knows what stands before it in its frame: sign, sky, clock, then the zones."""
    sign, sky, clock, zones = 0, 1, 2, list(range(3, FRAME_TOKENS))
    if question.focus in ZONES:
        return [3 + ZONES.index(question.focus)]
    if question.kind == "count":
        return zones[-1:]
    if question.kind == "existence":
        return zones
    if question.kind == "order":
        return [sign]
    if question.ref == "thing":
        return zones
    if question.ref == "none":
        return [{"sign": sign, "sky": sky, "clock": clock}[question.focus]]
    return [sky] if (question.kind, question.ref) == ("weather", "sign") else [clock]


def _names(scene: Scene) -> tuple[int, ...]:
    sign = (SIGN_LETTERS.index(scene.sign.letter), scene.sign.number)
    return (*sign, *divmod(scene.clock_minute, 60), WEATHERS.index(scene.weather), len(scene.things))


def _mentions(text: str) -> tuple[int, ...]:
    """What a question's words say of its scene; two signs (an order question) say nothing for certain."""
    clock = re.search(r"(\d\d):(\d\d)", text)
    signs = re.findall(r"\b([A-Z]) (\d\d)\b", text)
    sign = (SIGN_LETTERS.index(signs[0][0]), int(signs[0][1])) if len(signs) == 1 else (IGNORE, IGNORE)
    time = (int(clock[1]), int(clock[2])) if clock else (IGNORE, IGNORE)
    words = text.rstrip("?").split()
    kind = next((KINDS.index(w) for w in words if w in KINDS), IGNORE)
    colour = next((COLOURS.index(w) for w in words if w in COLOURS), IGNORE)
    return (*sign, *time, kind, colour)


def show_retrieved(rng: random.Random, batch: Batch, scores: list[Tensor]) -> None:
    """Lets each question see what retrieval would give it: the frames that a layer scores highest, and nearly always
    one of each scene that it is about. Changes the batch's mask in place.

    `scores`: for each layer the mean query's scores (Q, B, F) of frames.
    """
    at = len(PREFIX)
    for g, ((b, _, end), start) in enumerate(zip(batch.answers, batch.starts, strict=True)):
        real = batch.frame_scene[b] >= 0
        score = rng.choice(scores[2:])[g, b].masked_fill(~real, -torch.inf)
        seen = torch.zeros_like(real)
        seen[score.topk(min(rng.randint(3, 10), int(real.sum()))).indices] = True
        if rng.random() < 0.95:
            for scene in batch.questions[g].scenes:
                mine = batch.frame_scene[b] == scene
                if not seen[mine].any():
                    seen[rng.choice(mine.nonzero().flatten().tolist())] = True
        video = seen.repeat_interleave(FRAME_TOKENS)
        batch.mask[b, 0, start:end, at : at + len(video)] = video


MANY_FRAMES = 12
"""Of a clip with more, a question that sees some sees about three to this many, as after retrieval."""


def _seen_frames(rng: random.Random, drop: float, frame_scene: np.ndarray, question: Question) -> np.ndarray:
    """Which frames the question sees: all, or with chance `drop` some, at least one of each scene it is about."""
    real = frame_scene >= 0
    if rng.random() >= drop:
        return real
    keep = rng.uniform(0.2, 0.9) if real.sum() <= MANY_FRAMES else rng.uniform(3, MANY_FRAMES) / real.sum()
    seen = real & (np.array([rng.random() for _ in frame_scene]) < keep)
    for scene in question.scenes:
        mine = np.flatnonzero(frame_scene == scene)
        if not seen[mine].any():
            seen[rng.choice(mine.tolist())] = True
    return seen


def _rivals(worlds: list[World], frame_scene: np.ndarray, b: int, question: Question) -> np.ndarray:
    """Frames of the clip's other scenes; when a clock or sign names the scene, of other clips' as well."""
    rivals = np.zeros(frame_scene.shape, bool)
    rivals[b] = (frame_scene[b] >= 0) & ~np.isin(frame_scene[b], question.scenes)
    if question.ref not in ("clock", "sign"):
        return rivals
    mine = [worlds[b].scenes[s] for s in question.scenes]
    for other, world in enumerate(worlds):
        if other == b:
            continue
        same = [any(s.clock_minute == m.clock_minute or s.sign == m.sign for m in mine) for s in world.scenes]
        rivals[other] = (frame_scene[other] >= 0) & ~np.array(same)[frame_scene[other]]
    return rivals
