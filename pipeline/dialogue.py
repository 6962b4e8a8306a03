"""What the ingress sends to an answering replica, and what comes back. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pipeline.schemas import Answer, SearchResult
from streamkv.conversation import Turn
from streamkv.when import Moment


class CancelledError(Exception):
    """Nobody waits for it any more."""


class Query(NamedTuple):
    """A question, not yet checked against the configuration's limits."""

    stream_id: str
    question: str
    earlier: tuple[Turn, ...] = ()
    max_new_tokens: int | None = None  # None: the configuration's
    start: Moment | None = None  # where the past that is looked at begins and ends; None: open
    end: Moment | None = None


class SearchQuery(NamedTuple):
    """A question to many streams."""

    question: str
    streams: tuple[str, ...] | None = None  # None: all
    max_streams: int = 5  # that are found
    answer: bool = True  # each of these too
    max_new_tokens: int | None = None
    start: Moment | None = None
    end: Moment | None = None
    earlier: tuple[Turn, ...] = ()

    def of(self, stream_id: str) -> Query:
        """The same question to one of them."""
        return Query(
            stream_id, self.question, self.earlier, self.max_new_tokens, start=self.start, end=self.end
        )


class Reply(NamedTuple):
    """An answer and what it cost."""

    answer: Answer
    prompt_tokens: int  # system prompt, earlier turns and question; not the video that was read
    completion_tokens: int
    finish: Literal["stop", "length"]  # the model ended it, or the limit did


class SearchReply(NamedTuple):
    """What a search found, and what its answers cost together."""

    result: SearchResult
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: Literal["stop", "length"] = "stop"  # a limit ended one of the answers


class ClipHead(NamedTuple):
    """What comes before a clip's bytes."""

    start_s: float  # stream time of the first picture
    end_s: float
    num_bytes: int
    how: Literal["copied", "encoded"]


class Picture(NamedTuple):
    """What a stream showed."""

    jpeg: bytes
    at_s: float  # later than asked for where footage is missing
