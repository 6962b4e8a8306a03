"""What ingests, answers and watches: sources, actors, limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from streamkv.config.checks import check, need


@dataclass(frozen=True)
class SourceConfig:
    sample_fps: float = 0.5
    """Frames sampled from a second of video."""
    batch_frames: int = 16
    """Frames that the vision tower encodes at once: of one archive, or of however many live streams."""
    queue_frames: int = 32
    """Decoded frames that wait for the tower, for each stream, beside a batch that is being decoded. When it is full
    an archive's decoding pauses, and a live source is sampled less often."""
    keyframes_only: bool = False
    """Decode keyframes and nothing else: cheap, and a moment is seen as late as its next keyframe."""
    live_timeout_s: float = 15.0
    """A live source that does not connect, or shows no picture, for this long is away; then it is tried again."""
    outage_limit_s: float = 0.0
    """A live source that is away for longer than this has failed; 0: it may come back at any time."""

    def __post_init__(self) -> None:
        check(
            [
                need(self.sample_fps > 0, "source.sample_fps", self.sample_fps, "> 0"),
                need(self.batch_frames >= 1, "source.batch_frames", self.batch_frames, ">= 1"),
                need(self.queue_frames >= 1, "source.queue_frames", self.queue_frames, ">= 1"),
                need(self.live_timeout_s > 0, "source.live_timeout_s", self.live_timeout_s, "> 0"),
                need(self.outage_limit_s >= 0, "source.outage_limit_s", self.outage_limit_s, ">= 0"),
            ]
        )


@dataclass(frozen=True)
class PoolConfig:
    """What an actor pool costs."""

    actors: int = 1
    """Actors of the pool; with `max_actors` the fewest. `streamkv scale` sets another number while it runs."""
    cpus: float = 0.5
    gpus: float = 0.0
    in_flight: int = 2
    """Segments of one stream that may wait for the next stage before this one pauses."""
    max_actors: int = 0
    """The pool grows up to this and shrinks down to `actors` by its load; 0: it keeps its size."""

    def __post_init__(self) -> None:
        check(
            [
                need(self.actors >= 1, "pool.actors", self.actors, ">= 1"),
                need(
                    self.max_actors == 0 or self.max_actors >= self.actors,
                    "pool.max_actors",
                    self.max_actors,
                    f"0, or pool.actors ({self.actors}) and more",
                ),
                need(self.in_flight >= 1, "pool.in_flight", self.in_flight, ">= 1"),
            ]
        )

    @property
    def most_actors(self) -> int:
        return max(self.actors, self.max_actors)


@dataclass(frozen=True)
class IngestConfig:
    """Which streams are taken in."""

    max_streams_per_decoder: int = 0
    """Streams that an actor of the pool `encode` may have at a time; 0: any number."""
    when_full: Literal["refuse", "queue"] = "refuse"
    """A stream for which there is no place: `refuse` it, or have it wait as `registered` in a `queue`."""
    nice: int = 5
    """How much less urgent ingest is than answers where they share processors, 0 to 19: with 5 it has a quarter of a
    processor that both want."""
    give_way: float = 0.0
    """Share of its time that ingest may wait for questions that are under way on the same device; 0: it never does. For
    a GPU, where a niceness means nothing (configs/gpu.yaml has 0.5)."""
    replay: bool = True
    """An archive that lost its window prefills its last layers x `method.n_local` tokens again, so that it goes on to
    the bit as if nothing had happened; else it goes on at once, on a window of what is stored, as live streams do."""

    def __post_init__(self) -> None:
        limit = self.max_streams_per_decoder
        check(
            [
                need(limit >= 0, "ingest.max_streams_per_decoder", limit, ">= 0"),
                need(0 <= self.nice <= 19, "ingest.nice", self.nice, "0 to 19"),
                need(0 <= self.give_way < 1, "ingest.give_way", self.give_way, "0 to below 1"),
            ]
        )


