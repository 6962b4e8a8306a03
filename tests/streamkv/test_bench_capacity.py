"""`bench.capacity` computes what a few lines of plain arithmetic do."""

from __future__ import annotations

import json

import pytest

from bench.capacity import MODELS, Plan, main
from streamkv.config import CompressConfig, MethodConfig


def test_a_model_has_the_weights_that_its_name_says() -> None:
    billions = {
        name: Plan(decoder, MethodConfig(), 0.5).weight_bytes / 2e9 for name, decoder in MODELS.items()
    }
    assert billions["0.5B"] == pytest.approx(0.5 + 0.4, abs=0.05)  # with the tower
    assert billions["7B"] == pytest.approx(7.6 - 0.5 + 0.4, abs=0.1)  # without the output embeddings


def test_twice_the_utilisation_is_twice_the_frames_and_no_more_windows() -> None:
    slow, fast = (Plan(MODELS["7B"], MethodConfig(), share) for share in (0.2, 0.4))
    assert fast.frames_per_s == pytest.approx(2 * slow.frames_per_s)
    assert fast.windows == slow.windows
    assert fast.streams(100.0) == pytest.approx(2 * slow.streams(100.0))


def test_what_is_stored_follows_the_share_that_is_kept() -> None:
    half, quarter = (
        Plan(MODELS["7B"], MethodConfig(compress=CompressConfig(keep_ratio=share, summary=False)), 0.5)
        for share in (0.5, 0.25)
    )
    assert half.stored_bytes("fp16") == pytest.approx(0.5 * 196 * 28 * 2 * 4 * 128 * 2)
    assert quarter.stored_bytes("int4") == pytest.approx(half.stored_bytes("int4") / 2)


def test_settings_of_the_command_line_count(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--json"])
    shipped = json.loads(capsys.readouterr().out)["figures"]
    main(["--json", "method.n_local=1000"])
    short = json.loads(capsys.readouterr().out)["figures"]
    assert short["7B windows_that_fit"]["value"] == pytest.approx(
        15 * shipped["7B windows_that_fit"]["value"], rel=1e-3
    )
    assert short["7B frames_per_s"]["value"] > shipped["7B frames_per_s"]["value"]
