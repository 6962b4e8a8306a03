"""The field's benchmarks, read as they are published; the videos are the user's to download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streamkv.evaluation.types import Suite


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark."""

    about: str
    """One line."""
    load: Callable[[Path, Path], Suite]
    """Annotations (a file, or a folder of them) and the folder of videos to a suite; SuiteError if malformed."""


BENCHMARKS: dict[str, Benchmark] = {}
