"""`bench.store` measures what it says; no time is held against it here."""

from __future__ import annotations

import json

import pytest

from bench.store import KEEPS, main, sizes
from streamkv.store.codecs import CODECS


def test_quick_run_prints_every_headline(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--json"])
    figures = json.loads(capsys.readouterr().out)["figures"]
    heads = {"bytes_over_rekv_fp16", "write_over_copy", "gather_over_memcpy", "open_100k_segments_s"}
    assert heads <= figures.keys()
    assert all(figures[name]["value"] > 0 for name in heads)


def test_bytes_are_those_of_the_codec_and_the_blocks_that_are_kept() -> None:
    found = {figure.name: figure.value for figure in sizes("demo", tuple(CODECS))}
    for keep in KEEPS:
        blocks = (8 * keep + 1) / 8  # of 8 frames, and the summary
        for codec, bits in (("raw", 32), ("fp16", 16), ("int8", 8), ("int4", 4), ("int2", 2)):
            ratio = found[f"bytes_over_rekv_fp16_demo_{codec}_{keep}"]
            pure = blocks * bits / 16
            assert pure < ratio < pure + 0.15 * blocks + 0.06, (codec, keep)
