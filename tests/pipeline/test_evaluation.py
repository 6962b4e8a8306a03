"""`streamkv eval`: the quick table for real, on Ray, with the shipped model; and its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.evaluation import CONTROLS, ablations, make_variants
from streamkv.errors import ConfigError

DEMO = "demo"
SUITE = "townsquare-2m"
runner = CliRunner()


def run_eval(folder: Path, *args: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "pipeline.cli", "eval", "--out", str(folder), "--json", *args]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TERM": "dumb"})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), done.stderr


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_quick_table_is_real_resumable_and_complete(tmp_path: Path) -> None:
    report, said = run_eval(tmp_path, "--quick", "--lengths", "2", "--seed", "7")
    rows = {(row["suite"], row["preset"]): row for row in report["rows"]}
    assert {suite for suite, _ in rows} == {SUITE}
    assert {preset for _, preset in rows} == {"streamkv", "rekv", "window", *CONTROLS, "oracle"}
    ours = rows[SUITE, "streamkv"]
    assert ours["questions"] == 48
    assert ours["accuracy"] > rows[SUITE, "recent"]["accuracy"] + 0.2
    assert ours["bytes_per_hour"] < rows[SUITE, "rekv"]["bytes_per_hour"]
    assert rows[SUITE, "oracle"]["evidence_top3"] == 1.0
    assert ours["ci95"][0] <= ours["accuracy"] <= ours["ci95"][1]
    assert sum(kind["questions"] for kind in ours["by_kind"].values()) == 48
    assert "1/12" in said
    folder = Path(report["folder"])
    assert len(pq.read_table(folder / "answers.parquet")) == 6 * 48
    assert {"table.md", "table.parquet", "accuracy.png"} <= {f.name for f in folder.iterdir()}

    again, said = run_eval(tmp_path, "--quick", "--lengths", "2", "--seed", "7")
    assert "12/12 found from before" in said
    assert again["rows"] == report["rows"]


def test_controls_are_always_there_and_variants_are_named() -> None:
    variants = make_variants(DEMO, (), ["streamkv"], ["half: method.compress.keep_ratio=0.5"])
    assert [v.name for v in variants] == ["streamkv", *CONTROLS, "half"]
    assert variants[-1].method.compress.keep_ratio == 0.5
    with pytest.raises(ConfigError, match="unknown 'magic'"):
        make_variants(DEMO, (), ["magic"], [])
    with pytest.raises(ConfigError, match="NAME"):
        make_variants(DEMO, (), ["streamkv"], ["method.n_local=3"])


def test_each_ablation_changes_something_and_no_two_are_alike() -> None:
    (ours, *_) = make_variants(DEMO, (), ["streamkv"], [])
    rows = ablations(DEMO, ())
    methods = [(row.method, row.codec) for row in (ours, *rows)]
    assert len({repr(method) for method in methods}) == len(methods)
    assert {"uniform segments", "no summary", "uniform budgets", "keep 0.4", "keep 1.0"} <= {
        r.name for r in rows
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--suite", "nothing"], "unknown 'nothing'"),
        (["--suite", "streamingbench"], "--annotations"),
        (["--preset", "magic"], "unknown 'magic'"),
        (["--lengths", "7"], "allowed 2, 10, 60"),
        (["--lengths", "ten"], "need minutes"),
        (["method.n_loca1=3"], "n_loca1"),
    ],
)
def test_errors_say_what_is_allowed(tmp_path: Path, args: list[str], message: str) -> None:
    result = runner.invoke(app, ["eval", "--json", "--out", str(tmp_path), *args])
    assert result.exit_code == 1
    assert message in json.loads(result.output)["error"]["message"]
