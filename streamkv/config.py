"""Settings: dataclasses are the schema, YAML the values, OmegaConf the merge.

    schema defaults < configs/presets/<preset>.yaml < the given YAML < a.b=c overrides

Everything below `load_config` sees frozen dataclasses, never a DictConfig. Policies are named by strings;
the names are checked by the registry of their kind when the engine is built, so that adding one is one file
(docs/policies.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from streamkv.errors import ConfigError

CONFIG_ROOT = Path(__file__).resolve().parent.parent / "configs"

DEFAULT_GUIDANCE = (
    "Keep what questions are about: objects and people with their attributes and places, actions and changes of "
    "state with their times, text, numbers and clocks on the screen, causes and outcomes, counts and layout, and "
    "whatever tells this moment from a similar one."
)
"""The guidance prompt of ALGORITHM.md, section 5, in our own words."""


def _check(problems: Iterable[str]) -> None:
    found = [p for p in problems if p]
    if found:
        raise ConfigError("; ".join(found))


def _need(ok: bool, name: str, got: object, allowed: str) -> str:
    return "" if ok else f"{name}: got {got!r}, allowed {allowed}"


@dataclass(frozen=True)
class ModelConfig:
    path: str = "townsquare"
    """A Hugging Face folder or hub id, or `townsquare` for the bundled demo model."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1` ..."""
    dtype: str = "auto"
    """`auto` is float32 on CPU (half precision is a hundred times slower there) and bfloat16 on GPU."""
    threads: int = 1
    """Torch threads of each process that runs the model; 0 leaves torch's own choice."""

    def __post_init__(self) -> None:
        dtypes = ("auto", "float32", "bfloat16", "float16")
        _check(
            [
                _need(self.dtype in dtypes, "model.dtype", self.dtype, ", ".join(dtypes)),
                _need(self.threads >= 0, "model.threads", self.threads, ">= 0"),
            ]
        )


@dataclass(frozen=True)
class SegmentConfig:
    policy: str = "semantic"
    """`semantic` closes on change; `uniform` every `max_frames`."""
    min_frames: int = 4
    max_frames: int = 64
    """A full open segment merges its most similar neighbours (semantic) or closes (uniform)."""
    theta: float = 0.99
    """Similarity at or below which a segment of at least `min_frames` closes."""
    similarity: str = "cosine"
    """Of neighbouring frames: `cosine` (the paper) or `dot` of their mean tokens, or `quartile`, the lower quartile
    of the cosines token by token (ours)."""
    max_seconds: float = 60.0
    """A segment closes after this much stream time, so that a still camera's past can be asked; 0: never."""
    still_seconds: float = 900.0
    """Unless nothing has changed since it began: then it goes on for up to this much stream time, as one frame. What is
    not yet closed is lost to a live stream whose decoder dies; 0 closes a still segment as any other."""
    still_above: float = 0.99
    """Nothing has changed in a frame whose every token's cosine with the segment's first frame is above this."""

    def __post_init__(self) -> None:
        _check(
            [
                _need(
                    1 <= self.min_frames <= self.max_frames,
                    "segment.min_frames",
                    self.min_frames,
                    f"1 to segment.max_frames ({self.max_frames})",
                ),
                _need(self.max_seconds >= 0, "segment.max_seconds", self.max_seconds, ">= 0"),
                _need(self.still_seconds >= 0, "segment.still_seconds", self.still_seconds, ">= 0"),
            ]
        )


@dataclass(frozen=True)
class BudgetConfig:
    policy: str = "adaptive"
    """`adaptive` finds one softmax mass for all layers (ALGORITHM.md, 6); `uniform` gives each the same."""
    zscore: bool = True
    """Normalise a layer's scores before the softmax (the released code; not in the paper)."""
    tau: float | None = 1.0
    """Clamp each layer to (1 - tau, 1 + tau) of the uniform share; null: no clamp (the paper)."""

    def __post_init__(self) -> None:
        _check([_need(self.tau is None or 0 <= self.tau <= 1, "budget.tau", self.tau, "0 to 1, or null")])


