"""Work that may take a share of the time takes no more, over any while."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.share import BURST_S, Share


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def take(work: Share, clock: Clock, seconds: float) -> None:
    """What fails has taken its time, too."""
    with work.spend():
        clock.s += seconds
        raise RuntimeError("in vain")


@given(
    st.floats(0.0, 1.0),
    st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.001, 0.5)), max_size=60),
)
def test_no_more_than_its_share_and_a_burst(share: float, steps: list[tuple[float, float]]) -> None:
    clock, spent = Clock(), 0.0
    work = Share(share, clock)
    for rest_s, takes_s in steps:
        clock.s += rest_s
        if work.has_room:
            with work.spend():
                clock.s += takes_s
            spent += takes_s
        assert spent <= share * clock.s + BURST_S + 0.5 + 1e-6, "but for the last piece of work"
    assert share > 0 or spent == 0


def test_who_owes_time_has_room_again_when_it_is_paid() -> None:
    clock = Clock()
    work = Share(0.25, clock)
    with pytest.raises(RuntimeError, match="in vain"):
        take(work, clock, 5)
    assert not work.has_room
    clock.s += 10
    assert not work.has_room
    clock.s += 6.1
    assert work.has_room
