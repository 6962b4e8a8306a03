"""Finds the streams that a question is about, and asks each of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.answering import Answerer
from pipeline.asking import links_to
from pipeline.dialogue import Query, Reply, SearchQuery, SearchReply
from pipeline.schemas import FoundMoment, FoundStream, SearchResult, SkippedStream
from pipeline.spans import asked_span
from streamkv import many
from streamkv.errors import QuestionError, StoreError, UnknownStreamError
from streamkv.excerpt import between
from streamkv.memory import VideoMemory
from streamkv.question import check_question
from streamkv.store import StreamRecord

MOMENTS = 3
"""Of each stream that is found."""


class _Part(NamedTuple):
    """What is looked at of one stream."""

    record: StreamRecord
    memory: VideoMemory
    question: str = ""  # without words that named the part; empty: it is the whole


class Search(NamedTuple):
    """What was found, before the streams are asked."""

    query: SearchQuery
    begun: float
    parts: dict[str, _Part]
    skipped: dict[str, StoreError | QuestionError]
    found: list[many.FoundStream]
    search_ms: float

    @property
    def stream_ids(self) -> list[str]:
        """Of the streams that were found, the best first."""
        ids = list(self.parts)
        return [ids[one.stream] for one in self.found]

    @property
    def to_ask(self) -> list[Query]:
        """The question to each of them, if they are to answer."""
        return [self.query.of(stream_id) for stream_id in self.stream_ids] if self.query.answer else []


class Searcher:
    """Shares an answerer's streams: `find` takes its turn with the answerer's questions."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer

    def search(self, query: SearchQuery, cancelled: threading.Event) -> SearchReply:
        """`find`, then the streams' answers one after the other, then `reply`."""
        search = self.find(query)
        return self.reply(search, [self._answerer.answer(asked, cancelled) for asked in search.to_ask])

    def find(self, query: SearchQuery) -> Search:
        """The best streams for a question.

        Raises:
            QuestionError, UnknownStreamError, StoreError: what was asked cannot be answered, by any of the streams.
        """
        begun = time.perf_counter()
        question = check_question(query.question, self._answerer.config.serve.max_question_chars)
        skipped: dict[str, StoreError | QuestionError] = {}
        parts = dict(self._parts(query, skipped))
        if not parts:
            raise _reason(list(skipped.values()))
        whole = many.ManyVideos([part.memory for part in parts.values()])
        asked = next((part.question for part in parts.values() if part.question), question)
        scores = self._answerer.engine.find(whole, asked)
        found = many.best_streams(whole, scores, query.max_streams, MOMENTS)
        return Search(query, begun, parts, skipped, list(found), 1000 * (time.perf_counter() - begun))

    def reply(self, search: Search, replies: Sequence[Reply]) -> SearchReply:
        """All of it, with what each stream says to its `Search.to_ask`: what it would say by itself."""
        told = list(replies) if search.query.answer else [None] * len(search.found)
        result = SearchResult(
            streams=[
                self._told(one, search.parts[stream_id].record, reply)
                for one, stream_id, reply in zip(search.found, search.stream_ids, told, strict=True)
            ],
            searched=len(search.parts),
            skipped=[SkippedStream(stream_id=s, reason=str(why)) for s, why in search.skipped.items()],
            timings_ms={"search": search.search_ms, "total": 1000 * (time.perf_counter() - search.begun)},
        )
        return SearchReply(
            result,
            prompt_tokens=sum(reply.prompt_tokens for reply in replies),
            completion_tokens=sum(reply.completion_tokens for reply in replies),
            finish="length" if any(reply.finish == "length" for reply in replies) else "stop",
        )

    def _told(self, found: many.FoundStream, record: StreamRecord, reply: Reply | None) -> FoundStream:
        """A stream that was found, and its own answer where that is asked for."""
        max_clip_s = self._answerer.config.serve.max_clip_s
        return FoundStream(
            stream_id=record.name,
            score=found.score,
            moments=[
                FoundMoment(
                    segment=s.segment_no,
                    start_s=s.start_s,
                    end_s=s.end_s,
                    score=score,
                    **links_to(record, s.start_s, s.end_s, max_clip_s)._asdict(),
                )
                for s, score in found.segments
            ],
            answer=reply.answer if reply is not None else None,
        )

    def _parts(
        self, query: SearchQuery, skipped: dict[str, StoreError | QuestionError]
    ) -> Iterator[tuple[str, _Part]]:
        """What is looked at of each stream, by id; those where that is nothing are noted as skipped."""
        records = {record.name: record for record in self._answerer.opened().records()}
        for stream_id in records if query.streams is None else query.streams:
            if stream_id not in records:
                raise UnknownStreamError(
                    f"stream {stream_id!r}: unknown; known: {', '.join(records) or 'none'}"
                )
            try:
                memory = self._answerer.committed(stream_id)
                asked = asked_span(
                    query.of(stream_id), memory, records[stream_id], self._answerer.config.serve
                )
                if asked is None:
                    yield stream_id, _Part(records[stream_id], memory)
                else:
                    yield stream_id, _Part(records[stream_id], between(memory, asked.span), asked.question)
            except (StoreError, QuestionError) as exc:  # also a stream that was removed just now
                skipped[stream_id] = exc


def _reason(problems: Sequence[StoreError | QuestionError]) -> StoreError | QuestionError:
    """Why nothing was searched: what is wrong with the question, rather than with a stream."""
    if not problems:
        return StoreError("there is no stream yet; add one, then ask again")
    return next((p for p in problems if isinstance(p, QuestionError)), problems[0])
