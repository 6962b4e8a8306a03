"""The HTTP API's bodies, `/v1`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from actors.views import MAX_PRIORITY, GapView, LiveView, NextView, PoolView, StreamView

Moment = Annotated[float, Field(strict=True, allow_inf_nan=False)] | Annotated[str, Field(max_length=64)]
From = Annotated[
    Moment | None,
    Field(
        alias="from", description="only what was shown from then on: seconds of the stream, or an ISO time"
    ),
]
To = Annotated[Moment | None, Field(alias="to", description="only what was shown before then")]


Thumbnails = Annotated[
    bool, Field(description="with the heaviest evidence, small pictures inside the answer (data URLs)")
]
FrameLink = Annotated[
    str | None, Field(description="path of the picture in its middle; null: the source is live")
]
ClipLink = Annotated[str | None, Field(description="path of its footage as MP4; null: the source is live")]


def example(**values: Any) -> ConfigDict:
    """Of a request's body, which has no other fields than its own."""
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [values]})


class NewStream(BaseModel):
    """A video to ingest."""

    model_config = example(id="lobby", uri="/footage/lobby.mp4")

    id: Annotated[str, Field(description="1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit")]
    uri: Annotated[str, Field(min_length=1, max_length=4096, description="as the server sees it")]
    guidance: Annotated[
        str,
        Field(max_length=2000, description="what to keep of it, in words; empty: the server's own prompt"),
    ] = ""
    tenant: Annotated[
        str, Field(max_length=200, description="whose it is; a tenant's streams share a limit of bytes")
    ] = ""
    priority: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_PRIORITY,
            description="its share over that of a stream with 1, where not all can be taken in",
        ),
    ] = 1


class Reencode(BaseModel):
    """What a stream is to be encoded with, once more; what is left out stays as it is."""

    model_config = example(guidance="signs and what they say", keep_ratio=0.2)

    guidance: Annotated[
        str | None, Field(max_length=2000, description="what to keep of it; empty: the server's own prompt")
    ] = None
    keep_ratio: Annotated[
        float | None,
        Field(ge=0, le=1, description="share of frames that each layer keeps; 0: the server's own"),
    ] = None
    model: Annotated[
        str, Field(max_length=4096, description="the server's; any other is refused, a store is of one model")
    ] = ""


class Next(BaseModel):
    """A stream's memory that is being made anew, and how far it has come."""

    state: Annotated[
        str, Field(description="done: whole, and about to take its place unless `detail` says why not")
    ]
    detail: str
    duration_s: float
    position_s: float
    segments: int
    file_bytes: int
    guidance: str
    keep_ratio: Annotated[float, Field(description="0: the server's")]

    @classmethod
    def of(cls, view: NextView) -> Next:
        return cls(
            segments=view.num_segments, **{n: v for n, v in asdict(view).items() if n != "num_segments"}
        )


class Gap(BaseModel):
    """Footage that is missing, in seconds of stream time."""

    start_s: float
    end_s: float
    reason: str

    @classmethod
    def of(cls, gap: GapView) -> Gap:
        return cls(start_s=gap.start_s, end_s=gap.end_s, reason=gap.reason)


class Live(BaseModel):
    """How a live source fares, since its session began."""

    sample_fps: Annotated[
        float, Field(description="in effect; lower while frames come faster than they go in")
    ]
    dropped_frames: Annotated[int, Field(description="that found no place even so; their time is a gap")]
    frame_age_s: Annotated[float | None, Field(description="of the newest frame that went in")]
    clock: Annotated[str, Field(description="that dates the frames: sender or arrival")]
    connections: int
    outage: Annotated[str, Field(description="since when and why the source is away")]

    @classmethod
    def of(cls, view: LiveView) -> Live:
        return cls(**asdict(view))


