"""Answers questions from the store: a model, an engine, and the streams that were asked about lately.

Any process can answer for any stream; one that was asked before still has its index. Where several queries wait they
are answered together (`asking.py` is one of them, `desk.py` the thread that takes them).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from pipeline.asking import Asking, Past
from pipeline.dialogue import CancelledError, Query, Reply
from streamkv.config import PipelineConfig
from streamkv.engine import Engine
from streamkv.errors import SegmentGoneError, StoreError
from streamkv.latest import LatestPast
from streamkv.memory import VideoMemory
from streamkv.models import load_model
from streamkv.question import OnToken, Question
from streamkv.store import ModelIdentity, NearTier, SegmentStore, StreamReader, StreamSnapshot
from streamkv.together import Together, UnderWay
from streamkv.types import Segment

MAX_WARM = 256
"""Streams whose index is kept; the least recently asked is forgotten first."""
MAX_WINDOWS = 8
"""Streams that are ingested whose window is kept; each holds `n_local` tokens in every layer."""

LatestSegments = Callable[[str, torch.device], list[Segment]]
"""What a stream has shown and is not yet durable."""


class Answerer:
    """The streams and the engine that answers from them. One thread's: callers take turns."""

    def __init__(self, config: PipelineConfig, latest: LatestSegments | None = None) -> None:
        """`latest`: None where nobody ingests."""
        self.config = config
        self._latest = latest if config.serve.read_open else None
        self._latest_pasts: OrderedDict[str, LatestPast] = OrderedDict()
        self._model = load_model(config.model)
        self.engine = Engine(self._model, config.method)
        self._store: SegmentStore | None = None
        self._readers: OrderedDict[str, StreamReader] = OrderedDict()

    def answer(self, query: Query, cancelled: threading.Event, on_text: OnToken | None = None) -> Reply:
        """One query by itself: tells each new piece of the answer's text.

        Raises:
            QuestionError, UnknownStreamError, StoreError: what was asked cannot be answered.
            CancelledError: `cancelled` was set before the end.
        """
        asking, answering = Asking(query, cancelled, on_text), Answering(self)
        answering.join([asking])
        while asking.outcome is None:
            answering.step()
        if isinstance(asking.outcome, Exception):
            raise asking.outcome
        return asking.outcome

    def past(self, stream_id: str) -> Past:
        """What a query about the stream finds now."""
        memory = self._memory(stream_id)
        return Past(memory, self.opened().record(stream_id))  # after the memory: gaps up to its end are in it

    def committed(self, stream_id: str) -> StreamSnapshot:
        """What is durable of the stream; StoreError when that is nothing."""
        memory = self._reader(stream_id).refresh()
        if not memory.segments:
            raise StoreError(
                f"stream {stream_id!r}: nothing is committed yet, or all of it was deleted by retention; wait for its "
                "first segment, then ask again"
            )
        return memory

    def _memory(self, stream_id: str) -> VideoMemory:
        """All that the stream has shown up to now, but for what retention deleted; StoreError when that is nothing."""
        memory = self._past_and_latest(stream_id)
        if not memory.segments:
            raise StoreError(
                f"stream {stream_id!r}: it has shown nothing yet, or all of it was deleted by retention, so there is "
                "nothing to answer from; wait for its next frame, then ask again"
            )
        return memory

    def _past_and_latest(self, stream_id: str) -> VideoMemory:
        reader, record = self._reader(stream_id), self.opened().record(stream_id)
        if self._latest is None or record.state != "ingesting":
            return reader.refresh()
        segments = self._latest(stream_id, self._model.device)
        past = reader.refresh()  # second: what is committed in between is then in both, and not in neither
        latest_past = self._latest_pasts.pop(stream_id, None) or LatestPast(self.engine)
        self._latest_pasts[stream_id] = latest_past
        if len(self._latest_pasts) > MAX_WINDOWS:
            self._latest_pasts.popitem(last=False)
        return latest_past.joined(past, segments, str(record.config.get("guidance", "")))

    def _reader(self, stream_id: str) -> StreamReader:
        reader = self._readers.pop(stream_id, None) or self.opened().reader(stream_id)
        self._readers[stream_id] = reader
        while len(self._readers) > MAX_WARM:
            self._readers.popitem(last=False)
        return reader

    def opened(self) -> SegmentStore:
        """The store, which only ingest writes."""
        if self._store is None:  # made by the ingest plane, perhaps after this process started
            self._store = SegmentStore.configured(
                self.config.store, identity=ModelIdentity.of(self._model), read_only=True
            )
            tiers = (
                NearTier(str(self._model.device), self.config.serve.device_bytes),
                NearTier("cpu", self.config.serve.host_bytes),
            )
            self._store.keep_near([tier for tier in tiers if tier.num_bytes])
        return self._store


class Answering:
    """Queries that are under way together. One thread's, as is the answerer."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._together = Together(answerer.engine)
        self._going: list[tuple[Asking, UnderWay]] = []

    @property
    def num_going(self) -> int:
        """Queries that have no outcome yet."""
        return len(self._going)

    def join(self, askings: Sequence[Asking]) -> None:
        """Reads them together, up to their first words; those of one stream see it at one moment."""
        gone = self._read(askings)
        for asking in gone:  # segments went meanwhile: again, of what retention has left
            asking.outcome = None
        self._read(gone)

    def step(self) -> None:
        """The next word of each."""
        for asking, one in self._going:
            if asking.cancelled.is_set():
                one.leave(CancelledError())
        self._together.step()
        self._settle()

    def _read(self, askings: Sequence[Asking]) -> list[Asking]:
        """Those that looked for a segment that was deleted."""
        pasts: dict[str, Past] = {}
        asked: list[tuple[Asking, Question]] = []
        for asking in askings:
            try:
                asked.append(
                    (asking, asking.question(self._past(asking, pasts), self._answerer.config.serve))
                )
            except Exception as exc:  # whatever is wrong with one, the others are to be answered
                asking.outcome = exc
        joined = self._together.join([question for _, question in asked]) if asked else []
        self._going += zip((asking for asking, _ in asked), joined, strict=True)
        self._settle()
        return [asking for asking in askings if isinstance(asking.outcome, SegmentGoneError)]

    def _past(self, asking: Asking, pasts: dict[str, Past]) -> Past:
        stream_id = asking.checked(self._answerer.config.serve).stream_id
        if stream_id not in pasts:
            pasts[stream_id] = self._answerer.past(stream_id)
        return pasts[stream_id]

    def _settle(self) -> None:
        """Those that have been answered have left."""
        for asking, one in self._going:
            try:
                if one.outcome is not None:
                    asking.settle(one.outcome)
            except Exception as exc:  # as above
                asking.outcome = exc
        self._going = [(asking, one) for asking, one in self._going if one.outcome is None]
