"""Places of streams: nobody without one, nobody in two, workers within one of each other, as few moves as can be."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.balance import leavers, spread

WORKERS = ["a", "b", "c", "d"]
homes = st.lists(st.sampled_from([*WORKERS, "gone", ""]), max_size=40).map(
    lambda names: {f"s{i}": name for i, name in enumerate(names)}
)
staff = st.lists(st.sampled_from(WORKERS), min_size=1, unique=True)


def after(before: dict[str, str], moves: dict[str, str]) -> dict[str, str]:
    return {**before, **moves}


def fewest_moves(before: dict[str, str], workers: list[str]) -> int:
    """By arithmetic: with the quotas that leave most where they are, of the streams that have a home, those above."""
    loads = sorted((list(before.values()).count(worker) for worker in workers), reverse=True)
    share, larger = divmod(len(before), len(workers))
    quotas = [share + (i < larger) for i in range(len(workers))]
    return sum(max(0, load - quota) for load, quota in zip(loads, quotas, strict=True))


@given(homes, staff)
def test_only_the_homeless_move_and_all_of_them_do(before: dict[str, str], workers: list[str]) -> None:
    moves = spread(before, workers)
    assert set(moves) == {stream for stream, home in before.items() if home not in workers}
    assert set(after(before, moves).values()) <= set(workers)


@given(homes, staff)
def test_evenly_is_within_one_by_the_fewest_moves(before: dict[str, str], workers: list[str]) -> None:
    moves = spread(before, workers, evenly=True)
    loads = Counter(dict.fromkeys(workers, 0))
    loads.update(after(before, moves).values())
    assert set(loads) == set(workers)
    assert max(loads.values()) - min(loads.values()) <= 1
    assert sum(before[stream] in workers for stream in moves) == fewest_moves(before, workers)


@given(homes, staff)
def test_what_is_even_stays_as_it_is(before: dict[str, str], workers: list[str]) -> None:
    now = after(before, spread(before, workers, evenly=True))
    assert spread(now, workers, evenly=True) == spread(now, workers) == {}


@given(homes, staff, st.sets(st.integers(0, 39).map("s{}".format)))
def test_a_pinned_stream_moves_only_when_its_worker_is_gone(
    before: dict[str, str], workers: list[str], pinned: set[str]
) -> None:
    moves = spread(before, workers, pinned=pinned, evenly=True)
    assert all(before[stream] not in workers for stream in pinned & set(moves))


@given(homes, staff, st.integers(1, 6))
def test_nobody_has_more_than_there_is_room_for(
    before: dict[str, str], workers: list[str], room: int
) -> None:
    """Those who find no place are the last in order, and only as many as do not fit."""
    moves = spread(before, workers, room=room)
    loads, old = Counter(after(before, moves).values()), Counter(before.values())
    assert all(loads[worker] <= max(room, old[worker]) for worker in workers)
    homeless = [stream for stream, home in before.items() if home not in workers]
    placed = [stream in moves for stream in homeless]
    assert placed == sorted(placed, reverse=True)
    if not all(placed):
        assert min(loads[worker] for worker in workers) >= room


@given(homes, staff)
def test_nobody_leaves_or_joins_a_worker_that_is_away(before: dict[str, str], workers: list[str]) -> None:
    here = [worker for worker in workers if worker != "a"]
    moves = spread(before, here, away=["a"], evenly=True)
    assert all(before[stream] != "a" and to != "a" for stream, to in moves.items())


@given(st.dictionaries(st.sampled_from(WORKERS), st.integers(0, 5)), st.integers(0, 4))
def test_leavers_have_the_fewest_streams(loads: dict[str, int], count: int) -> None:
    names = leavers(loads, count)
    assert len(set(names)) == min(count, len(loads))
    rest = [loads[name] for name in loads if name not in names]
    assert not names or not rest or max(loads[name] for name in names) <= min(rest)


def test_of_equals_the_newest_leaves_and_one_that_is_not_up_before_all() -> None:
    assert leavers({"old": 2, "new": 2}, 1) == ["new"]
    assert leavers({"old": 2, "new": 2}, 1, idle=["old"]) == ["old"]
