"""`bench.segmentation` counts what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.segmentation import least_errors, main


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=12))
def test_the_least_errors_are_those_of_the_best_of_all_thresholds(pairs: list[tuple[int, bool]]) -> None:
    """Distinct values, so that a threshold can lie between any two."""
    values = np.array([10 * value + i / len(pairs) for i, (value, _) in enumerate(pairs)])
    is_cut = np.array([cut for _, cut in pairs])
    tried = [np.mean((values <= theta) != is_cut) for theta in (-1.0, *values)]
    assert least_errors(values, is_cut) == pytest.approx(min(tried))


def test_a_world_is_measured_by_every_similarity(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--minutes", "1", "--worlds", "1", "--seed", "3", "--json"])
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert {
        "cosine_errors",
        "dot_errors",
        "quartile_errors",
        "configured_missed",
        "configured_split",
    } == figures.keys()
    assert figures["quartile_errors"]["value"] < figures["dot_errors"]["value"]
