"""A whole server goes over to another model: whatever stops it on the way, no store is lost and it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import launch
from pipeline.cli import app
from pipeline.home import Home, ServerRecord
from pipeline.keys import KeyFile
from pipeline.settings import load_settings
from pipeline.upgrade import Upgrade
from streamkv.config import PipelineConfig
from streamkv.errors import UpgradeError
from streamkv.store import ModelIdentity, SegmentStore
from streamkv.types import Geometry
from streamkv.watches import Watch

GEOMETRY = Geometry(num_layers=3, num_heads=8, num_kv_heads=2, head_dim=5, hidden_dim=40, frame_tokens=7)
NEW = ["model.path=new"]
PORT = 8123
RTSP = "rtsp://bob:hunter2@camera/live"


class Stopped(BaseException):
    """The command is killed."""


def identity(model: str) -> ModelIdentity:
    return ModelIdentity(model, GEOMETRY, "float32")


def identify(config: PipelineConfig) -> ModelIdentity:
    return identity(config.model.path)


class FakeServers:
    """Servers that have ingested whatever is registered as soon as they start."""

    def __init__(self) -> None:
        self.up: dict[Path, ServerRecord] = {}
        self.started: list[tuple[Path, str, tuple[str, ...]]] = []
        self.broken: set[str] = set()  # streams that fail

    def running(self, home: Home) -> ServerRecord | None:
        return self.up.get(home.root)

    def start(
        self, home: Home, config: str, overrides: Sequence[str] = (), *, on_phase: Callable[[str], None]
    ) -> launch.Started:
        self.started.append((home.root, config, tuple(overrides)))
        settings = dict(text.split("=") for text in overrides)
        with SegmentStore.open(home.store, identity=identity(settings["model.path"])) as store:
            for record in store.records():
                if record.state == "registered":
                    store.set_state(record.stream_id, "failed" if record.name in self.broken else "done")
        url = f"http://127.0.0.1:{int(settings['serve.port']) or 9999}"
        self.up[home.root] = ServerRecord(1, 0.0, "ready", url=url, config=config, ray_temp="x")
        return launch.Started(self.up[home.root], was_up=False)

    def stop(self, home: Home) -> bool:
        return self.up.pop(home.root, None) is not None


@pytest.fixture(autouse=True)
def _settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than all else that these tests do."""
    monkeypatch.setattr("pipeline.upgrade.load_settings", read_once)


@cache
def read_once(name: str, overrides: tuple[str, ...]) -> PipelineConfig:
    return load_settings(name, overrides)


@pytest.fixture
def servers() -> FakeServers:
    return FakeServers()


@pytest.fixture
def home(tmp_path: Path, servers: FakeServers) -> Home:
    """With a server of the model `old`, two archives, a camera and a key."""
    made = Home(tmp_path / "home")
    with SegmentStore.open(made.store, identity=identity("old")) as store:
        store.add_stream("film", "a.mp4", {"guidance": "signs", "keep_ratio": 0.3}, tenant="acme")
        store.add_stream("held", "https://x/b.mp4?token=hunter2", {"preset": "rekv"})
        store.add_stream("cam", RTSP, {"is_live": True})
        store.hold("held", "case 4711")
        store.watches.add(Watch("bus", "cam", "is there a bus?", url="http://a/b", secret="whsec_x"), 9)
        for name in ("film", "held"):
            store.set_state(name, "done")
    KeyFile(made.store).add("alice")
    (made.store / "pools.json").write_text('{"encode": 2}')
    servers.start(made, "local", ["model.path=old", f"serve.port={PORT}"], on_phase=str)
    servers.started.clear()
    return made


def run(home: Home, servers: FakeServers, settings: Sequence[str] = NEW, **more: Any) -> Any:
    tell = more.pop("tell", str)
    wait = more.pop("wait", lambda url, streams: None)
    upgrade = Upgrade(home, wait, tell, servers=servers, identify=identify)
    return upgrade.run("", settings, **({"live_anew": True} | more))


def model_of(root: Path) -> str:
    with SegmentStore.open(root, read_only=True) as store:
        return store.identity.fingerprint


