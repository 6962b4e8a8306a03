"""`streamkv store`: what it prints, what it changes, and its exit statuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app
from streamkv.store import SegmentStore

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "streamkv" / "store"))
from store_samples import IDENTITY, filled

runner = CliRunner()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SegmentStore]:
    """The home's store, with three segments of `cam` and one of `gate`."""
    with SegmentStore.open(tmp_path / "store", identity=IDENTITY) as opened:
        for name, count in (("cam", 3), ("gate", 1)):
            opened.add_stream(name, f"file:{name}.mp4")
            filled(opened, count, name)
        yield opened


def run(store: SegmentStore, *arguments: str, status: int = 0) -> Result:
    result = runner.invoke(app, ["store", *arguments, "--home", str(store.root.parent)])
    assert result.exit_code == status, result.output
    return result


def test_age_says_what_it_did_to_each_stream(store: SegmentStore) -> None:
    done = json.loads(run(store, "age", "--after", "0", "--codec", "int8", "--json").stdout)
    assert {name: counts["segments"] for name, counts in done.items()} == {"cam": 3, "gate": 1}
    assert done["cam"]["bytes_after"] < done["cam"]["bytes_before"]
    assert {p.codec for p in store.segments("cam", 0, 9)} == {"int8"}
    assert "cam: 0 segments\ngate: 0 segments" in run(store, "age", "--after", "0").stdout
    kv_bytes = store.stream("cam").kv_bytes
    assert "cam: 3 segments" in run(store, "age", "--after", "0", "--keep-ratio", "0.25").stdout
    assert store.stream("cam").kv_bytes == kv_bytes / 2  # 3 of 6 blocks each


def test_age_takes_the_policy_from_the_settings(store: SegmentStore) -> None:
    given = ["store.ageing=[{after_s: 0, codec: fp16}, {after_s: 1e6, codec: int4}]", "--stream", "cam"]
    assert "cam: 3 segments" in run(store, "age", *given).stdout
    assert {p.codec for p in store.segments("cam", 0, 9)} == {"fp16"}
    assert {p.codec for p in store.segments("gate", 0, 9)} == {"raw"}
    assert "nothing to do" in json.loads(run(store, "age", "--json", status=1).stdout)["error"]["message"]


def test_retain_deletes_what_is_due_and_says_so(store: SegmentStore) -> None:
    one = store.segments("cam", 0, 1)[0].file_bytes
    given = ["retain", "--max-bytes", str(2 * one)]
    assert run(store, *given, "--dry-run").stdout.startswith(
        "cam: 1 segments would be deleted, 8.4 kB, all before 0:04"
    )
    assert store.stream("cam").num_segments == 3
    done = json.loads(run(store, *given, "--json").stdout)
    assert done == {"cam": {"num_segments": 1, "file_bytes": one, "until_s": 4.0}}
    assert "nothing is due" in run(store, *given).stdout
    assert [(gap.end_s, gap.reason) for gap in store.stream("cam").gaps] == [(4.0, "retention")]
    assert "all is well" in run(store, "verify").stdout


def test_retain_takes_the_policy_from_the_settings(store: SegmentStore) -> None:
    with store._catalog._writing() as session:
        session.connection().exec_driver_sql("UPDATE segments SET committed_at = 1 WHERE stream_id = 'gate'")
    assert "gate: 1 segments deleted" in run(store, "retain", "store.retention.max_age_s=86400").stdout
    assert "got nothing to do" in run(store, "retain", "store.retention.stream_bytes=5", status=1).output
    assert store.stream("cam").num_segments == 3


def test_held_stream_keeps_its_segments(store: SegmentStore) -> None:
    given = ["retain", "--max-bytes", "1"]
    run(store, "hold", "cam", "--reason", "case 4711")
    assert store.stream("cam").legal_hold == "case 4711"
    assert list(json.loads(run(store, *given, "--json").stdout)) == ["gate"]
    assert "unknown" in run(store, "hold", "nope", "--reason", "x", status=1).output
    run(store, "release", "cam")
    assert list(json.loads(run(store, *given, "--json").stdout)) == ["cam"]


def test_verify_names_problems_and_repairs_them(store: SegmentStore) -> None:
    assert "all is well" in run(store, "verify").stdout
    place = store.segments("cam", 1, 1)[0]
    (store.root / place.path).unlink()
    assert f"missing: {place.path}" in run(store, "verify", status=1).stdout
    assert json.loads(run(store, "verify", "--stream", "gate", "--json").stdout) == {
        "done": [],
        "problems": [],
    }
    named = json.loads(run(store, "verify", "--json", status=1).stdout)["problems"]
    assert [(p["kind"], p["path"], p["stream_id"]) for p in named] == [("missing", place.path, "cam")]
    assert "its time is a gap now" in run(store, "verify", "--repair").stdout
    assert "all is well" in run(store, "verify").stdout
    assert "unknown" in run(store, "verify", "--stream", "nope", status=1).output


def test_verify_makes_a_lost_catalog_again(store: SegmentStore) -> None:
    store.close()
    for path in store.root.glob("catalog.sqlite*"):
        path.unlink()
    assert "no store" in run(store, "verify", status=1).output
    assert "cam: 3 segments are in the catalog again" in run(store, "verify", "--repair").stdout
    assert "all is well" in run(store, "verify").stdout


def test_repair_is_refused_while_the_server_is_up(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.launch.running", lambda home: object())
    assert "stop it with: streamkv down" in run(store, "verify", "--repair", status=1).output
    run(store, "verify")


def test_offload_and_tiers_say_what_lies_where(store: SegmentStore, tmp_path: Path) -> None:
    far = f"store.remote=file://{tmp_path}/far"
    before = json.loads(run(store, "tiers", far, "--json").stdout)
    assert (before["num_local"], before["uploads"]["num_waiting"], before["unreachable"]) == (4, 4, "")
    assert "4 segments uploaded, 33.5 kB; 0 objects deleted" in run(store, "offload", far).stdout
    assert "0 segments uploaded" in run(store, "offload", far, "store.local_bytes=9000").stdout
    shown = run(store, "tiers", far, "store.local_bytes=9000").stdout.splitlines()
    assert shown == [
        "local disk: 1 files, 8.4 kB of 9.0 kB",
        f"file://{tmp_path}/far: 4 segments, 33.5 kB",
        "waiting for upload: 0 segments, 0 B",
        "objects to be deleted: 0",
        "can be reached",
    ]
    assert "store.remote: got none" in run(store, "tiers", status=1).output


def test_verify_reads_objects_only_when_told(store: SegmentStore, tmp_path: Path) -> None:
    far = f"store.remote=file://{tmp_path}/far"
    run(store, "offload", far, "store.local_bytes=1")
    path = tmp_path / "far" / store.segments("cam", 0, 1)[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + b"?" + whole[-8:])
    assert "all is well" in run(store, "verify", far).stdout
    assert f"file://{path}: damaged object" in run(store, "verify", "--objects", far, status=1).stdout
    path.write_bytes(whole)
    for name in store.root.glob("catalog.sqlite*"):
        name.unlink()
    assert "cam: 3 segments are in the catalog again" in run(store, "verify", "--repair", far).stdout
