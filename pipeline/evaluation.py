"""Suites x variants over Ray: each video is encoded once, each pair is one task, and what is done stays done.

A finished pair is a Parquet file of its answers, named for everything that it depends on. Running the same command
again takes up where the last one stopped.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster import NeedRay
from pipeline.model_identity import gpus, identify, load_quietly
from pipeline.settings import load_settings
from streamkv.config import CONFIG_ROOT, ModelConfig, PipelineConfig, preset_names
from streamkv.errors import ConfigError, StreamKVError
from streamkv.evaluation.report import read_answers, write_answers
from streamkv.evaluation.runner import AnswerRow, Variant, encoded, run_video, unanswered
from streamkv.evaluation.types import EvalVideo, Suite

if TYPE_CHECKING:
    from streamkv.models.base import VideoLLM

ORACLE = "oracle"
"""Not a preset: `streamkv` that is handed the right segments, and reads them whole."""
CONTROLS = ("recent", "full")
"""Printed beside every score."""
REVISION = 2
"""Of what an answer's row means; a new one makes every pair run again."""

OnPart = Callable[[str, int, int], None]
"""Hears what was finished, how many are, and how many there are."""


@dataclass(frozen=True)
class Part:
    """One variant over one video."""

    suite: Suite
    video: EvalVideo
    variant: Variant
    file: Path


@dataclass(frozen=True)
class Problem:
    """A video that could not be asked about; its questions count as wrong."""

    suite: str
    video: str
    message: str


def make_variants(
    config: str, overrides: Sequence[str], presets: Sequence[str], own: Sequence[str]
) -> list[Variant]:
    """Under the configuration of that name: presets, the controls, then `NAME: a.b=c ...` ones of the user's.

    Raises:
        ConfigError: an unknown preset, a variant without a name, or a setting that is wrong.
    """
    variants = []
    for name in dict.fromkeys([*presets, *CONTROLS]):
        if name != ORACLE and name not in preset_names():
            raise ConfigError(f"--preset: unknown {name!r}; known: {', '.join([*preset_names(), ORACLE])}")
        if name == ORACLE:
            loaded = load_settings(
                config, [*overrides, "preset=streamkv", "method.retrieve.policy=everything"]
            )
        else:
            loaded = load_settings(config, [*overrides, f"preset={name}"])
        variants.append(_variant(name, loaded, oracle=name == ORACLE))
    for text in own:
        name, colon, settings = text.partition(":")
        if not colon or not name.strip():
            raise ConfigError(
                f"--variant: got {text!r}, need 'NAME: a.b=c ...', such as 'few: method.n_local=9'"
            )
        variants.append(_variant(name.strip(), load_settings(config, [*overrides, *shlex.split(settings)])))
    return variants


def _variant(name: str, settings: PipelineConfig, *, oracle: bool = False) -> Variant:
    store = settings.store
    return Variant(name, settings.method, oracle=oracle, codec=store.codec, ageing=tuple(store.ageing))


def ablations(config: str, overrides: Sequence[str]) -> list[Variant]:
    """The variants of configs/evaluation/ablations.yaml."""
    from omegaconf import OmegaConf

    rows = OmegaConf.load(CONFIG_ROOT / "evaluation" / "ablations.yaml")
    return [
        _variant(str(name), load_settings(config, [*overrides, "preset=streamkv", *settings]))
        for name, settings in rows.items()
    ]


def plan(
    config: PipelineConfig,
    suites: Iterable[Suite],
    variants: Sequence[Variant],
    out: Path,
    need_ray: NeedRay,
) -> list[Part]:
    """Every pair, with the file that its answers go to."""
    fingerprint = identify(config.model, need_ray).fingerprint
    parts = []
    for suite in suites:
        for video in suite.videos():
            asked = [asdict(q) for q in video.questions]
            for variant in variants:
                of = [REVISION, fingerprint, config.source.sample_fps, asdict(variant)]
                digest = hashlib.sha256(json.dumps([of, asked, suite.max_new_tokens]).encode()).hexdigest()
                name = "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{video.id}.{variant.name}")
                file = out / "parts" / suite.name / f"{name}.{digest[:12]}.parquet"
                parts.append(Part(suite, video, variant, file))
    return parts


