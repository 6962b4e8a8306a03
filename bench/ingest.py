"""How much of the bare model's speed the whole system keeps.

    python -m bench.ingest --streams 1,8 --json

The same town-square videos go through both, by turns: the bare model in one loop (decode, tower, segments, prefill; no
Ray, no store), and the whole system (decoder and tower in one actor, prefill in another, durable files, catalog). The
bare loop runs with one torch thread and with one for each core; the faster of the two is what the system is held
against. Starting Ray and loading models is not counted: both are warm.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.machine import Figure, machine, report, table
from pipeline.settings import load_settings
from pipeline.worlds import write_world
from streamkv.config import PipelineConfig
from streamkv.cores import num_cores

STAGES = ("decode", "encode", "segment", "ship", "prefill", "write", "commit")
WARM_UP_MINUTES = 0.3
POLL_S = 0.1


@dataclass(frozen=True)
class Run:
    """One pass over all videos of a case."""

    frames: int
    seconds: float
    totals: dict[str, float]  # of each stage, and counts

    @property
    def fps(self) -> float:
        return self.frames / self.seconds


class BareModel:
    """The model in one loop, as simply as it can be written."""

    def __init__(self, config: PipelineConfig, threads: int) -> None:
        from streamkv.engine import Engine
        from streamkv.models import load_model

        self._config = config
        self._threads = threads
        self._model = load_model(config.model)
        self._engine = Engine(self._model, config.method)

    def run(self, videos: Sequence[Path]) -> Run:
        import torch

        from actors.timing import StageClock

        torch.set_num_threads(self._threads)
        clock, frames = StageClock(), 0
        begun = time.perf_counter()
        for video in videos:
            frames += self._run_one(video, clock)
        return Run(frames, time.perf_counter() - begun, clock.totals())

    def _run_one(self, video: Path, clock: Any) -> int:
        from streamkv.segmentation import Segmenter
        from streamkv.video import sample_frames

        source = self._config.source
        window, segmenter = self._engine.open_window(), Segmenter(self._config.method.segment)
        frames = iter(sample_frames(str(video), source.sample_fps))
        count = 0
        while True:
            with clock.time("decode"):
                batch = [f for f in (next(frames, None) for _ in range(source.batch_frames)) if f is not None]
            if not batch:
                break
            with clock.time("encode"):
                features = self._model.encode_frames([frame.rgb for frame in batch])
            for frame, features_ND in zip(batch, features, strict=True):
                with clock.time("segment"):
                    closed = segmenter.push(features_ND, frame.start_s, frame.end_s)
                if closed is not None:
                    with clock.time("prefill"):
                        self._engine.prefill(window, closed)
            count += len(batch)
        last = segmenter.flush()
        if last is not None:
            with clock.time("prefill"):
                self._engine.prefill(window, last)
        return count


class WholeSystem:
    """The ingest plane on a Ray of its own."""

    def __init__(self, config: PipelineConfig) -> None:
        from actors.spawn import ensure_supervisor

        self._supervisor = ensure_supervisor(config)
        self._wait(lambda: self._call("state").phase != "starting")
        state = self._call("state")
        if state.phase != "ready":
            raise SystemExit(f"the ingest plane does not start: {state.detail}")

    def run(self, videos: Sequence[Path]) -> Run:
        before = self._call("stats")
        begun = time.perf_counter()
        for i, video in enumerate(videos):
            self._call("add_stream", f"s{i}", str(video))
        self._wait(
            lambda: self._call("stats")["active_streams"] == 0
        )  # cheap: asking must not cost what it measures
        seconds = time.perf_counter() - begun
        views = self._call("streams")
        assert all(v.state == "done" for v in views), [v.detail for v in views]
        time.sleep(1.5)  # the workers' last counts arrive with the supervisor's next look
        after = self._call("stats")
        for view in views:
            self._call("remove_stream", view.stream_id)
        totals = {name: after[name] - before.get(name, 0.0) for name in after}
        return Run(sum(v.num_source_frames for v in views), seconds, totals)

    def _call(self, method: str, *args: Any) -> Any:
        import ray

        return ray.get(getattr(self._supervisor, method).remote(*args), timeout=600)

    def _wait(self, condition: Any) -> None:
        while not condition():
            time.sleep(POLL_S)


def draw_videos(folder: Path, case: int, total_minutes: float) -> list[Path]:
    """`case` videos that together last about as long, whatever the case."""
    minutes = total_minutes / case
    worlds = [
        write_world(folder, f"{case}-{i}", seed=1000 * case + i, minutes=minutes, questions=1)
        for i in range(case)
    ]
    return [world.video for world in worlds]


Rounds = list[dict[str, Run]]
"""Each is one run of `bare_1` (one torch thread), `bare_n` (one a core) or both, and one of `system`."""


def measure(config: PipelineConfig, cases: Sequence[int], minutes: float, rounds: int) -> dict[int, Rounds]:
    """For each case, rounds of {bare_1, bare_n, system}."""
    from pipeline.cluster import local_ray, make_temp

    work = Path(tempfile.mkdtemp(prefix="bench-"))
    cores = num_cores()
    config = replace(config, store=replace(config.store, root=str(work / "store")))
    try:
        videos = {case: draw_videos(work, case, minutes) for case in cases}
        warm_up = [write_world(work, "warm", seed=1, minutes=WARM_UP_MINUTES, questions=1).video]
        with local_ray(config, make_temp()):
            system = WholeSystem(config)
            bare = {"bare_1": BareModel(config, 1), "bare_n": BareModel(config, cores)}
            system.run(warm_up)
            for model in bare.values():
                model.run(warm_up)
            found: dict[int, Rounds] = {case: [] for case in cases}
            for _ in range(rounds):
                for case in cases:
                    runs = {name: model.run(videos[case]) for name, model in bare.items()}
                    runs["system"] = system.run(videos[case])
                    found[case].append(runs)
                    _progress(case, runs)
            return found
    finally:
        shutil.rmtree(work, ignore_errors=True)


def figures(found: dict[int, Rounds]) -> list[Figure]:
    out = []
    for case, rounds in found.items():
        best, system = [_bare_fps(r) for r in rounds], [_system_fps(r) for r in rounds]
        ratios = [s / b for s, b in zip(system, best, strict=True)]
        segments = [r["system"].totals["segments"] for r in rounds]
        rpcs = [
            (r["system"].totals["segments"] + r["system"].totals["committed_segments"]) / n
            for r, n in zip(rounds, segments, strict=True)
        ]
        shipped = [r["system"].totals["shipped_bytes"] / n for r, n in zip(rounds, segments, strict=True)]
        out += [
            Figure(f"system_over_bare_{case}", "ratio", tuple(ratios)),
            Figure(f"system_fps_{case}", "frames/s", tuple(system)),
            Figure(f"bare_fps_{case}", "frames/s", tuple(best)),
            Figure(f"rpcs_per_segment_{case}", "calls", tuple(rpcs), "ingest and commit; polls not counted"),
            Figure(f"shipped_bytes_per_segment_{case}", "bytes", tuple(shipped), "features, put once"),
        ]
    for case in [case for case in found if case > 1 and 1 in found]:
        for name, fps in (("system", _system_fps), ("bare", _bare_fps)):
            pairs = zip(found[case], found[1], strict=True)
            against = tuple(fps(many) / fps(one) for many, one in pairs)
            out.append(Figure(f"{name}_{case}_over_1", "ratio", against))
    return out


def _bare_fps(runs: dict[str, Run]) -> float:
    """The faster one's."""
    return max(runs["bare_1"].fps, runs["bare_n"].fps)


