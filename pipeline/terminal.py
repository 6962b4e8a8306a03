"""How the command line speaks: results to stdout, progress and errors to stderr, exit statuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

FAILED, NOT_RUNNING, INTERRUPTED = 1, 3, 130
"""Exit statuses. 2 is Typer's own, for a command line that it cannot read."""

WIDE = 120
"""Columns of a table that goes to a file or a pipe, where nobody says how wide it may be."""

out = Console(width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True)


def print_json(value: Any) -> None:
    """Exactly one value, for programs."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def fail(message: str, *, as_json: bool, kind: str = "Error", status: int = FAILED) -> NoReturn:
    """Says what went wrong and ends."""
    if as_json:
        print_json({"error": {"type": kind, "message": message}})
    else:
        err.print(f"[bold red]error[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(status)


@contextmanager
def friendly(*, as_json: bool) -> Iterator[None]:
    """Turns what a user can cause into a message and an exit status; anything else keeps its traceback."""
    from pipeline.client import NotRunningError, ServerError
    from pipeline.launch import LaunchError
    from streamkv.errors import StreamKVError

    try:
        yield
    except ServerError as exc:
        fail(str(exc), as_json=as_json, kind=exc.kind)
    except NotRunningError as exc:
        fail(str(exc), as_json=as_json, kind="NotRunningError", status=NOT_RUNNING)
    except (LaunchError, StreamKVError) as exc:
        fail(str(exc), as_json=as_json, kind=type(exc).__name__)
    except KeyboardInterrupt:
        fail("interrupted", as_json=as_json, kind="Interrupted", status=INTERRUPTED)


class Phases:
    """One line that says what is going on, and for how long; plain lines where stderr is no terminal."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._status = err.status(title)

    def __enter__(self) -> Phases:
        if err.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._status.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves its line to something else that moves, such as bars."""
        self._status.stop()
        yield
        self.__enter__()

    def __call__(self, phase: str) -> None:
        if err.is_terminal:
            self._status.update(f"{self._title}: {escape(phase)}")
        else:
            err.print(f"{self._title}: {phase}", highlight=False)


def bars() -> Progress:
    """Progress bars on stderr, which keeps stdout clean."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=err,
        disable=not err.is_terminal,
    )


def shares_of(progress: Progress, task: TaskID) -> Callable[[float], None]:
    """Takes the share of the task that is done."""

    def tell(share: float) -> None:
        progress.update(task, completed=share)

    return tell


def counts_of(progress: Progress, task: TaskID) -> Callable[[int, int], None]:
    """Takes how much of the task is done, and how much there is."""

    def tell(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    return tell


def clock(seconds: float) -> str:
    """`4:07`, or `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: float) -> str:
    """`9.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
