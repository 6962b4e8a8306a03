"""What a worker had in hand is read after its end, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors.in_hand import NUM_SLOTS, OLD_S, PREFIX, SLOT_BYTES, InHand, InHands, read_page

DYING = """
import os, signal, sys
from pathlib import Path
from actors.in_hand import InHand
page = InHand(Path(sys.argv[1]))
print(page.place.path, flush=True)
done, waiting, working = page.slot(), page.slot(), page.slot()
with done.of("done"):
    pass
with waiting.of("waiting"), waiting.aside(), working.of("working", 17.25):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def positions(page: InHand) -> InHands:
    assert page.place is not None
    return read_page(page.place.path)


def held(page: InHand) -> set[str]:
    return set(positions(page))


def test_a_process_that_is_killed_leaves_what_it_had_in_hand(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", DYING, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == -signal.SIGKILL
    assert read_page(ended.stdout.strip()) == {"working": (17.25,)}


def test_a_mark_stands_for_as_long_as_the_work(tmp_path: Path) -> None:
    page = InHand(tmp_path)
    one, other = page.slot(), page.slot()
    with one.of("a"):
        with other.of("b@17", 2.5):
            assert positions(page) == {"a": (0.0,), "b@17": (2.5,)}
        with other.of("a", 61.0):
            assert positions(page) == {"a": (0.0, 61.0)}
        with one.aside():
            assert held(page) == set()
        assert held(page) == {"a"}
    with pytest.raises(RuntimeError), one.of("a"), one.aside():
        raise RuntimeError
    assert held(page) == set()


def test_a_longer_mark_leaves_nothing_of_itself_behind(tmp_path: Path) -> None:
    page = InHand(tmp_path)
    slot = page.slot()
    for name in ("a-long-name-of-a-stream", "s"):
        with slot.of(name):
            assert held(page) == {name}


def test_slots_are_used_again_and_threads_beyond_the_last_leave_no_mark(tmp_path: Path) -> None:
    page = InHand(tmp_path)
    slots = [page.slot() for _ in range(NUM_SLOTS)]
    beyond = page.slot()
    with beyond.of("beyond"), beyond.aside(), slots[-1].of("last"):
        assert held(page) == {"last"}
    beyond.release()
    slots[0].release()
    slots[0].release()  # once is enough
    with page.slot().of("again"), slots[0].of("released"):
        assert held(page) == {"again"}
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == NUM_SLOTS * SLOT_BYTES


def test_a_page_is_gone_after_an_end_in_good_order_or_when_nobody_has_read_it_for_long(
    tmp_path: Path,
) -> None:
    page = InHand(tmp_path)
    page.remove()
    page.remove()
    assert held(page) == set()
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    dead, fresh, alive = (
        tmp_path / f"{PREFIX}{pid}-{word}"
        for pid, word in ((gone.stdout.strip(), "old"), (gone.stdout.strip(), "new"), (os.getpid(), "own"))
    )
    for path in (dead, fresh, alive):
        path.write_bytes(b"")
    for path in (dead, alive):
        os.utime(path, (0, path.stat().st_mtime - 2 * OLD_S))
    InHand(tmp_path)
    assert (dead.exists(), fresh.exists(), alive.exists()) == (False, True, True)


@pytest.mark.parametrize("failing", ["mkstemp", "posix_fallocate"])
def test_without_room_for_a_page_work_goes_on_unmarked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"{'tempfile' if failing == 'mkstemp' else 'os'}.{failing}", full)
    page = InHand(tmp_path)
    slot = page.slot()
    with slot.of("a"), slot.aside():
        assert page.place is None
    slot.release()
    page.remove()
    assert list(tmp_path.iterdir()) == []
