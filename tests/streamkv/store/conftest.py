from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer, postgres_programs, postgres_server
from s3_server import S3Server, s3_server
from store_samples import IDENTITY
from tiered_store import Tiered

from streamkv.store import SegmentStore


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    programs = postgres_programs()
    if programs is None:  # pip has none; .ci/run installs it, and a skip is a failure there
        pytest.skip("needs PostgreSQL: apt-get install postgresql (see .ci/run)")
    with postgres_server(programs) as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def catalog_url(request: pytest.FixtureRequest) -> str:
    """A new catalog's: SQLite in the store's folder, or for tests that are marked so (`on_both`) PostgreSQL too."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return ""
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def store(tmp_path: Path, catalog_url: str) -> Iterator[SegmentStore]:
    """A new store with a stream `cam` that nobody writes yet."""
    with SegmentStore.open(tmp_path / "root", catalog_url=catalog_url, identity=IDENTITY) as opened:
        opened.add_stream("cam", "file:cam.mp4", {"sample_fps": 0.5})
        yield opened


@pytest.fixture
def tiered(s3: S3Server, tmp_path: Path, catalog_url: str) -> Tiered:
    """A new store with a stream `cam`."""
    made = Tiered(s3, tmp_path / "root", catalog_url)
    with made.open() as store:
        store.add_stream("cam", "file:cam.mp4")
    return made
