"""What the actors load when they start: the library's objects, from the configuration.

Imports of models and engine stand inside the functions: the supervisor names these, and stays small.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from actors.decode_encode import DecodeParts
from actors.messages import StreamSpec
from actors.prefill import PrefillParts
from actors.priority import yield_by
from actors.right_of_way import GiveWay, RightOfWay, name_of
from actors.share import Share
from streamkv.config import PipelineConfig, SourceConfig
from streamkv.frame_batches import FrameBatches
from streamkv.grid import OnGap
from streamkv.live import LiveSource
from streamkv.memory import VideoMemory
from streamkv.sources import sample_archive
from streamkv.store import ModelIdentity, SegmentStore
from streamkv.types import Frame


def load_decode_parts(config: PipelineConfig) -> DecodeParts:
    from streamkv.models import load_model
    from streamkv.segmentation import Segmenter

    yield_by(config.ingest.nice)
    return DecodeParts(
        encoder=load_model(config.model),
        make_segmenter=partial(Segmenter, config.method.segment),
        open_source=partial(_open_source, config.source),
        open_live=partial(_open_live, config.source),
        give_way=_give_way(config),
    )


def load_prefill_parts(config: PipelineConfig) -> PrefillParts:
    from streamkv.engine import Engine
    from streamkv.models import load_model
    from streamkv.store.codecs import make_codec
    from streamkv.watches import ask_segment, method_of_watches

    yield_by(config.ingest.nice)
    model = load_model(config.model)
    identity = ModelIdentity.of(model)
    make_codec(config.store.codec)  # an unknown name fails here, not at the first segment
    return PrefillParts(
        engine=Engine(model, config.method),
        identity=identity,
        device=model.device,
        root=Path(config.store.root),
        codec=config.store.codec,
        recall=partial(_recall, config, identity),
        ask=partial(
            ask_segment,
            Engine(model, method_of_watches(config.method)),
            model.geometry,
            config.watch.max_new_tokens,
        ),
        replays=config.ingest.replay,
        open_share=config.watch.open_share,
        give_way=_give_way(config),
    )


def _give_way(config: PipelineConfig) -> GiveWay:
    return GiveWay(RightOfWay(name_of(config)), Share(config.ingest.give_way))


def _open_source(source: SourceConfig, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
    """From one sample before a resume, which the segmenter compares the first frame with, and all of its batch."""
    step_s = 1 / source.sample_fps
    from_s = FrameBatches.configured(source).first_s(max(0.0, spec.start_s - step_s))

    def tell(start_s: float, end_s: float, reason: str) -> None:
        has_begun_before = from_s > 0 and start_s < from_s + step_s  # it was told then, whole
        if not has_begun_before:
            on_gap(start_s, end_s, reason)

    return sample_archive(
        spec.uri, source.sample_fps, start_s=from_s, on_gap=tell, keyframes_only=source.keyframes_only
    )


def _open_live(source: SourceConfig, spec: StreamSpec, on_gap: OnGap) -> LiveSource:
    return LiveSource(
        spec.uri,
        source.sample_fps,
        origin_s=spec.origin_s,
        start_s=spec.start_s,
        on_gap=on_gap,
        timeout_s=source.live_timeout_s,
        outage_limit_s=source.outage_limit_s,
        keyframes_only=source.keyframes_only,
    )


def _recall(config: PipelineConfig, identity: ModelIdentity, stream_id: str) -> VideoMemory:
    store = SegmentStore.configured(config.store, identity=identity, read_only=True)
    with store:
        return store.reader(
            stream_id, searchable=False
        ).refresh()  # the last segments; a window finds nothing
