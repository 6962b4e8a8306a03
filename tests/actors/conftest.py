from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cameras import Camera, CameraWorkers
from channel import LIVE
from clips import steady, write_clip
from live_servers import camera
from stage import Stage, wait_until

from actors import live_feed
from actors.supervisor import Supervisor
from streamkv import live
from streamkv.config import PipelineConfig, StoreConfig


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "store")
    yield stage
    for supervisor in stage.supervisors:
        supervisor.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that is away is tried again soon."""
    monkeypatch.setattr(live, "BACKOFF_S", (0.05, 0.1, 0.2))
    monkeypatch.setattr(live_feed, "PAUSE_S", 0.3)


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Twelve seconds of transport stream."""
    return write_clip(tmp_path_factory.mktemp("ts") / "clip.ts", steady(12)).read_bytes()


@pytest.fixture
def cam(footage: bytes) -> Iterator[tuple[Camera, str]]:
    sender = Camera(footage)
    with camera(sender) as port:
        yield sender, f"tcp://127.0.0.1:{port}"
        sender.cut()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[[], tuple[Supervisor, CameraWorkers]]]:
    opened: list[Supervisor] = []

    def make() -> tuple[Supervisor, CameraWorkers]:
        workers = CameraWorkers(tmp_path / "store", None)
        config = PipelineConfig(store=StoreConfig(root=str(tmp_path / "store")), source=LIVE)
        opened.append(Supervisor(config, workers))
        wait_until(lambda: opened[-1].state().phase == "ready")
        return opened[-1], workers

    yield make
    for supervisor in opened:
        supervisor.shutdown()