def _system_fps(runs: dict[str, Run]) -> float:
    return runs["system"].fps


def stages(found: dict[int, Rounds]) -> dict[str, dict[str, dict[str, float]]]:
    """Processor milliseconds a frame in each stage, of the last round."""
    out = {}
    for case, rounds in found.items():
        bare = max((rounds[-1][name] for name in ("bare_1", "bare_n")), key=lambda run: run.fps)
        out[str(case)] = {"bare": _per_frame(bare), "system": _per_frame(rounds[-1]["system"])}
    return out


def _per_frame(run: Run) -> dict[str, float]:
    return {stage: round(1000 * run.totals.get(f"{stage}_cpu_s", 0.0) / run.frames, 3) for stage in STAGES}


def _progress(case: int, runs: dict[str, Run]) -> None:
    text = ", ".join(f"{name} {run.fps:.1f}" for name, run in runs.items())
    print(f"{case} streams, frames/s: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", default="1,8", help="cases, e.g. 1,8")
    parser.add_argument(
        "--minutes", type=float, default=48.0, help="of video in each case, over all its streams"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", default="local")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings a.b=c")
    given = parser.parse_args(arguments)
    cases = [int(case) for case in given.streams.split(",")]
    about = machine()
    found = measure(load_settings(given.config, given.overrides), cases, given.minutes, given.rounds)
    per_frame = stages(found)
    report(figures(found), about, as_json=given.json, stages_cpu_ms_per_frame=per_frame)
    if not given.json:
        for case, sides in per_frame.items():
            rows = [(stage, sides["bare"][stage], sides["system"][stage]) for stage in STAGES]
            table(f"CPU ms a frame, {case} streams", rows, ("bare", "system"))


if __name__ == "__main__":
    main()
