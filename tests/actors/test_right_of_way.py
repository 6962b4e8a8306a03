"""Ingest waits while a question is under way, for a while, and whatever becomes of who answers it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from actors import right_of_way
from actors.right_of_way import GiveWay, RightOfWay, name_of
from actors.share import Share
from streamkv.config import IngestConfig, ModelConfig, PipelineConfig, StoreConfig

HOLDER = """
import sys, time
from pathlib import Path
from actors.right_of_way import RightOfWay

RightOfWay("gpu", Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(300)
"""


def ways(folder: Path, count: int) -> list[RightOfWay]:
    return [RightOfWay("gpu", folder) for _ in range(count)]


def test_it_is_taken_until_the_last_gives_it_back(tmp_path: Path) -> None:
    one, other, ingest, beside = ways(tmp_path, 4)
    assert not ingest.is_taken
    one.take()
    other.take()
    other.take()
    assert ingest.is_taken
    assert beside.is_taken
    one.give_back()
    assert ingest.is_taken
    other.give_back()
    assert not ingest.is_taken
    other.give_back()
    assert not RightOfWay("another", tmp_path).is_taken


def test_who_only_looks_keeps_nobody_from_it(tmp_path: Path) -> None:
    answers, ingest = ways(tmp_path, 2)
    assert not ingest.is_taken
    answers.take()
    assert ingest.is_taken


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    (ingest,) = ways(tmp_path, 1)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"
        assert ingest.is_taken
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert not ingest.is_taken


def test_without_a_file_nobody_waits(tmp_path: Path) -> None:
    for way in (RightOfWay(), RightOfWay("gpu", tmp_path / "no such folder")):
        way.take()
        assert not way.is_taken
        way.give_back()


class Clock:
    """Goes only while somebody sleeps."""

    def __init__(self) -> None:
        self.s = 0.0

    def monotonic(self) -> float:
        return self.s

    def sleep(self, seconds: float) -> None:
        self.s += seconds


def test_one_piece_of_work_waits_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(right_of_way, "MOST_S", 0.05)
    answers, ingest = ways(tmp_path, 2)
    answers.take()
    done = threading.Event()
    threading.Thread(target=lambda: (GiveWay(ingest, Share(0.5))(), done.set()), daemon=True).start()
    assert done.wait(60)
    assert ingest.is_taken


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_ingest_has_its_share_under_any_number_of_questions(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(right_of_way, "time", clock)
    answers, ingest = ways(tmp_path, 2)
    answers.take()
    give_way = GiveWay(ingest, Share(share, clock.monotonic))
    worked = 0.0
    while clock.s < 1000:
        give_way()
        clock.sleep(0.1)
        worked += 0.1
    assert worked / clock.s == pytest.approx(1 - share, abs=0.02)


def test_who_shares_a_device_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(root: str, device: str, seen: str) -> str:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        store, model = StoreConfig(root=str(tmp_path / root)), ModelConfig(device=device)
        return name_of(PipelineConfig(store=store, model=model, ingest=IngestConfig(give_way=0.5)))

    assert name("a", "cuda", "0") == name("a/../a", "cuda", "0") != name("a", "cuda", "1")
    assert name("a", "cuda", "0") != name("b", "cuda", "0")
    assert name("a", "cpu", "0") == name("a", "cpu", "1"), "Ray hides GPUs from who does not ask for one"
    assert name_of(PipelineConfig()) == "", "by default nobody waits, and there is no file"
