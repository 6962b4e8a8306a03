"""A batch from log to output: what is asked goes through Ray Data, what is answered into the journal."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.batch.footage import Footage, open_footage
from pipeline.batch.journal import Journal, remove_journal
from pipeline.batch.output import check_columns, read_previous, write_output
from pipeline.batch.plan import Plan, group, make_plan
from pipeline.batch.question_log import QuestionLog, read_log
from pipeline.batch.worker import Answered, VideoAnswerer, VideoQuestions
from pipeline.cluster import NeedRay
from pipeline.model_identity import gpus, identify
from streamkv.config import PipelineConfig
from streamkv.errors import BatchError
from streamkv.question import check_question

CHUNK = 32
"""Questions about a video that are written down together: what a kill loses, for each worker."""
MAX_GROUPS_APART = 4096
"""Groups that Ray Data schedules one by one; of more, some go together."""

OnAnswers = Callable[[int, int, str], None]
"""Hears how many questions are done, of how many, and about what."""


@dataclass(frozen=True)
class Inputs:
    """What was found before anything is started."""

    log: QuestionLog
    footage: Footage
    out: Path


@dataclass(frozen=True)
class Outcome:
    """A batch that is done."""

    plan: Plan
    answers: dict[str, Answered]  # by key
    found: int  # answers that an earlier run had given

    def outcomes(self) -> Iterator[tuple[str, Answered]]:
        """The id of each row, in the log's order, and what became of it."""
        for planned in self.plan.rows:
            error = Answered("", error=planned.error)
            yield planned.row.id, self.answers[planned.asked.key] if planned.asked else error


def read_inputs(log_path: Path, footage: Path, out: Path, config: PipelineConfig) -> Inputs:
    """BatchError or StoreError for whatever can be seen to be wrong without a model."""
    if out.suffix != ".parquet":
        raise BatchError(f"--out: got {str(out)!r}, need a name that ends in .parquet")
    log = read_log(log_path, partial(check_question, max_chars=config.serve.max_question_chars))
    check_columns(log)
    read_previous(out)
    return Inputs(log, open_footage(footage, config), out)


def run_batch(
    inputs: Inputs, journal: Journal, *, workers: int, on_answers: OnAnswers, need_ray: NeedRay
) -> Outcome:
    """Answers what has no answer yet, and writes the output.

    `workers`: at once; 0: as many as the cluster has room for.

    Raises:
        ModelError, ForeignStoreError: the model cannot be loaded, or is not the one that wrote the store.
        BatchError: the output cannot be written.
    """
    config = inputs.footage.config
    identity = identify(config.model, need_ray)
    inputs.footage.check(identity)
    plan = make_plan(inputs.log.rows, inputs.footage, config, identity.fingerprint, journal.begun_s)
    questions, previous = plan.questions, read_previous(inputs.out) | journal.answers
    answers = {key: previous[key] for key in questions if key in previous}
    found = len(answers)
    on_answers(found, len(questions), "found from before" if found else "loading the model")
    todo = [planned for key, planned in questions.items() if key not in answers]
    groups = group(todo, journal.folder, most=CHUNK)
    if groups:
        need_ray()
    for video, some in _answered(groups, config, workers, journal):
        answers.update((answer.key, answer) for answer in some)
        on_answers(len(answers), len(questions), video)
    assert len(answers) == len(questions), (len(answers), len(questions))
    write_output(inputs.out, inputs.log, plan, answers, model=identity.fingerprint, preset=config.preset)
    remove_journal(inputs.out)
    return Outcome(plan, answers, found)


def _answered(
    groups: list[VideoQuestions], config: PipelineConfig, workers: int, journal: Journal
) -> Iterator[tuple[str, list[Answered]]]:
    """Answers as they come, in the journal already, with the video that they are about."""
    if not groups:
        return
    waiting = {asked.key: questions for questions in groups for asked in questions.asked}
    left = {questions.memory: len(questions.asked) for questions in groups}
    for some in _through_ray_data(groups, config, workers):
        fresh = [
            answer for answer in some if answer.key in waiting
        ]  # a worker that died may have sent some before
        journal.add(fresh)
        for answer in fresh:
            questions = waiting.pop(answer.key)
            left[questions.memory] -= 1
            if questions.memory and not left[questions.memory]:
                shutil.rmtree(questions.memory, ignore_errors=True)
        if fresh:
            yield questions.video, fresh


def _through_ray_data(
    groups: list[VideoQuestions], config: PipelineConfig, workers: int
) -> Iterator[list[Answered]]:
    import ray
    from ray.data import ActorPoolStrategy

    size = min(workers or _room(gpus(config.model)), len(groups))
    with _settings():
        rows = [{"questions": questions.to_json()} for questions in groups]
        dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_GROUPS_APART))
        dataset = dataset.map_batches(
            VideoAnswerer,
            fn_constructor_args=(config, CHUNK),
            batch_size=1,
            # One task at a time for each worker: none waits behind a long video while another worker idles.
            compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=gpus(config.model),
        )
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            for text in batch["answers"]:
                yield [Answered(**answer) for answer in json.loads(text)]


@contextmanager
def _settings() -> Iterator[None]:
    """Ray Data's, for a batch: each chunk is handed on at once, and there are no bars but ours."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with DataContext.current(context):
        yield


def _room(num_gpus: int) -> int:
    """Workers that the cluster holds."""
    import ray

    found: dict[str, Any] = ray.cluster_resources()
    return max(1, int(found.get("GPU", 0) if num_gpus else found.get("CPU", 1)))
