"""The command line of benchmarks that start a server and send it what ffmpeg makes."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.machine import Figure, machine, report

Measure = Callable[[str, Sequence[str], int, float, Path], list[Figure]]
"""Of the configuration's name, settings, streams, minutes, and a folder to work in."""


def run(
    prog: str,
    doc: str,
    measure: Measure,
    arguments: Sequence[str] | None,
    *,
    streams: int,
    minutes: float,
    of_what: str = "",
) -> None:
    """Measures as the arguments say, by default so many streams and minutes `of_what`, and prints the figures."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=doc.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=streams, help=f"(default {streams})")
    parser.add_argument("--minutes", type=float, default=minutes, help=f"{of_what} (default {minutes:g})")
    parser.add_argument("--config", default="local")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("overrides", nargs="*", metavar="SETTING", help="settings a.b=c")
    given = parser.parse_args(arguments)
    if shutil.which("ffmpeg") is None:
        parser.error("ffmpeg is not there; install it (Debian: apt-get install ffmpeg)")
    facts = machine()
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        figures = measure(given.config, given.overrides, given.streams, given.minutes, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(figures, facts, as_json=given.json)
