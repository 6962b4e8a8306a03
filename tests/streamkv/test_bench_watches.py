"""The bench of watches knows when the script changes, and counts an event for one change only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import IDENTITY, make_kv

from bench.watches import (
    Change,
    Hearing,
    Rule,
    Standing,
    colour,
    existence,
    num_matched,
    rules,
    standing_questions,
    true_changes,
)
from streamkv.store import SegmentStore, write_segment
from streamkv.townsquare.script import Scene, Sign, Thing, World, make_world
from streamkv.types import Evidence
from streamkv.watches import Watch, WatchAnswer


def scene(start_s: float, weather: str, *things: Thing) -> Scene:
    return Scene(start_s, start_s + 10, 0, Sign("B", 10), weather, things)


BUS = Thing("bus", "red", "gate", enter_s=2.0, leave_s=8.0)
WORLD = World(0, (scene(0, "sunny", BUS), scene(10, "sunny"), scene(20, "rainy", BUS)))


def changes(standing: Standing) -> list[tuple[float, str]]:
    return [(c.time_s, c.answer) for c in true_changes(WORLD, standing)]


def test_changes_are_those_of_the_script() -> None:
    assert changes(Standing("weather", "?", lambda s, _: s.weather)) == [(0, "sunny"), (20, "rainy")]
    yes_and_no = [(0, "no"), (2, "yes"), (8, "no"), (22, "yes"), (28, "no")]
    assert changes(Standing("existence", "?", existence("bus"))) == yes_and_no
    assert changes(Standing("existence", "?", existence("red bus"))) == yes_and_no
    assert changes(Standing("existence", "?", existence("pink bus"))) == [(0, "no")]
    assert changes(Standing("colour", "?", colour("bus"))) == [(2, "red"), (22, "red")]


def test_every_standing_question_has_an_answer_at_any_time() -> None:
    world = make_world(3, 1)
    asked = standing_questions()
    assert len({s.text for s in asked}) == len(asked)
    for standing in asked:
        assert all(c.answer for c in true_changes(world, standing))


def test_an_event_counts_for_one_change_and_a_change_for_one_event() -> None:
    by_start = Rule(2.0, lambda event: event.time_s)
    told = [Change(0, "Red"), Change(1, "red"), Change(9, "red"), Change(20, "blue")]
    assert num_matched(told, [Change(0, "red")], by_start) == 1
    assert num_matched(told, [Change(0, "red"), Change(1.5, "red"), Change(23, "blue")], by_start) == 2
    assert num_matched(told[:1], [Change(0, "red"), Change(1, "red")], by_start) == 1
    assert num_matched([Change(0, "blue")], [Change(0, "red")], by_start) == 0


def test_an_event_is_told_when_its_segment_ends() -> None:
    event, change = Change(10, "red", told_s=20), [Change(10, "red")]
    found = {name: num_matched([event], change, rule) for name, rule in rules(sample_fps=0.5).items()}
    assert found == {"2s": 1, "interval": 1, "output_2s": 0}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["", "red", "blue"]), max_size=3), st.sampled_from(["", "red", "blue"])
        ),
        max_size=5,
    )
)
def test_what_the_bench_has_told_is_what_a_catalog_tells(
    tmp_path: Path, segments: list[tuple[list[str], str]]
) -> None:
    """Looks at each segment while it is open, then its commit."""
    hearing = Hearing(["a"], 0.5)
    with SegmentStore.open(tmp_path / str(len(list(tmp_path.iterdir()))), identity=IDENTITY) as store:
        store.add_stream("cam", "uri")
        store.watches.add(Watch("a", "cam", "a", min_confidence=0.5), 9)
        epoch = store.begin_writing("cam")
        for no, (looks, at_last) in enumerate(segments):
            kv = replace(make_kv(0), segment_no=no)
            evidence = (Evidence(no, kv.start_s, kv.end_s, 1.0, 1),)
            for text in looks:
                said = [WatchAnswer("a", text, 0.9, evidence)]
                hearing.look(kv, said, kv.start_s)
                store.watches.hear_open("cam", epoch, no, (kv.start_s, kv.end_s), said)
            said = [WatchAnswer("a", at_last, 0.9, evidence)]
            hearing.close(kv, said)
            store.commit(write_segment(store.root, IDENTITY, "cam", epoch, kv), said)
        (events,) = store.watches.events([("a", -1)], 99)
    assert events is not None
    assert [event.answer for event in events] == [change.answer for change in hearing.events["a"]]