def run(
    config: PipelineConfig,
    parts: Sequence[Part],
    *,
    seed: int,
    cache: Path,
    workers: int,
    on_part: OnPart,
    need_ray: NeedRay,
) -> tuple[list[AnswerRow], list[Problem]]:
    """All answers, in the order of the parts, and the videos that failed."""
    todo = [part for part in parts if not part.file.is_file()]
    if todo:
        need_ray()
    import ray

    prepare, answer = _task(config, _prepare), _task(config, _answer_part)
    settings = _as_key(config), config.source.sample_fps, str(cache)
    videos: dict[tuple[str, str], Any] = {}
    done, failed = len(parts) - len(todo), {}
    if done:
        on_part("found from before", done, len(parts))
    waiting: dict[Any, Part] = {}
    queue = iter(todo)
    while True:
        for part in _take(queue, workers - len(waiting)):
            key = part.suite.name, part.video.id
            if key not in videos:
                videos[key] = prepare.remote(part.suite, part.video, *settings)
            waiting[answer.remote(part, seed, videos[key], *settings)] = part
        if not waiting:
            break
        ready, _ = ray.wait(list(waiting), num_returns=1)
        part = waiting.pop(ready[0])
        if message := ray.get(ready[0]):
            failed[part.suite.name, part.video.id] = message
        done += 1
        on_part(f"{part.suite.name} {part.video.id} {part.variant.name}", done, len(parts))
    rows: list[AnswerRow] = []
    for part in parts:
        message = failed.get((part.suite.name, part.video.id))
        answered = _unanswered(part, seed, message) if message else read_answers(part.file)
        rows += [replace(row, variant=part.variant.name) for row in answered]
    return rows, [Problem(suite, video, message) for (suite, video), message in failed.items()]


def _take(parts: Iterator[Part], count: int) -> Iterator[Part]:
    for _, part in zip(range(count), parts, strict=False):
        yield part


def _task(config: PipelineConfig, function: Callable[..., Any]) -> Any:
    """What runs the model: where it is, with the GPU if it wants one, which Ray hides from who does not ask."""
    import ray

    return ray.remote(num_cpus=1, num_gpus=gpus(config.model), max_retries=1)(function)


def _as_key(config: PipelineConfig) -> str:
    return json.dumps(asdict(config.model))


@lru_cache(maxsize=1)
def _model(model_config: str) -> VideoLLM:
    import torch

    config = ModelConfig(**json.loads(model_config))
    torch.set_num_threads(max(1, config.threads))
    return load_quietly(config)


def _prepare(suite: Suite, video: EvalVideo, model_config: str, sample_fps: float, cache: str) -> str:
    """Makes and encodes the video; says what went wrong, or nothing."""
    try:
        encoded(_model(model_config), suite.prepare(video), sample_fps, Path(cache))
    except StreamKVError as exc:
        return f"{type(exc).__name__}: {exc}"
    return ""


def _answer_part(
    part: Part, seed: int, problem: str, model_config: str, sample_fps: float, cache: str
) -> str:
    """Writes the part's answers; `problem` is its video's, and then there is nothing to do."""
    if problem:
        return problem
    model = _model(model_config)
    seen = encoded(model, part.suite.prepare(part.video), sample_fps, Path(cache))
    rows = run_video(
        model,
        part.variant,
        part.video,
        seen,
        suite=part.suite.name,
        seed=seed,
        max_new_tokens=part.suite.max_new_tokens,
    )
    write_answers(rows, part.file)
    return ""


def _unanswered(part: Part, seed: int, message: str) -> list[AnswerRow]:
    names = part.suite.name, part.variant.name, seed, part.video.id
    return [unanswered(*names, question, message) for question in part.video.questions]
