"""What all tests share: unit tests stay without a cluster, and a skip needs a GPU as its reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Set before anything imports torch or ray: two cores are shared by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
sys.path.insert(
    0, str(Path(__file__).parent / "streamkv")
)  # tiny.py: the tiny model, for the actors' tests too


@pytest.fixture(autouse=True)
def _no_cluster_in_unit_tests(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """`ray.init` raises unless the test is marked `ray`."""
    if request.node.get_closest_marker("ray") is None:
        try:
            import ray
        except ImportError:
            yield
            return

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("a unit test started Ray; mark it `ray` or use the plain class")

        monkeypatch.setattr(ray, "init", refuse)
    yield


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (`-n 2 --dist loadgroup`) files stay whole, and one worker has all that start a Ray.

    Two Rays that start at once on two cores take more than twice as long, and sometimes longer than Ray waits.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)  # the longest group is begun first
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Lists skips that no missing GPU explains; `pytest_sessionfinish` makes them fail the run."""
    for where, reason in _unexplained(terminalreporter):
        terminalreporter.write_line(f"skipped without need: {where}: {reason}", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With STREAMKV_STRICT_SKIPS=1 (as .ci/run sets it) a skip for any reason but a GPU is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("STREAMKV_STRICT_SKIPS") == "1" and reporter is not None and _unexplained(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _unexplained(terminalreporter: Any) -> list[tuple[str, str]]:
    skips = []
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "gpu" not in reason.lower():
            skips.append((report.nodeid, reason))
    return skips
