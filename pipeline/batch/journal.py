"""The answers of a batch under way: a line each, on disk before it counts, so that a kill loses none.

OUT.work/journal.jsonl    answers, one JSON object a line; a line that a kill cut off is dropped
OUT.work/begun            when the batch began, in seconds since 1970: what "now" is to its questions, resumed or not
OUT.work/lock             held by the one process that works there
OUT.work/memories/        what the model has seen of each video
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pipeline.batch.plan import MEMORIES, TRIES
from pipeline.batch.worker import PARTIAL, Answered
from streamkv.errors import BatchError
from streamkv.store import durable


class Journal:
    """Use `open_journal`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "journal.jsonl"
        self.answers = self._read()  # by key
        self.begun_s = self._begin()  # seconds since 1970

    def add(self, answers: Sequence[Answered]) -> None:
        """Durably. One with an error is not kept: the next run tries it again."""
        done = [answer for answer in answers if answer.error is None]
        with self._file.open("a") as file:
            file.writelines(json.dumps(asdict(answer)) + "\n" for answer in done)
            file.flush()
            os.fsync(file.fileno())
        self.answers.update((answer.key, answer) for answer in done)

    def _begin(self) -> float:
        """Now, or when an earlier run did."""
        begun, temp = self.folder / "begun", self.folder / f"{uuid.uuid4().hex}.tmp"
        if not begun.is_file():
            now = repr(time.time()).encode()
            durable.write_temp(temp, lambda file: file.write(now))
            durable.publish(temp, begun)
        return float(begun.read_text())

    def _read(self) -> dict[str, Answered]:
        raw = self._file.read_bytes() if self._file.is_file() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(self._file, len(whole))  # else the next line would go on with the one that was cut
        try:
            answers = [Answered(**json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as exc:
            raise BatchError(
                f"{self._file}: damaged, or of another release ({exc}); remove {self._file.parent} to begin anew"
            ) from exc
        return {answer.key: answer for answer in answers}


@contextmanager
def open_journal(out: Path) -> Iterator[Journal]:
    """The journal of a batch that writes `out`, for as long as the block runs.

    BatchError when another process has it, or its folder cannot be written.
    """
    folder = work_folder(out)
    try:
        durable.make_folder(folder.absolute())
        lock = (folder / "lock").open("w")
    except OSError as exc:
        raise BatchError(f"--out: cannot write beside {out} ({exc.strerror}); choose another place") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise BatchError(
                f"--out: another batch is writing {out}; wait for it, or choose another"
            ) from exc
        journal = Journal(folder)
        for left in (folder / TRIES, *(folder / MEMORIES).glob(f"*{PARTIAL}")):  # of workers that were killed
            shutil.rmtree(left, ignore_errors=True)
        (folder / TRIES).mkdir()
        try:
            yield journal
        finally:
            if not journal.answers and not any((folder / MEMORIES).glob("*")):  # nothing to go on with
                remove_journal(out)


def work_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.work")


def remove_journal(out: Path) -> None:
    """Once `out` holds all of it."""
    shutil.rmtree(work_folder(out), ignore_errors=True)
