"""`bench.search` asks what one stream alone can answer, and the demo model finds that stream."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.search import main, questions_of_one
from streamkv.townsquare import make_world


@settings(max_examples=20)
@given(st.integers(0, 100_000))
def test_what_names_the_moment_is_in_no_other_world(seed: int) -> None:
    worlds = [make_world(seed + i, 0.5) for i in range(6)]
    asked = questions_of_one(worlds, 4, seed)
    assert asked
    for one in asked:
        ours = [worlds[one.stream].scenes[i] for i in one.question.scenes]
        others = [s for i, world in enumerate(worlds) if i != one.stream for s in world.scenes]
        for scene in ours:
            named = {
                "sign": (scene.sign.text, {s.sign.text for s in others}),
                "clock": (scene.clock, {s.clock for s in others}),
            }
            names = [(t.name, {o.name for s in others for o in s.things}) for t in scene.things]
            assert any(
                name in one.question.question and name not in elsewhere
                for name, elsewhere in [*named.values(), *names]
            )


def test_right_stream_is_found_among_a_few(capsys: pytest.CaptureFixture[str]) -> None:
    """Of four streams chance finds a quarter; bench.search on 64 finds nine in ten."""
    main(["--streams", "4", "--questions", "3", "--minutes", "0.5", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["recall@1"]["value"] >= 0.75
    assert found["figures"]["recall@3"]["value"] >= found["figures"]["recall@1"]["value"]
    assert found["machine"]["questions"] >= 8
    assert set(found["named_by"]) <= {"sign", "clock", "thing"}
