"""What all tests share: unit tests stay without a cluster, and a skip needs a GPU as its reason."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# How long an example takes is not its rightness.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")
# Set before anything imports torch or ray: two cores are shared by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A shell that runs tests in the background has Ctrl-C ignored, and so would all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a Ray come first: they take longest, and a worker that has them is the last to end."""
    items.sort(
        key=lambda item: (
            RAY_GROUPS.index(group) if (group := _group(item.nodeid)) in RAY_GROUPS else len(RAY_GROUPS)
        )
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers files stay whole; one has all that start servers, another those of commands with a Ray of
    their own.

    More Rays that start at once on two cores take longer than one after the other, and sometimes longer than Ray waits.
    """
    from xdist.scheduler import LoadScopeScheduling

    class FewRaysAtATime(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False
    return FewRaysAtATime(config, log)


RAY_GROUPS = ("servers", "commands")


def _group(nodeid: str) -> str:
    """What a worker takes as a whole: the test's file, or all files with tests that start servers, or commands."""
    path = nodeid.partition("::")[0]
    if not _starts_ray(path):
        return path
    return "commands" if Path(path).name in ("test_batch_command.py", "test_evaluation.py") else "servers"


@cache
def _starts_ray(path: str) -> bool:
    return "mark.ray" in (Path(__file__).parents[1] / path).read_text()


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
