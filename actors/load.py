"""How many actors a pool should have, by how busy they say they are. Calls nobody, knows no clock.

A round is ten seconds. A pool grows by one after three rounds in a row in which its actors were at work for more
than `HIGH` of the time, and shrinks by one after twelve in which one fewer would have been for less than `LOW`.
The work of a pool that has just grown is at least `HIGH * n / (n + 1)` of its time, which `LOW` is below when it
is shared by one fewer again: the same work never has a pool grow and shrink by turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ROUND_S = 10.0
HIGH, LOW = 0.85, 0.6
GROW_ROUNDS, SHRINK_ROUNDS = 3, 12


def fitting_size(
    size: int, lowest: int, highest: int, streams: int, busy: Sequence[float], *, room: int = 0
) -> int:
    """What the pool's size should be now.

    `busy`: the share of each round since its size last changed, mean over its actors, the latest last. `room`:
    streams that one actor may have, 0: any. More actors than streams have nothing to do.
    """
    needed = -(-streams // room) if room else lowest
    grows = len(busy) >= GROW_ROUNDS and min(busy[-GROW_ROUNDS:]) > HIGH and streams > size
    shrinks = len(busy) >= SHRINK_ROUNDS and size > 1 and max(busy[-SHRINK_ROUNDS:]) * size / (size - 1) < LOW
    wanted = size + 1 if grows else size - 1 if shrinks else size
    return min(highest, max(lowest, needed, wanted))


def work_s(totals: Mapping[str, float], cpus: float) -> float:
    """Seconds that an actor was at work since it began, by its own account (`actors.timing`)."""
    loop = (
        "encode_s",
        "segment_s",
        "ship_s",
        "rebuild_s",
        "prefill_s",
        "watch_s",
        "write_s",
        "commit_s",
        "look_s",
    )
    # Decoding goes on beside the loop, in threads that share the actor's processors.
    return max(sum(totals.get(stage, 0.0) for stage in loop), totals.get("decode_cpu_s", 0.0) / max(cpus, 1))


class BusyMeter:
    """Rounds of one pool, from what each of its actors has told last."""

    def __init__(self, now: float) -> None:
        self.rounds: list[float] = []
        self._began = now
        self._work: dict[str, float] = {}  # by incarnation

    def tell(self, work: Mapping[str, float], now: float) -> bool:
        """`work`: seconds at work since it began, by incarnation. Whether another round is over."""
        if now - self._began < ROUND_S:
            return False
        known = [work[name] - self._work[name] for name in work if name in self._work]
        if known:
            self.rounds = [*self.rounds[-SHRINK_ROUNDS:], sum(known) / len(known) / (now - self._began)]
        self._work, self._began = dict(work), now
        return bool(known)

    def begin_anew(self) -> None:
        """The pool's size has changed: what was before says nothing of it."""
        self.rounds = []