class Stream(BaseModel):
    """A stream and how far it has come."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "lobby",
                    "uri": "/footage/lobby.mp4",
                    "state": "ingesting",
                    "detail": "",
                    "duration_s": 600.0,
                    "position_s": 420.0,
                    "as_of_s": 408.0,
                    "segments": 34,
                    "frames": 204,
                    "source_frames": 210,
                    "kv_bytes": 9830400,
                    "file_bytes": 9912320,
                    "restarts": 0,
                    "gaps": [],
                }
            ]
        }
    )

    id: str
    uri: Annotated[str, Field(description="without credentials")]
    state: Annotated[str, Field(description="registered, ingesting, paused, done, failed or stopped")]
    detail: str
    duration_s: Annotated[float, Field(description="as the source says; 0 when it does not")]
    position_s: Annotated[float, Field(description="stream time up to which frames were encoded")]
    as_of_s: Annotated[float, Field(description="stream time up to which questions are answered")]
    segments: int
    frames: Annotated[int, Field(description="kept, after similar neighbours were merged")]
    source_frames: Annotated[int, Field(description="sampled")]
    kv_bytes: int
    file_bytes: int
    restarts: int
    gaps: list[Gap]
    live: Annotated[Live | None, Field(description="null when it is an archive or not being ingested")] = None
    guidance: Annotated[str, Field(description="its own guidance prompt; empty: the server's")] = ""
    tenant: Annotated[str, Field(description="whose it is")] = ""
    legal_hold: Annotated[str, Field(description="why nothing of it may be deleted; empty: it may")] = ""
    keep_ratio: Annotated[float, Field(description="its own share of frames kept; 0: the server's")] = 0.0
    priority: Annotated[int, Field(description="its share over that of a stream with 1")] = 1
    queued_frames: Annotated[int, Field(description="decoded, that wait for the vision tower")] = 0
    waiting_segments: Annotated[int, Field(description="closed, that are not committed yet")] = 0
    reencode: Annotated[Next | None, Field(description="what is to take its place; null: nothing")] = None

    @classmethod
    def of(cls, view: StreamView) -> Stream:
        return cls(
            id=view.stream_id,
            uri=view.uri,
            state=view.state,
            detail=view.detail,
            duration_s=view.duration_s,
            position_s=view.position_s,
            as_of_s=view.as_of_s,
            segments=view.num_segments,
            frames=view.num_frames,
            source_frames=view.num_source_frames,
            kv_bytes=view.kv_bytes,
            file_bytes=view.file_bytes,
            restarts=view.restarts,
            gaps=[Gap.of(gap) for gap in view.gaps],
            live=Live.of(view.live) if view.live is not None else None,
            guidance=view.guidance,
            tenant=view.tenant,
            legal_hold=view.legal_hold,
            keep_ratio=view.keep_ratio,
            priority=view.priority,
            queued_frames=view.queued_frames,
            waiting_segments=view.waiting_segments,
            reencode=Next.of(view.next) if view.next is not None else None,
        )


class StreamList(BaseModel):
    streams: list[Stream]


class Worker(BaseModel):
    """An actor of a pool."""

    name: str
    state: Annotated[str, Field(description="starting, up, away or leaving")]
    streams: Annotated[int, Field(description="that it has, or that are on their way to it")]
    detail: Annotated[str, Field(description="why it does not start")] = ""


class Pool(BaseModel):
    """The actors of one stage of ingest."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "encode",
                    "size": 2,
                    "lowest": 1,
                    "highest": 4,
                    "is_set": False,
                    "busy": 0.71,
                    "workers": [
                        {"name": "encode-0", "state": "up", "streams": 40, "detail": ""},
                        {"name": "encode-1", "state": "starting", "streams": 0, "detail": ""},
                    ],
                }
            ]
        }
    )

    name: Annotated[str, Field(description="encode or prefill")]
    size: Annotated[int, Field(description="actors that it is to have")]
    lowest: Annotated[int, Field(description="the configuration's range, within which it follows the load")]
    highest: int
    is_set: Annotated[bool, Field(description="its size was set, and does not follow the load")]
    busy: Annotated[float | None, Field(description="share of the last minutes at work; null: not known yet")]
    workers: list[Worker]

    @classmethod
    def of(cls, view: PoolView) -> Pool:
        return cls(**asdict(view))


class PoolList(BaseModel):
    pools: list[Pool]


PoolSize = Annotated[int, Field(ge=0, le=10_000)]


class NewSizes(BaseModel):
    """How many actors each pool is to have; 0: as the configuration and the load have it; null: as it is."""

    model_config = example(encode=3, prefill=2)

    encode: PoolSize | None = None
    prefill: PoolSize | None = None


class Segment(BaseModel):
    """A committed segment: what an answer's evidence names."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "segment": 12,
                    "start_s": 143.0,
                    "end_s": 152.0,
                    "frames": 5,
                    "source_frames": 5,
                    "kv_bytes": 294912,
                    "file_bytes": 301056,
                }
            ]
        }
    )

    segment: int
    start_s: float
    end_s: float
    frames: Annotated[int, Field(description="kept, after similar neighbours were merged")]
    source_frames: Annotated[int, Field(description="sampled")]
    kv_bytes: int
    file_bytes: int


class SegmentList(BaseModel):
    segments: Annotated[list[Segment], Field(description="in time order")]
    next_after: Annotated[int | None, Field(description="`after` of the next page; null when there is none")]


class Question(BaseModel):
    """A question about one stream's past."""

    model_config = example(
        question="what colour is the bus at 14:07?", max_new_tokens=32, **{"from": 120, "to": 180}
    )

    question: str
    max_new_tokens: Annotated[int | None, Field(ge=1, le=4096, description="default: the server's")] = None
    start: From = None
    end: To = None
    thumbnails: Thumbnails = False


