"""The field's benchmarks, read as they are published; the videos are the user's to download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streamkv.evaluation.benchmarks.ovobench import load_ovobench
from streamkv.evaluation.benchmarks.rekv import rekv_loader
from streamkv.evaluation.benchmarks.streamingbench import load_streamingbench
from streamkv.evaluation.types import Suite


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark."""

    about: str
    """One line."""
    load: Callable[[Path, Path], Suite]
    """Annotations (a file, or a folder of them) and the folder of videos to a suite; SuiteError if malformed."""


BENCHMARKS: dict[str, Benchmark] = {
    "streamingbench": Benchmark(
        "StreamingBench: real-time, omni, sequential and proactive questions", load_streamingbench
    ),
    "ovobench": Benchmark(
        "OVO-Bench: backward tracing, real-time perception, forward responding", load_ovobench
    ),
    "rvs-ego": Benchmark(
        "RVS-Ego: open questions in the middle of Ego4D videos; for a judge",
        rekv_loader("rvs-ego", timed=True),
    ),
    "rvs-movie": Benchmark(
        "RVS-Movie: open questions in the middle of films; for a judge", rekv_loader("rvs-movie", timed=True)
    ),
    "mlvu": Benchmark("MLVU: multiple choice over long videos", rekv_loader("mlvu")),
    "egoschema": Benchmark(
        "EgoSchema: multiple choice of five; answers mostly unpublished",
        rekv_loader("egoschema", null_answers=True),
    ),
    "qaego4d": Benchmark("QAEgo4D: multiple choice with the moment of the evidence", rekv_loader("qaego4d")),
    "rekv": Benchmark(
        "any file in ReKV's or StreamKV's form (ActivityNet-QA, CG-Bench, your own)",
        rekv_loader("rekv", null_answers=True),
    ),
}
