"""A request's body to the question that it asks; what cannot be answered in its form is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.dialogue import Query, SearchQuery
from pipeline.openai.bodies import MODEL, ChatRequest
from pipeline.openai.errors import RefusedError
from streamkv.conversation import Turn
from streamkv.errors import StreamIdError, UnknownStreamError
from streamkv.store.layout import check_stream_id

ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([], ""),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "prediction": (),
    "web_search_options": (),
}
"""Values, besides null, of the parameters that would change an answer's form; any other is refused."""
SAME = {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""With these, greedy decoding is what was asked for."""


def read_query(request: ChatRequest) -> Query:
    """The question with its earlier turns; RefusedError when it cannot be answered in the form asked for."""
    question, earlier = _turns_of(request)
    return Query(
        stream_id=stream_of(request),
        question=question,
        earlier=earlier,
        max_new_tokens=request.max_completion_tokens or request.max_tokens,
        start=request.start,
        end=request.end,
    )


def read_search(request: ChatRequest) -> SearchQuery:
    """The same of a question to several `streams`, which there must be."""
    assert request.streams is not None
    if request.stream_id or request.model != MODEL:
        raise RefusedError(
            f"streams: got {request.stream_id or request.model!r} beside it; name one stream or several, and ask the "
            f"model {MODEL} with several",
            param="streams",
        )
    question, earlier = _turns_of(request)
    return SearchQuery(
        question,
        None if request.streams == "*" else tuple(dict.fromkeys(request.streams)),
        max_streams=request.max_streams or SearchQuery._field_defaults["max_streams"],
        max_new_tokens=request.max_completion_tokens or request.max_tokens,
        start=request.start,
        end=request.end,
        earlier=earlier,
    )


def _turns_of(request: ChatRequest) -> tuple[str, tuple[Turn, ...]]:
    """The last turn's text, and those before it."""
    given = request.model_extra or {}
    for name, allowed in ONLY.items():
        value = given.get(name)
        if value is not None and value not in allowed:
            raise RefusedError(
                f"{name}: got {str(value)[:80]!r}, {_only(allowed)}", param=name, code="unsupported_value"
            )
    *earlier, question = request.messages
    last = len(earlier)
    if question.role != "user":
        raise RefusedError(
            f"messages.{last}.role: got {question.role!r}, allowed 'user': the last message is the question",
            param="messages",
        )
    said = [
        (message.role, text_of(message.content, f"messages.{i}.content")) for i, message in enumerate(earlier)
    ]
    # A system message is put among the user's words: the model's own system prompt is part of the stored video.
    earlier_turns = tuple(
        Turn("assistant" if who == "assistant" else "user", text) for who, text in said if text.strip()
    )
    return text_of(question.content, f"messages.{last}.content"), earlier_turns


def _only(allowed: Sequence[Any]) -> str:
    return f"allowed {' or '.join(repr(a) for a in allowed)}" if allowed else "not supported; leave it out"


def read_ignored(request: ChatRequest) -> list[str]:
    """Names of parameters without effect, but for those that ask for nothing else than what is done."""
    given = request.model_extra or {}
    ignored = [n for n, v in given.items() if v is not None and n not in ONLY and v != SAME.get(n)]
    if request.streams is None and request.max_streams is not None:
        ignored.append("max_streams")
    return sorted(ignored)


def stream_of(request: ChatRequest) -> str:
    """The stream that is asked about; RefusedError when none is named, or two are."""
    named = "" if request.model == MODEL else stream_of_model(request.model)
    chosen = request.stream_id or named
    if not chosen:
        raise RefusedError(
            f"stream_id: which stream? Name it here, or ask the model {MODEL}/STREAM; /v1/models lists them",
            param="stream_id",
            code="missing_stream_id",
        )
    if named and named != chosen:
        raise RefusedError(
            f"stream_id: got {chosen!r}, but the model is {request.model!r}", param="stream_id"
        )
    try:
        return check_stream_id(chosen)
    except StreamIdError as exc:
        raise UnknownStreamError(
            f"stream {chosen[:80]!r}: unknown, and none can be called so: {exc}"
        ) from None


def stream_of_model(model: str) -> str:
    head, _, stream_id = model.partition("/")
    if head != MODEL or not stream_id:
        raise UnknownStreamError(f"model {model[:80]!r}: unknown; ask {MODEL}/STREAM, /v1/models lists them")
    return stream_id


def text_of(content: object, where: str) -> str:
    """The text, or the text parts line by line; RefusedError for anything else."""
    if isinstance(content, list):
        return "\n".join(_part_text(part, f"{where}.{i}") for i, part in enumerate(content))
    return _unicode("" if content is None else content, where)


def _part_text(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or kind != "text":
        raise RefusedError(
            f"{where}: got a part of type {kind!r}, allowed 'text': the pictures are those of the stream",
            param="messages",
            code="unsupported_content",
        )
    return _unicode(part.get("text"), f"{where}.text")


def _unicode(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise RefusedError(
            f"{where}: got {type(text).__name__}, allowed text or text parts", param="messages"
        )
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise RefusedError(f"{where}: half of a character at {exc.start}", param="messages") from None
    return text
