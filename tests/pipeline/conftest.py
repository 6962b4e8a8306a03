"""The session's one live server, and films for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import steady, write_clip
from live import SETTINGS, LiveServer
from tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`short.mp4` of 10 s, `long.mp4` of 100 s, `cut.mp4` that ends in its middle."""
    folder = tmp_path_factory.mktemp("films")
    write_clip(folder / "short.mp4", steady(10))
    write_clip(folder / "long.mp4", steady(100))
    whole = write_clip(folder / "whole.mp4", steady(20), movflags="faststart").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("no video\n" * 50)
    (folder / "empty.mp4").touch()
    write_clip(folder / "one.mp4", [0.0])
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[LiveServer]:
    """Up for the whole session."""
    live = LiveServer(tmp_path_factory.mktemp("home"), tiny_checkpoint, *SETTINGS)
    try:
        live.up()
        yield live
    finally:
        live.discard()