def check_upgraded(home: Home, servers: FakeServers) -> None:
    assert (model_of(home.store), model_of(home.old_store)) == ("new", "old")
    assert not home.next.root.exists()
    assert list(servers.up) == [home.root]
    assert servers.up[home.root].url.endswith(str(PORT))
    with SegmentStore.open(home.store, read_only=True) as new, SegmentStore.open(home.old_store) as old:
        for name in ("film", "held", "cam"):
            now, was = new.record(name), old.record(name)
            kept = ("uri", "created_at", "tenant", "legal_hold")
            assert [getattr(now, k) for k in kept] == [getattr(was, k) for k in kept]
        about = new.record("film").config
        assert (about["guidance"], about["keep_ratio"], about["preset"]) == ("signs", 0.3, "streamkv")
        assert new.watches.records() == old.watches.records()
    for name in ("keys.json", "pools.json"):
        assert (home.store / name).read_text() == (home.old_store / name).read_text()


def steps_of(home: Home, servers: FakeServers) -> list[str]:
    told: list[str] = []
    run(home, servers, tell=told.append)
    return told


def test_the_second_server_answers_nobody_else_and_the_first_goes_on_until_the_switch(
    home: Home, servers: FakeServers
) -> None:
    seen = []

    def wait(url: str, streams: Sequence[str]) -> None:
        seen.append((url, sorted(streams), sorted(r.root.name for r in map(Home, servers.up))))
        assert KeyFile(home.next.store).all() == KeyFile(home.store).all()
        assert model_of(home.store) == "old"

    done = run(home, servers, wait=wait)
    assert seen == [("http://127.0.0.1:9999", ["film", "held"], ["home", "next"])]
    assert (done.url, done.old_store, done.failed) == (f"http://127.0.0.1:{PORT}", home.old_store, ())
    check_upgraded(home, servers)
    (second, _, its), (first, _, ours) = servers.started
    assert (second, first) == (home.next.root, home.root)
    assert its[-2:] == ("serve.host=127.0.0.1", "serve.port=0")
    assert ours == (f"serve.port={PORT}", *NEW)


@pytest.mark.parametrize("is_cut", [False, True], ids=["killed", "power cut"])
def test_killed_between_any_two_steps_it_goes_on_and_loses_neither_store(
    home: Home, servers: FakeServers, tmp_path: Path, is_cut: bool
) -> None:
    """A power cut ends the servers, too. Its user gives the command again, and nothing else."""
    whole = tmp_path / "whole"
    shutil.copytree(home.root, whole)
    record = servers.up[home.root]
    steps = steps_of(home, servers)
    assert "putting the new store in its place" in steps
    for stop_at in range(len(steps)):
        shutil.rmtree(home.root)
        shutil.copytree(whole, home.root)
        servers.up = {home.root: record}
        ahead = iter(range(stop_at))

        def tell(step: str, ahead: Iterator[int] = ahead) -> None:
            if next(ahead, None) is None:
                raise Stopped

        with pytest.raises(Stopped):
            run(home, servers, tell=tell)
        places = (home.store, home.old_store, home.next.store)
        assert "old" in [model_of(place) for place in places if place.exists()], steps[stop_at]
        if is_cut:  # whoever finds the server down starts it, unless the upgrade had stopped it
            servers.up = (
                {home.root: record} if home.root in servers.up and not home.old_store.exists() else {}
            )
        run(home, servers, [])
        check_upgraded(home, servers)


def test_between_the_two_renames_no_server_begins_a_third_store(
    home: Home, servers: FakeServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *args, **more: throw(AssertionError("started")))

    def tell(step: str) -> None:
        if step == "putting the new store in its place":
            raise Stopped

    with pytest.raises(Stopped):
        run(home, servers, tell=tell)
    with pytest.raises(launch.LaunchError, match="streamkv upgrade"):
        launch.spawn(home, "local")
    with pytest.raises(UpgradeError, match="have been switched"):
        Upgrade(home, print, print, servers=servers).cancel()
    run(home, servers, [])
    check_upgraded(home, servers)


def test_what_changes_meanwhile_is_so_in_the_new_store(home: Home, servers: FakeServers) -> None:
    """Added, removed, added anew under the same name; one that comes while the servers stop is ingested afterwards."""
    waited = []

    def wait(url: str, streams: Sequence[str]) -> None:
        waited.append(sorted(streams))
        with SegmentStore.open(home.store) as store:
            if len(waited) == 1:
                store.add_stream("late", "c.mp4")
                store.remove_stream("film")
                store.add_stream("film", "other.mp4")

    def tell(step: str) -> None:
        if step == "taking over what belongs to the streams":
            with SegmentStore.open(home.store) as store:
                store.remove_stream("cam")
                store.add_stream("last", "d.mp4")

    run(home, servers, wait=wait, tell=tell)
    assert waited == [["film", "held"], ["film", "late"]]
    with SegmentStore.open(home.store, read_only=True) as new:
        assert {r.name: r.uri[:5] for r in new.records()} == {
            "film": "other",
            "held": "https",
            "late": "c.mp4",
            "last": "d.mp4",
        }


