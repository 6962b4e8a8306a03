from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_samples import IDENTITY

from streamkv.store import SegmentStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SegmentStore]:
    """A new store with a stream `cam` that nobody writes yet."""
    with SegmentStore.open(tmp_path / "root", identity=IDENTITY) as opened:
        opened.add_stream("cam", "file:cam.mp4", {"sample_fps": 0.5})
        yield opened
