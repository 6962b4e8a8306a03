"""What a worker had in hand is read after its end, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors import in_hand
from actors.in_hand import (
    NUM_SLOTS,
    OLD_S,
    PREFIX,
    SLOT_BYTES,
    TRACE_BYTES,
    InHand,
    InHands,
    LastWords,
    Place,
    last_words,
)

DYING = """
import ctypes, os, signal, sys, threading
from pathlib import Path
from actors.in_hand import InHand
page = InHand(Path(sys.argv[1]), hears_crashes=True)
print(page.place.path, page.place.oom_kills, flush=True)
done, waiting, working = page.slot(), page.slot(), page.slot()
with done.of("done"):
    pass
def beside():
    with page.slot().of("beside", 3.0):
        if sys.argv[2] == "a crash beside":
            crash()
        threading.Event().wait()
def crash():
    ctypes.string_at(0)
with waiting.of("waiting"), waiting.aside(), working.of("working", 17.25):
    threading.Thread(target=beside).start()
    {"a kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "an exit": lambda: os._exit(1), "a crash": crash,
     "abort": os.abort, "a crash beside": threading.Event().wait}[sys.argv[2]]()
"""


def positions(page: InHand) -> InHands:
    assert page.place is not None
    return last_words(page.place).in_hand


def held(page: InHand) -> set[str]:
    return set(positions(page))


def die_of(what: str, folder: Path) -> tuple[int, Place]:
    """The status of a process that ends so, and where its page is."""
    command = [sys.executable, "-c", DYING, str(folder), what]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    path, oom_kills = ended.stdout.split()
    return ended.returncode, Place("", path, int(oom_kills))


@pytest.mark.parametrize(("what", "status"), [("a kill", -signal.SIGKILL), ("an exit", 1)])
def test_a_process_that_is_killed_leaves_what_it_had_in_hand(tmp_path: Path, what: str, status: int) -> None:
    ended, place = die_of(what, tmp_path)
    assert ended == status
    words = last_words(place)
    assert (words.in_hand["working"], words.cause, words.trace) == ((17.25,), "", "")
    assert set(words.in_hand) <= {"working", "beside"}


@pytest.mark.parametrize(
    ("what", "status", "cause", "in_hand"),
    [
        ("a crash", -signal.SIGSEGV, "a crash (Segmentation fault)", {"working": (17.25,)}),
        ("a crash beside", -signal.SIGSEGV, "a crash (Segmentation fault)", {"beside": (3.0,)}),
        ("abort", -signal.SIGABRT, "a crash (Aborted)", {"working": (17.25,)}),
    ],
)
def test_a_process_that_crashes_says_in_which_thread(
    tmp_path: Path, what: str, status: int, cause: str, in_hand: InHands
) -> None:
    ended, place = die_of(what, tmp_path)
    assert ended == status
    words = last_words(place)
    assert (words.cause, words.in_hand) == (cause, in_hand)
    assert "most recent call first" in words.trace


def test_a_crash_in_a_thread_that_has_no_mark_may_be_of_any_of_the_others(tmp_path: Path) -> None:
    page = InHand(tmp_path)
    assert page.place is not None
    with Path(page.place.path).open("r+b") as file, page.slot().of("a", 1.0), page.slot().of("b", 2.0):
        file.seek(NUM_SLOTS * SLOT_BYTES)
        file.write(b"Fatal Python error: Bus error\n\nThread 0x1 (most recent call first):\n")
        file.flush()
        words = last_words(page.place)
    assert (words.cause, words.in_hand) == ("a crash (Bus error)", {"a": (1.0,), "b": (2.0,)})


def test_a_kill_for_want_of_memory_is_told_from_one_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = InHand(tmp_path)
    place = page.place
    assert place is not None
    assert last_words(place) == LastWords()
    kills = in_hand.count_oom_kills()
    monkeypatch.setattr(in_hand, "count_oom_kills", lambda: kills + 1)
    assert last_words(place) == LastWords(cause="want of memory")
    assert page.place is not None
    assert page.place.oom_kills == kills + 1, "as of now, so that an old one says nothing"


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
    assert file.stat().st_size == NUM_SLOTS * SLOT_BYTES + TRACE_BYTES


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