def test_nothing_is_switched_while_an_archive_is_not_whole(home: Home, servers: FakeServers) -> None:
    servers.broken = {"film"}
    for _ in range(2):
        with pytest.raises(UpgradeError, match=r"film.*nothing was switched"):
            run(home, servers)
        assert model_of(home.store) == "old"
        assert len(servers.up) == 2
    started = len(servers.started)
    done = run(home, servers, despite_failed=True)
    assert done.failed == ("film",)
    assert len(servers.started) == started + 1, "it is not tried again"
    check_upgraded(home, servers)


def test_what_failed_is_tried_again(home: Home, servers: FakeServers) -> None:
    servers.broken = {"film"}
    with pytest.raises(UpgradeError, match="film"):
        run(home, servers)
    servers.broken = set()
    assert run(home, servers).failed == ()
    check_upgraded(home, servers)


def test_without_a_server_none_is_started(home: Home, servers: FakeServers) -> None:
    servers.up = {}
    assert run(home, servers).url == ""
    assert servers.up == {}
    assert model_of(home.store) == "new"


def test_given_up_it_leaves_nothing(home: Home, servers: FakeServers) -> None:
    with pytest.raises(Stopped):
        run(home, servers, wait=lambda url, streams: throw(Stopped()))
    assert len(servers.up) == 2, "who is interrupted leaves the second server at work"
    upgrade = Upgrade(home, print, print, servers=servers)
    upgrade.cancel()
    assert list(servers.up) == [home.root]
    assert not home.next.root.exists()
    assert model_of(home.store) == "old"
    with pytest.raises(UpgradeError, match="nothing to cancel"):
        upgrade.cancel()


def throw(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("setting", ["store.root=elsewhere", "store.catalog_url=postgresql://a/b"])
def test_a_store_that_is_more_than_a_folder_is_refused(
    home: Home, servers: FakeServers, setting: str
) -> None:
    with pytest.raises(UpgradeError, match=f"{setting.partition('=')[0]}.*do it by hand"):
        run(home, servers, [*NEW, setting])
    assert not home.next.root.exists()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (ServerRecord(1, 0.0, "ready", ray_temp="x", elsewhere="store.remote"), "store.remote.*by hand"),
        (ServerRecord(1, 0.0, "ready"), "joined a Ray.*by hand"),
        (ServerRecord(1, 0.0, "starting Ray", ray_temp="x"), "wait until it is ready"),
    ],
)
def test_a_server_that_cannot_be_replaced_is_refused(
    home: Home, servers: FakeServers, record: ServerRecord, words: str
) -> None:
    servers.up[home.root] = record
    with pytest.raises(UpgradeError, match=words):
        run(home, servers)
    assert not home.next.root.exists()


def test_what_must_be_decided_first_is_said(home: Home, servers: FakeServers) -> None:
    with pytest.raises(UpgradeError, match=r"footage is not kept: cam;.*--live-anew"):
        run(home, servers, live_anew=False)
    with pytest.raises(UpgradeError, match=r"'film': guidance.*reencode film"):
        run(home, servers, [*NEW, "preset=rekv"])
    with pytest.raises(UpgradeError, match="got no settings"):
        run(home, servers, [])
    with SegmentStore.open(home.store) as store:
        store.begin_next("film", {})
    with pytest.raises(UpgradeError, match="being encoded again: film;"):
        run(home, servers)
    home.old_store.mkdir()
    with pytest.raises(UpgradeError, match=r"store.before.*remove it first"):
        run(home, servers)
    assert not home.next.root.exists()


def test_other_settings_than_those_under_way_are_refused(home: Home, servers: FakeServers) -> None:
    servers.broken = {"film"}
    with pytest.raises(UpgradeError, match="nothing was switched"):
        run(home, servers)
    with pytest.raises(UpgradeError, match=r"got --config local model.path=third, but under way.*--cancel"):
        run(home, servers, ["model.path=third"])
    with home.locked("upgrade"), pytest.raises(UpgradeError, match="another process"):
        run(home, servers)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    for arguments, words in ((["model.path=x"], "streamkv up"), (["--cancel"], "nothing to cancel")):
        result = CliRunner().invoke(app, ["upgrade", *arguments, "--home", str(tmp_path), "--json"])
        assert result.exit_code == 1
        error = json.loads(result.stdout)["error"]
        assert error["type"] == "UpgradeError"
        assert words in error["message"]