@dataclass(frozen=True)
class CompressConfig:
    policy: str = "guided"
    """`guided` scores frames by the guidance prompt; `none` keeps everything."""
    keep_ratio: float = 0.4
    """Share of a segment's frames that is KEPT in each layer, on average. Not the paper's share discarded."""
    summary: bool = True
    """Append the segment's mean frame, prefill it and keep its block in every layer."""
    guidance: str = DEFAULT_GUIDANCE
    similarity: Literal["dot", "cosine"] = "dot"
    """Of the guidance prompt and a frame: dot product (the released code) or cosine (the paper) of mean query and mean
    key, before rotary embedding."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        _check([_need(0 < self.keep_ratio <= 1, "compress.keep_ratio", self.keep_ratio, "above 0, up to 1")])


@dataclass(frozen=True)
class RetrieveConfig:
    policy: str = "topk"
    """`topk` by score; `agree` the same among the segments that all layers choose together; `cover` as `agree`, and for
    a question that names several moments a segment of each; `recent` the last `recent_blocks`; `window` the last
    `n_local` tokens; `everything`."""
    blocks_per_layer: int = 64
    """K: blocks retrieved in a layer, on average over layers."""
    recent_blocks: int = 8
    """Latest blocks that are always taken; they count towards K."""
    candidate_segments: int = 64
    """Segments taken from each layer's index, whose blocks are then scored; 0 scores every block (exact)."""
    agree_segments: int = 3
    """Policies `agree` and `cover`: at most this many segments, which all layers choose together, and then read nothing
    else."""
    agree_share: float = 0.0
    """The same policies: leave out segments with less than this share of the best one's score."""
    cover_share: float = 0.95
    """Policy `cover`: a question names several moments if its mean query's best segment stands out less than this share
    of what a single token's best segment does."""
    cover_above: float = 4 / 3
    """Policy `cover`: how far a segment must stand out for a token to count, in standard deviations."""
    cover_gain: float = 0.25
    """Policy `cover`: leave out segments that add less than this share of what the first one added."""
    similarity: Literal["dot", "cosine"] = "dot"
    """Of the question and a block; as `compress.similarity`. The index finds candidates by dot product."""
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(tau=0.5))

    def __post_init__(self) -> None:
        _check(
            [
                _need(self.blocks_per_layer >= 1, "retrieve.blocks_per_layer", self.blocks_per_layer, ">= 1"),
                _need(self.recent_blocks >= 0, "retrieve.recent_blocks", self.recent_blocks, ">= 0"),
                _need(
                    self.candidate_segments >= 0,
                    "retrieve.candidate_segments",
                    self.candidate_segments,
                    ">= 0",
                ),
                _need(self.agree_segments >= 1, "retrieve.agree_segments", self.agree_segments, ">= 1"),
                *(
                    _need(0 <= value <= 1, f"retrieve.{name}", value, "0 to 1")
                    for name, value in (
                        ("agree_share", self.agree_share),
                        ("cover_share", self.cover_share),
                        ("cover_gain", self.cover_gain),
                    )
                ),
                _need(self.cover_above >= 0, "retrieve.cover_above", self.cover_above, ">= 0"),
            ]
        )


@dataclass(frozen=True)
class ConfidenceConfig:
    """What the signs of a right answer are worth: a logistic regression (`python -m bench.confidence --fit`)."""

    intercept: float = 0.0
    stands_out: float = 0.0
    """Of how far the best segment's score stands out, in standard deviations, mean over layers."""
    first_token: float = 0.0
    """Of the probability of the answer's first token."""
    log_segments: float = 0.0
    """Of the logarithm of how many segments were searched."""


@dataclass(frozen=True)
class MethodConfig:
    """The whole method; a preset is one of these."""

    n_local: int = 15_000
    """Tokens of the stream that a token sees in prefill, besides the system prompt; 0: all (for `full`)."""
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    retrieve: RetrieveConfig = field(default_factory=RetrieveConfig)
    confidence: ConfidenceConfig | None = None
    """How likely an answer is right; null: it is not said. Fitted for one model and method."""
    watch_confidence: ConfidenceConfig | None = None
    """The same for a watch, which is asked of one segment (`python -m bench.watches --fit`)."""

    def __post_init__(self) -> None:
        _check([_need(self.n_local >= 0, "method.n_local", self.n_local, ">= 0")])