class Evidence(BaseModel):
    """A segment that the answer rests on."""

    segment: int
    start_s: float
    end_s: float
    weight: Annotated[float, Field(description="share of the answer's attention to video")]
    frame: FrameLink = None
    clip: ClipLink = None
    thumbnail: Annotated[
        str | None,
        Field(description="the frame as a small JPEG, as a data URL, if `thumbnails` were asked for"),
    ] = None


class Span(BaseModel):
    """The part of a stream's past that was looked at, in seconds of stream time; null where a side is open."""

    start_s: float | None
    end_s: float | None
    words: Annotated[str | None, Field(description="of the question, that say so; null: `from` and `to`")]


class Answer(BaseModel):
    """An answer, what it rests on, and how fresh it is."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "answer": "red",
                    "evidence": [
                        {
                            "segment": 12,
                            "start_s": 143.0,
                            "end_s": 152.0,
                            "weight": 0.61,
                            "frame": "/v1/streams/lobby/frames?at_s=147.5",
                            "clip": "/v1/streams/lobby/clip.mp4?from=143&to=152",
                            "thumbnail": None,
                        }
                    ],
                    "confidence": 0.93,
                    "as_of_s": 600.0,
                    "timings_ms": {"search": 1.2, "first_token": 31.0, "total": 40.5},
                    "gaps": [],
                    "span": {"start_s": 120.0, "end_s": 180.0, "words": None},
                }
            ]
        }
    )

    answer: str
    evidence: Annotated[list[Evidence], Field(description="heaviest first")]
    confidence: Annotated[
        float | None,
        Field(description="how likely it is right; null: not known for this model", ge=0, le=1),
    ] = None
    as_of_s: Annotated[float, Field(description="stream time up to which the stream was read")]
    timings_ms: dict[str, float]
    gaps: Annotated[list[Gap], Field(description="footage that is missing from what was read")]
    span: Annotated[Span | None, Field(description="what the answer was restricted to; null: nothing")] = None


class Search(BaseModel):
    """A question to many streams: which of them have shown it, and when?"""

    model_config = example(question="where is the red truck?", streams=["lobby", "yard"], max_streams=3)

    question: str
    streams: Annotated[
        Literal["*"] | Annotated[list[str], Field(min_length=1, max_length=10_000)],
        Field(description="ids, or `*` for all"),
    ] = "*"
    max_streams: Annotated[int, Field(ge=1, le=100, description="as many as are found at most")] = 5
    answer: Annotated[bool, Field(description="whether each of these is asked, too")] = True
    max_new_tokens: Annotated[int | None, Field(ge=1, le=4096, description="default: the server's")] = None
    start: From = None
    end: To = None
    thumbnails: Thumbnails = False


class FoundMoment(BaseModel):
    """A segment that the search found."""

    segment: int
    start_s: float
    end_s: float
    score: float
    frame: FrameLink = None
    clip: ClipLink = None


class FoundStream(BaseModel):
    """A stream that the search found."""

    stream_id: str
    score: Annotated[
        float, Field(description="of its best moment; compares the streams and moments of one search only")
    ]
    moments: Annotated[list[FoundMoment], Field(description="best first, a few")]
    answer: Annotated[Answer | None, Field(description="of this stream alone; null: none was asked for")]


class SkippedStream(BaseModel):
    """A stream that was not searched."""

    stream_id: str
    reason: str


class SearchResult(BaseModel):
    """The streams that fit a question best."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "streams": [
                        {
                            "stream_id": "lobby",
                            "score": 3.6,
                            "moments": [{"segment": 12, "start_s": 143.0, "end_s": 152.0, "score": 3.6}],
                            "answer": None,
                        }
                    ],
                    "searched": 63,
                    "skipped": [{"stream_id": "yard", "reason": "nothing is committed yet"}],
                    "timings_ms": {"search": 40.2, "total": 41.0},
                }
            ]
        }
    )

    streams: Annotated[list[FoundStream], Field(description="best first")]
    searched: Annotated[int, Field(description="streams that were looked at")]
    skipped: list[SkippedStream]
    timings_ms: Annotated[dict[str, float], Field(description="search, total")]


class ErrorBody(BaseModel):
    type: str
    message: str


class ErrorResponse(BaseModel):
    """Every answer that is not a success has this form."""

    model_config = example(
        error={"type": "UnknownStreamError", "message": "stream 'loby': unknown; known: lobby"}
    )

    error: ErrorBody


class Health(BaseModel):
    status: Annotated[str, Field(description="ok, starting or failed")]
    detail: str = ""
