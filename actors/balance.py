"""Which streams move so that none is without a worker, and all workers have about as many. Calls nobody."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def spread(
    homes: Mapping[str, str],
    workers: Sequence[str],
    *,
    away: Collection[str] = (),
    pinned: Collection[str] = (),
    room: int = 0,
    evenly: bool = False,
) -> dict[str, str]:
    """Where each stream that moves is to go; the others stay.

    A stream whose home is none of `workers` nor `away` goes to whichever has the fewest, in the order of `homes`;
    for those beyond `room` streams on every worker (0: any number) there is no place yet. `evenly`: then streams move
    until no two workers differ by more than one, as few as that takes. A `pinned` stream is not moved for that, and
    nobody goes to a worker that is away, nor leaves it.

        a: 1 2 3 4    b: 5    c:          c is new; nobody's home is lost
        a: 1 2        b: 5 4  c: 3        evenly: two streams move
    """
    moves: dict[str, str] = {}
    residents: dict[str, list[str]] = {worker: [] for worker in workers}
    for stream, home in homes.items():
        if home in residents:
            residents[home].append(stream)
    for stream, home in homes.items():
        if home in residents or home in away:
            continue
        to = min(workers, key=lambda worker: len(residents[worker]), default=None)
        if to is None or (room and len(residents[to]) >= room):
            break
        residents[to].append(stream)
        moves[stream] = to
    while evenly and (step := _step(residents, pinned)):
        stream, home, to = step
        residents[home].remove(stream)
        residents[to].append(stream)
        moves[stream] = to
    return {stream: to for stream, to in moves.items() if homes[stream] != to}


def _step(residents: Mapping[str, list[str]], pinned: Collection[str]) -> tuple[str, str, str] | None:
    """The move that brings two workers nearer to each other; None when that is not possible."""
    if not residents:
        return None
    to = min(residents, key=lambda worker: len(residents[worker]))
    for home in sorted(residents, key=lambda worker: -len(residents[worker])):
        if len(residents[home]) - len(residents[to]) <= 1:
            return None
        movable = [stream for stream in residents[home] if stream not in pinned]
        if movable:
            return movable[-1], home, to
    return None


def leavers(loads: Mapping[str, int], count: int, *, idle: Collection[str] = ()) -> list[str]:
    """Which workers a pool that shrinks by `count` can do without: those that are `idle`, then those with the fewest
    streams; of equals the newest, which is the last of `loads`."""
    newest_first = list(loads)[::-1]
    return sorted(newest_first, key=lambda worker: (worker not in idle, loads[worker]))[:count]