@dataclass(frozen=True)
class ServeConfig:
    host: str = "127.0.0.1"
    port: int = 8008
    proxy: Literal["serve", "haproxy"] = "serve"
    """What takes HTTP: Ray Serve's own proxy, or the HAProxy that Ray brings (docs/operations.md)."""
    replicas: int = 1
    """Processes that answer, each with a model of its own; with `max_replicas` the fewest."""
    max_replicas: int = 0
    """There are more of them, up to this, while each has more than `batch_questions` under way; 0: always as many."""
    scale_up_s: float = 10.0
    """How long there have been too many questions before a replica is added."""
    scale_down_s: float = 300.0
    """How long there have been too few before one goes, which it does when its last question is answered."""
    cpus: float = 0.5
    gpus: float = 0.0
    max_new_tokens: int = 128
    max_question_chars: int = 4_000
    timeout_s: float = 60.0
    min_confidence: float = 0.3
    """Below it an answer is not given: the footage does not show it. Where `method.confidence` is set; 0: given."""
    read_open: bool = True
    """Questions see what a stream has shown up to now; else what is committed, without the prefill of the rest."""
    batch_questions: int = 8
    """Questions that a replica, or a batch's worker, answers together. Each holds its blocks' keys and values on the
    device until it is answered: a 7B model's with 64 blocks of 196 tokens a layer 0.7 GB, the demo model's 1 MB."""
    device_bytes: int = 0
    """Bytes of stored blocks that a replica keeps on the model's device, those that questions read last; 0: none, and
    each question copies its blocks there."""
    host_bytes: int = 0
    """Bytes of decoded blocks that a replica keeps in host memory behind that, pinned where there is a GPU; 0: none,
    and files are read from the page cache."""
    max_queued: int = 64
    """Questions that may wait for a replica; more are refused with 429. Within it wait `batch_questions` more."""
    max_clip_s: float = 60.0
    """Longest clip of a source's footage, in seconds; a longer one is refused."""
    time_phrases: bool = True
    """Words of a question such as `in the last five minutes` restrict what is looked at (docs/api.md)."""
    time_zone: str = "UTC"
    """IANA name of the zone of times that name none, such as `Europe/Berlin`."""

    def __post_init__(self) -> None:
        allowed = "an IANA time zone, such as UTC or Europe/Berlin"
        check(
            [
                need(_is_zone(self.time_zone), "serve.time_zone", self.time_zone, allowed),
                need(self.replicas >= 1, "serve.replicas", self.replicas, ">= 1"),
                need(
                    self.max_replicas == 0 or self.max_replicas >= self.replicas,
                    "serve.max_replicas",
                    self.max_replicas,
                    f"0, or serve.replicas ({self.replicas}) and more",
                ),
                need(self.scale_up_s > 0, "serve.scale_up_s", self.scale_up_s, "> 0"),
                need(self.scale_down_s > 0, "serve.scale_down_s", self.scale_down_s, "> 0"),
                need(self.timeout_s > 0, "serve.timeout_s", self.timeout_s, "> 0"),
                need(self.max_new_tokens >= 1, "serve.max_new_tokens", self.max_new_tokens, ">= 1"),
                need(self.max_queued >= 1, "serve.max_queued", self.max_queued, ">= 1"),
                need(self.device_bytes >= 0, "serve.device_bytes", self.device_bytes, ">= 0"),
                need(self.host_bytes >= 0, "serve.host_bytes", self.host_bytes, ">= 0"),
                need(self.batch_questions >= 1, "serve.batch_questions", self.batch_questions, ">= 1"),
                need(0 <= self.min_confidence <= 1, "serve.min_confidence", self.min_confidence, "0 to 1"),
                need(0 < self.max_clip_s <= 3600, "serve.max_clip_s", self.max_clip_s, "above 0, up to 3600"),
            ]
        )

    @property
    def most_replicas(self) -> int:
        return max(self.replicas, self.max_replicas)


@dataclass(frozen=True)
class WatchConfig:
    """Standing questions and how their events are told."""

    max_per_stream: int = 200
    """Each is asked of every new segment, which holds up its stream for as long as that takes."""
    max_new_tokens: int = 32
    """Of an answer."""
    min_confidence: float = 0.5
    """Of watches that name none. A less likely answer counts as not shown. Where `method.watch_confidence` is set."""
    open_share: float = 0.5
    """Of a prefill actor's time, that watches of live streams may take to look at segments that are still open; 0: they
    are asked of closed ones alone, and tell of nothing sooner."""
    max_followers: int = 64
    """Connections that may wait for events at once; more are refused with 429."""
    timeout_s: float = 10.0
    """A webhook that has not answered after this long has failed, and is tried again."""
    tries: int = 16
    """Then an event is given up. The pauses in between double from `first_pause_s` up to `longest_pause_s`, by default
    over six hours in all."""
    first_pause_s: float = 5.0
    longest_pause_s: float = 3600.0

    def __post_init__(self) -> None:
        check(
            [
                need(self.max_per_stream >= 0, "watch.max_per_stream", self.max_per_stream, ">= 0"),
                need(self.max_new_tokens >= 1, "watch.max_new_tokens", self.max_new_tokens, ">= 1"),
                need(0 <= self.min_confidence <= 1, "watch.min_confidence", self.min_confidence, "0 to 1"),
                need(0 <= self.open_share <= 1, "watch.open_share", self.open_share, "0 to 1"),
                need(self.max_followers >= 0, "watch.max_followers", self.max_followers, ">= 0"),
                need(self.timeout_s > 0, "watch.timeout_s", self.timeout_s, "> 0"),
                need(self.tries >= 1, "watch.tries", self.tries, ">= 1"),
                need(self.first_pause_s > 0, "watch.first_pause_s", self.first_pause_s, "> 0"),
                need(
                    self.longest_pause_s >= self.first_pause_s,
                    "watch.longest_pause_s",
                    self.longest_pause_s,
                    ">= watch.first_pause_s",
                ),
            ]
        )


def _is_zone(name: str) -> bool:
    try:
        return name == "UTC" or bool(ZoneInfo(name))  # UTC is there without the zones' own database
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return False
