"""Pools follow their load, one actor at a time, and never to and fro."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.load import GROW_ROUNDS, HIGH, LOW, ROUND_S, SHRINK_ROUNDS, BusyMeter, fitting_size, work_s

shares = st.lists(st.floats(0, 1), max_size=30)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 5), st.integers(0, 50), shares)
def test_the_size_stays_within_its_range_and_changes_by_one(
    size: int, lowest: int, extra: int, streams: int, busy: list[float]
) -> None:
    highest = lowest + extra
    found = fitting_size(size, lowest, highest, streams, busy)
    assert lowest <= found <= highest
    if lowest <= size <= highest:
        assert abs(found - size) <= 1


@given(st.floats(0, 20), st.integers(1, 8), st.integers(1, 100))
def test_the_same_work_never_has_a_pool_grow_and_shrink_by_turns(
    work: float, size: int, streams: int
) -> None:
    """Work is what one actor would need of its time; those that share it are busy for at most all of theirs."""
    sizes = [size]
    for _ in range(40):
        busy = [min(1.0, work / sizes[-1])] * SHRINK_ROUNDS
        sizes.append(fitting_size(sizes[-1], 1, 8, streams, busy))
    steps = [b - a for a, b in pairwise(sizes) if b != a]
    assert len(set(steps)) <= 1
    assert sizes[-1] == sizes[-2]


def test_it_takes_a_while_of_it() -> None:
    high, low = HIGH + 0.01, LOW / 2 - 0.01
    assert fitting_size(2, 1, 4, 9, [high] * (GROW_ROUNDS - 1)) == 2
    assert fitting_size(2, 1, 4, 9, [high] * GROW_ROUNDS) == 3
    assert fitting_size(2, 1, 4, 9, [high, HIGH, high, high]) == 2, "a round was not busy"
    assert fitting_size(2, 1, 4, 9, [low] * (SHRINK_ROUNDS - 1)) == 2
    assert fitting_size(2, 1, 4, 9, [low] * SHRINK_ROUNDS) == 1
    assert fitting_size(2, 1, 4, 9, [low] * (SHRINK_ROUNDS - 1) + [LOW]) == 2


def test_an_actor_without_a_stream_is_not_made() -> None:
    assert fitting_size(2, 1, 4, 2, [1.0] * GROW_ROUNDS) == 2


def test_streams_that_find_no_place_have_the_pool_grow_at_once_and_keep_it() -> None:
    assert fitting_size(1, 1, 4, 25, [], room=10) == 3
    assert fitting_size(1, 1, 4, 99, [], room=10) == 4
    assert fitting_size(3, 1, 4, 25, [0.0] * SHRINK_ROUNDS, room=10) == 3


def test_rounds_are_means_over_the_actors_that_were_there() -> None:
    meter = BusyMeter(0.0)
    assert not meter.tell({"a": 5.0, "b": 100.0}, ROUND_S - 1)
    assert not meter.tell({"a": 5.0, "b": 100.0}, ROUND_S), "nothing to compare with yet"
    assert meter.tell({"a": 10.0, "b": 110.0, "new": 3.0}, 2 * ROUND_S)
    assert meter.rounds == [0.75]
    meter.tell({"b": 110.0, "new": 8.0, "a restarted": 0.0}, 3 * ROUND_S)
    assert meter.rounds == [0.75, 0.25]
    meter.begin_anew()
    assert meter.rounds == []


def test_decoding_counts_by_the_processors_that_it_may_use() -> None:
    assert work_s({"encode_s": 2.0, "segment_s": 1.0, "decode_s": 50.0, "decode_cpu_s": 8.0}, 4.0) == 3.0
    assert work_s({"encode_s": 2.0, "decode_cpu_s": 16.0}, 4.0) == 4.0
    assert work_s(
        {"prefill_s": 2.0, "write_s": 1.0, "commit_s": 0.5, "rebuild_s": 0.25}, 0.5
    ) == pytest.approx(3.75)
    assert work_s({"prefill_s": 1.0, "watch_s": 0.5, "look_s": 0.25}, 0.5) == 1.75, "watches are work, too"
