"""The bench of watches knows when the script changes, and counts an event for one change only."""

from __future__ import annotations

from bench.watches import (
    Change,
    Rule,
    Standing,
    colour,
    existence,
    num_matched,
    rules,
    standing_questions,
    true_changes,
)
from streamkv.townsquare.script import Scene, Sign, Thing, World, make_world


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