@dataclass(frozen=True)
class SourceConfig:
    sample_fps: float = 0.5
    """Frames sampled from a second of video."""
    batch_frames: int = 16
    """Frames that the vision tower encodes at once, from however many streams."""
    queue_frames: int = 32
    """Decoded frames that wait for the tower, for each stream. When it is full an archive's decoding pauses, and a
    live source is sampled less often."""
    keyframes_only: bool = False
    """Decode keyframes and nothing else: cheap, and a moment is seen as late as its next keyframe."""
    live_timeout_s: float = 15.0
    """A live source that does not connect, or shows no picture, for this long is away; then it is tried again."""
    outage_limit_s: float = 0.0
    """A live source that is away for longer than this has failed; 0: it may come back at any time."""

    def __post_init__(self) -> None:
        _check(
            [
                _need(self.sample_fps > 0, "source.sample_fps", self.sample_fps, "> 0"),
                _need(self.batch_frames >= 1, "source.batch_frames", self.batch_frames, ">= 1"),
                _need(self.queue_frames >= 1, "source.queue_frames", self.queue_frames, ">= 1"),
                _need(self.live_timeout_s > 0, "source.live_timeout_s", self.live_timeout_s, "> 0"),
                _need(self.outage_limit_s >= 0, "source.outage_limit_s", self.outage_limit_s, ">= 0"),
            ]
        )


@dataclass(frozen=True)
class AgeingStep:
    """From which age on a segment is stored in which codec."""

    after_s: float = 0.0
    """Seconds since it was committed."""
    codec: str = "int8"
    """A name of `store.codec`. One that would not make the file smaller changes nothing."""

    def __post_init__(self) -> None:
        _check([_need(self.after_s >= 0, "store.ageing.after_s", self.after_s, ">= 0")])


@dataclass(frozen=True)
class RetentionConfig:
    """How long and how much is kept. Nothing is deleted of a stream on legal hold."""

    max_age_s: float = 0.0
    """Segments committed longer ago are deleted; 0: none is."""
    stream_bytes: int = 0
    """Bytes of segment files that a stream may have; 0: any."""
    tenant_bytes: int = 0
    """Bytes that the streams of a tenant may have together, held ones too; those without one share one. 0: any."""
    when_full: Literal["pause", "oldest"] = "pause"
    """When a limit of bytes is reached or the disk is full: `pause` the stream's ingest until there is room, or delete
    the `oldest` segments, of the stream for its own limit, else of its tenant."""

    def __post_init__(self) -> None:
        least = {
            "max_age_s": self.max_age_s,
            "stream_bytes": self.stream_bytes,
            "tenant_bytes": self.tenant_bytes,
        }
        _check(_need(value >= 0, f"store.retention.{name}", value, ">= 0") for name, value in least.items())


@dataclass(frozen=True)
class S3Config:
    """How a bucket is reached. Its credentials are not here: AWS_ACCESS_KEY_ID and the like, ~/.aws, or a role."""

    endpoint_override: str = ""
    """`host:port` of a server that is not Amazon's."""
    scheme: Literal["https", "http"] = "https"
    region: str = ""
    """Empty: as the environment or ~/.aws/config says."""
    timeout_s: float = 10.0
    """For connecting, and for how long no byte may come."""
    attempts: int = 3
    """For each request, with pauses in between."""

    def __post_init__(self) -> None:
        _check(
            [
                _need(self.timeout_s > 0, "store.s3.timeout_s", self.timeout_s, "> 0"),
                _need(self.attempts >= 1, "store.s3.attempts", self.attempts, ">= 1"),
            ]
        )


