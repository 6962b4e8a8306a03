"""One thread that owns an answerer: it takes what waits, up to a bound, and answers it together.

    ask -> waiting -> | join: prompts of the newcomers | step: a word of everyone's | -> reply
                      '---- as long as somebody waits or is under way ---------------'

A newcomer waits for nobody else to come, and for one step of those who are there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from actors.right_of_way import RightOfWay
from pipeline.answering import Answerer, Answering
from pipeline.asking import Asking
from pipeline.dialogue import Query, Reply
from streamkv.question import OnToken

T = TypeVar("T")


class Desk:
    """Threads may share it; what they ask is done on its own."""

    def __init__(self, answerer: Answerer, at_once: int, way: RightOfWay | None = None) -> None:
        """`at_once`: questions that are under way together; each holds what it reads. `way`: taken meanwhile."""
        self._at_once = at_once
        self._way = way or RightOfWay()
        self._answering = Answering(answerer)
        self._waiting: SimpleQueue[_Waiting | Callable[[], None] | None] = SimpleQueue()
        self._going: list[_Waiting] = []
        self._thread = threading.Thread(target=self._work, name="answer", daemon=True)
        self._thread.start()

    def ask(self, query: Query, cancelled: threading.Event, on_text: OnToken | None = None) -> Future[Reply]:
        """See `Answerer.answer`; `on_text` is called on the desk's thread."""
        waiting = _Waiting(Asking(query, cancelled, on_text))
        self._waiting.put(waiting)
        return waiting.future

    def call(self, work: Callable[..., T], *args: Any) -> Future[T]:
        """Something else that needs the answerer. It has the thread to itself, between two steps."""
        future: Future[T] = Future()
        self._waiting.put(lambda: _run(future, work, *args))
        return future

    def check_health(self) -> None:
        """Raises when nothing can be asked any more."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that answers has ended")

    def close(self) -> None:
        """Ends the thread when all that came before is answered."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            while (newcomers := self._take()) is not None:
                self._going += newcomers
                self._way.take()
                self._answering.join([waiting.asking for waiting in newcomers])
                self._settle()
                self._answering.step()
                self._settle()
                if not self._going:
                    self._way.give_back()
        except BaseException as exc:  # a mistake of ours: who is under way hears it, and `check_health` tells
            for waiting in self._going:
                if not waiting.future.done():
                    waiting.future.set_exception(exc)
        finally:
            self._way.give_back()

    def _take(self) -> list[_Waiting] | None:
        """Who waits, as many as there is room for; waits for the first if nobody is under way. None: closed."""
        newcomers: list[_Waiting] = []
        while len(newcomers) + self._answering.num_going < self._at_once:
            is_idle = not newcomers and not self._answering.num_going
            try:
                item = self._waiting.get(block=is_idle)
            except Empty:
                break
            if item is None:
                return self._closing(newcomers)
            if not isinstance(item, _Waiting):
                item()
            elif item.future.set_running_or_notify_cancel():
                newcomers.append(item)
        return newcomers

    def _closing(self, newcomers: list[_Waiting]) -> list[_Waiting] | None:
        if not newcomers and not self._answering.num_going:
            return None
        self._waiting.put(None)  # looked at again when these are done
        return newcomers

    def _settle(self) -> None:
        for waiting in self._going:
            waiting.settle()
        self._going = [waiting for waiting in self._going if not waiting.future.done()]


class _Waiting:
    """A query whose asker holds the future."""

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.future: Future[Reply] = Future()

    def settle(self) -> None:
        """Tells the outcome, if there is one."""
        outcome = self.asking.outcome
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        elif outcome is not None:
            self.future.set_result(outcome)


def _run(future: Future[T], work: Callable[..., T], *args: Any) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work(*args))
        except Exception as exc:
            future.set_exception(exc)
