"""What a stream's catalog row says of how it is encoded: its source, and settings of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from actors.views import MAX_PRIORITY, Reencoding
from streamkv.compression import make_compressor
from streamkv.config import PipelineConfig
from streamkv.errors import ConfigError, SourceError
from streamkv.live import is_live
from streamkv.store import StreamRecord
from streamkv.video import VideoInfo


def stream_config(
    config: PipelineConfig, found: VideoInfo, guidance: str = "", keep_ratio: float = 0.0, priority: int = 1
) -> dict[str, Any]:
    """What is noted of a stream when its encoding begins."""
    return {
        "preset": config.preset,
        "sample_fps": config.source.sample_fps,
        "duration_s": found.duration_s,
        "width": found.width,
        "height": found.height,
        "codec": found.codec,
        "is_live": found.is_live,
        "guidance": guidance,
        **({"keep_ratio": keep_ratio} if keep_ratio else {}),
        **({"priority": priority} if priority != 1 else {}),
    }


def check_priority(priority: int) -> None:
    if not 1 <= priority <= MAX_PRIORITY:
        raise ConfigError(f"priority: got {priority}, allowed 1 to {MAX_PRIORITY}")


def own_settings(config: PipelineConfig, info: StreamRecord, new: Reencoding) -> tuple[str, float]:
    """Guidance and share kept of a stream that is to be encoded again.

    Raises:
        ConfigError: settings that this server cannot encode by.
        SourceError: its past cannot be seen again.
    """
    if info.config.get("is_live", is_live(info.uri)):
        raise SourceError(
            f"stream {info.name!r}: a live source, whose footage is not kept, so that it cannot be encoded again; add "
            "it as another stream with the new settings, and remove this one when that has seen enough"
        )
    if not info.uri:
        raise SourceError(f"stream {info.name!r}: nobody knows its source any more; add it anew")
    if new.model not in ("", config.model.path):
        raise ConfigError(
            f"model: got {new.model!r}, but a store is of one model, this one of {config.model.path!r}; encode all "
            f"streams again, for another store: streamkv upgrade model.path={new.model}"
        )
    guidance = str(info.config.get("guidance", "")) if new.guidance is None else new.guidance.strip()
    before = float(info.config.get("keep_ratio", 0.0))
    keep_ratio = before if new.keep_ratio is None else new.keep_ratio
    if keep_ratio and config.method.compress.policy == "none":
        raise ConfigError(
            f"keep_ratio: preset {config.preset!r} keeps every frame whatever it says; start the server with another "
            "preset, or leave it out"
        )
    check_own(config, guidance, keep_ratio)
    return guidance, keep_ratio


def check_own(config: PipelineConfig, guidance: str, keep_ratio: float = 0.0) -> None:
    """ConfigError unless a stream can be encoded by these; empty, and 0: the method's."""
    compress = config.method.compress
    if keep_ratio:
        compress = replace(compress, keep_ratio=keep_ratio)
    if guidance and not make_compressor(compress).needs_scores:
        why = f"keep_ratio {keep_ratio:g}" if keep_ratio else f"preset {config.preset!r}"
        raise ConfigError(
            f"guidance: {why} keeps every frame, so that there is nothing to guide; leave it out"
        )