@dataclass(frozen=True)
class StoreConfig:
    root: str = ".streamkv/store"
    """Folder of the segment store."""
    catalog_url: str = ""
    """SQLAlchemy URL; empty: SQLite in the store's folder."""
    codec: str = "fp16"
    """How keys and values are stored: `raw`, `fp16`, `int8`, `int4`; each file says which (docs/format.md)."""
    ageing: list[AgeingStep] = field(default_factory=list)
    """What becomes of old segments, e.g. `[{after_s: 86400, codec: int8}]`; empty: nothing."""
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    upkeep_s: float = 600.0
    """Seconds between two rounds in which a server deletes and ages what is due; 0: it leaves that to
    `streamkv store retain` and `streamkv store age`."""
    remote: str = ""
    """Where committed segments go as objects, behind the local disk: `s3://bucket/prefix`, `file:///folder` or another
    URI of pyarrow.fs; empty: nowhere."""
    s3: S3Config = field(default_factory=S3Config)
    local_bytes: int = 0
    """Bytes of segment files on the local disk. Above it those that are in `remote` leave it, the least recently used
    first; 0: none leaves."""
    offload_s: float = 10.0
    """Seconds between two rounds in which a server uploads what waits, longer while that fails; 0: it leaves that to
    `streamkv store offload`."""

    def __post_init__(self) -> None:
        _check(
            [
                _need(self.upkeep_s >= 0, "store.upkeep_s", self.upkeep_s, ">= 0"),
                _need(self.offload_s >= 0, "store.offload_s", self.offload_s, ">= 0"),
                _need(self.local_bytes >= 0, "store.local_bytes", self.local_bytes, ">= 0"),
                _need(
                    not self.local_bytes or bool(self.remote),
                    "store.local_bytes",
                    self.local_bytes,
                    "0 without store.remote: files would have nowhere to go",
                ),
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
        _check(
            [
                _need(self.actors >= 1, "pool.actors", self.actors, ">= 1"),
                _need(
                    self.max_actors == 0 or self.max_actors >= self.actors,
                    "pool.max_actors",
                    self.max_actors,
                    f"0, or pool.actors ({self.actors}) and more",
                ),
                _need(self.in_flight >= 1, "pool.in_flight", self.in_flight, ">= 1"),
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

    def __post_init__(self) -> None:
        limit = self.max_streams_per_decoder
        _check([_need(limit >= 0, "ingest.max_streams_per_decoder", limit, ">= 0")])


@dataclass(frozen=True)
class ServeConfig:
    host: str = "127.0.0.1"
    port: int = 8008
    proxy: Literal["serve", "haproxy"] = "serve"
    """What takes HTTP: Ray Serve's own proxy, or the HAProxy that Ray brings (docs/operations.md)."""
    replicas: int = 1
    cpus: float = 0.5
    gpus: float = 0.0
    max_new_tokens: int = 128
    max_question_chars: int = 4_000
    timeout_s: float = 60.0
    min_confidence: float = 0.1
    """Below it an answer is not given: the footage does not show it. Where `method.confidence` is set; 0: given."""
    read_open: bool = True
    """Questions see what a stream has shown up to now; else what is committed, without the prefill of the rest."""
    batch_questions: int = 8
    """Questions that a replica, or a batch's worker, answers together. Each holds its blocks' keys and values on the
    device until it is answered: a 7B model's with 64 blocks of 196 tokens a layer 0.7 GB, the demo model's 1 MB."""
    max_queued: int = 64
    """Questions that may wait for a replica; more are refused with 503. Within it wait `batch_questions` more."""
    max_clip_s: float = 60.0
    """Longest clip of a source's footage, in seconds; a longer one is refused."""
    time_phrases: bool = True
    """Words of a question such as `in the last five minutes` restrict what is looked at (docs/api.md)."""
    time_zone: str = "UTC"
    """IANA name of the zone of times that name none, such as `Europe/Berlin`."""

    def __post_init__(self) -> None:
        allowed = "an IANA time zone, such as UTC or Europe/Berlin"
        _check(
            [
                _need(_is_zone(self.time_zone), "serve.time_zone", self.time_zone, allowed),
                _need(self.replicas >= 1, "serve.replicas", self.replicas, ">= 1"),
                _need(self.timeout_s > 0, "serve.timeout_s", self.timeout_s, "> 0"),
                _need(self.max_new_tokens >= 1, "serve.max_new_tokens", self.max_new_tokens, ">= 1"),
                _need(self.max_queued >= 1, "serve.max_queued", self.max_queued, ">= 1"),
                _need(self.batch_questions >= 1, "serve.batch_questions", self.batch_questions, ">= 1"),
                _need(0 <= self.min_confidence <= 1, "serve.min_confidence", self.min_confidence, "0 to 1"),
                _need(
                    0 < self.max_clip_s <= 3600, "serve.max_clip_s", self.max_clip_s, "above 0, up to 3600"
                ),
            ]
        )


@dataclass(frozen=True)
class WatchConfig:
    """Standing questions and how their events are told."""

    max_per_stream: int = 200
    """Each is asked of every new segment, which holds up its stream for as long as that takes."""
    max_new_tokens: int = 32
    """Of an answer."""
    min_confidence: float = 0.5
    """Of watches that name none. A less likely answer counts as not shown. Where `method.watch_confidence` is set."""
    max_followers: int = 64
    """Connections that may wait for events at once; more are refused with 503."""
    timeout_s: float = 10.0
    """A webhook that has not answered after this long has failed, and is tried again."""
    tries: int = 16
    """Then an event is given up. The pauses in between double from `first_pause_s` up to `longest_pause_s`, by default
    over six hours in all."""
    first_pause_s: float = 5.0
    longest_pause_s: float = 3600.0

    def __post_init__(self) -> None:
        _check(
            [
                _need(self.max_per_stream >= 0, "watch.max_per_stream", self.max_per_stream, ">= 0"),
                _need(self.max_new_tokens >= 1, "watch.max_new_tokens", self.max_new_tokens, ">= 1"),
                _need(0 <= self.min_confidence <= 1, "watch.min_confidence", self.min_confidence, "0 to 1"),
                _need(self.max_followers >= 0, "watch.max_followers", self.max_followers, ">= 0"),
                _need(self.timeout_s > 0, "watch.timeout_s", self.timeout_s, "> 0"),
                _need(self.tries >= 1, "watch.tries", self.tries, ">= 1"),
                _need(self.first_pause_s > 0, "watch.first_pause_s", self.first_pause_s, "> 0"),
                _need(
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


@dataclass(frozen=True)
class PipelineConfig:
    """The whole of it. Whoever makes one, or is sent one, has its `plugins` imported: no process can lack a policy."""

    preset: str = "streamkv"
    plugins: list[str] = field(default_factory=list)
    """Modules that register policies of your own when they are imported; every process must find them."""
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    encode: PoolConfig = field(default_factory=PoolConfig)
    prefill: PoolConfig = field(default_factory=PoolConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        _import_plugins(self.plugins)

    def __setstate__(self, state: dict[str, Any]) -> None:  # unpickled: in another process, as a rule
        self.__dict__.update(state)
        _import_plugins(self.plugins)


def _import_plugins(names: Iterable[str]) -> None:
    for name in names:
        try:
            import_module(name)
        except ImportError as exc:
            raise ConfigError(
                f"plugins: cannot import {name!r} ({exc}); install it, or name its folder in PYTHONPATH"
            ) from exc


def preset_names() -> list[str]:
    """The presets that are shipped, sorted."""
    return sorted(p.stem for p in (CONFIG_ROOT / "presets").glob("*.yaml"))


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Schema < preset < what suits the model < YAML < `a.b=c` overrides; an unknown or mistyped key: ConfigError.

    The preset's name is read from the overrides (`preset=rekv`), else from the YAML, else it is `streamkv`. What
    suits a model is `configs/models/NAME.yaml`, NAME being the last part of `model.path`, if there is one.
    """
    schema = OmegaConf.structured(PipelineConfig)
    try:
        given = cast(DictConfig, OmegaConf.load(path)) if path is not None else OmegaConf.create()
        dotted = OmegaConf.from_dotlist(list(overrides))
        preset = dotted.get("preset") or given.get("preset") or schema.preset
        preset_file = CONFIG_ROOT / "presets" / f"{preset}.yaml"
        if preset not in preset_names():
            raise ConfigError(f"preset: unknown {preset!r}; known: {', '.join(preset_names())}")
        model_path = OmegaConf.select(OmegaConf.merge(schema, given, dotted), "model.path")
        suited = _suited(model_path, preset)
        merged = OmegaConf.merge(schema, OmegaConf.load(preset_file), suited, given, dotted)
        return cast(PipelineConfig, OmegaConf.to_object(merged))
    except FileNotFoundError as exc:
        raise ConfigError(f"config file {path}: not found; shipped ones are in {CONFIG_ROOT}") from exc
    except OmegaConfBaseException as exc:
        cause = exc.__cause__
        if isinstance(cause, ConfigError):
            raise cause from exc
        where = f" in {path}" if path else ""
        raise ConfigError(f"config{where}: {str(exc).splitlines()[0]} (key {exc.full_key!r})") from exc


def _suited(model_path: str, preset: str) -> DictConfig:
    """The method's settings that suit this model under this preset; none for a model without a file."""
    file = CONFIG_ROOT / "models" / f"{Path(model_path).name}.yaml"
    if not file.is_file():
        return OmegaConf.create()
    by_preset = cast(DictConfig, OmegaConf.load(file))
    empty = OmegaConf.create()
    method = OmegaConf.merge(by_preset.get("all", empty), by_preset.get(preset, empty))
    return OmegaConf.create({"method": method})


def config_to_dict(config: PipelineConfig) -> dict[str, Any]:
    """Plain values, for a message to another process or for printing."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def config_from_dict(values: dict[str, Any]) -> PipelineConfig:
    """The inverse of `config_to_dict`."""
    return cast(
        PipelineConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PipelineConfig), values))
    )
