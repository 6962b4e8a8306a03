"""The sliding window of one stream; a segment to its `SegmentKV` (ALGORITHM.md, 3 to 5). Knows no file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from streamkv.attention import KV, attend, attend_stream, grouped_query
from streamkv.compression import block_scores, make_compressor
from streamkv.config import MethodConfig
from streamkv.excerpt import Excerpt
from streamkv.memory import SegmentInfo, VideoMemory, last_blocks
from streamkv.models.base import VideoLLM
from streamkv.types import LayerBlocks, Segment, SegmentKV, take_blocks

DEFAULT_CHUNK_TOKENS = 1024
"""Stream tokens that go through the decoder at once. Any number gives the same; fewer take less memory."""

SystemKV = tuple[KV, ...]
"""The system prompt, one `KV` a layer."""


@torch.inference_mode()
def prefill_system(model: VideoLLM) -> SystemKV:
    """The system prompt's keys and values; it sees itself alone, so it is the same for all streams."""
    hidden_TD = model.system_embeds()
    positions = torch.arange(hidden_TD.shape[0], device=hidden_TD.device)
    layers = []
    for layer in range(model.num_layers):
        q, k, v = model.qkv(layer, hidden_TD)
        layers.append(KV(k, v))
        hidden_TD = model.finish_layer(
            layer, hidden_TD, attend(model.rope(q, positions), model.rope(k, positions), v)
        )
    return tuple(layers)


class StreamWindow:
    """What a stream's next tokens see: the system prompt, and each layer's last `n_local` stream tokens."""

    def __init__(self, system: SystemKV, n_local: int) -> None:
        self.system = system
        self.n_local = n_local
        self.num_tokens = 0  # of the stream so far, those that slid out of the window too
        self.layers: tuple[KV, ...] = tuple(KV(kv.keys_TGd[:0], kv.values_TGd[:0]) for kv in system)

    @classmethod
    def rebuild(cls, system: SystemKV, memory: VideoMemory, method: MethodConfig) -> StreamWindow:
        """The window after a restart, from what the stream has stored.

        Without compression, and stored `raw`, it is the window as it was. With it, each layer's last `n_local`
        *kept* tokens stand next to each other in time order: the frames that were dropped are gone, unless their
        segments are prefilled again (`replay`).
        """
        window = cls(system, method.n_local)
        frame_tokens = memory.geometry.frame_tokens
        num_frames = sum(s.num_frames + method.compress.summary for s in memory.segments)
        window.num_tokens = num_frames * frame_tokens
        needed = -(-method.n_local // frame_tokens) if method.n_local else num_frames
        if num_frames:
            latest = [last_blocks(memory, layer, needed) for layer in range(len(window.layers))]
            window.layers = tuple(
                tokens_of(memory, layer, blocks.segment_nos, blocks.slots, like=kv)
                for layer, (blocks, kv) in enumerate(zip(latest, window.layers, strict=True))
            )
            window._slide()
        return window

    @classmethod
    def blank(cls, system: SystemKV, n_local: int, num_tokens: int) -> StreamWindow:
        """A window of a stream of `num_tokens` that holds as many as it would, all of them zeros.

        What is prefilled next sees nothing true, but sums run over as many terms as if it did.
        """
        window = cls(system, n_local)
        window.num_tokens = num_tokens
        size = min(n_local, num_tokens) if n_local else num_tokens
        window.layers = tuple(
            KV(
                kv.keys_TGd.new_zeros(size, *kv.keys_TGd.shape[1:]),
                kv.values_TGd.new_zeros(size, *kv.values_TGd.shape[1:]),
            )
            for kv in system
        )
        return window

    def fork(self) -> StreamWindow:
        """A window that can be appended to while this one stays as it is; tensors are shared."""
        other = StreamWindow(self.system, self.n_local)
        other.adopt(self)
        return other

    def adopt(self, other: StreamWindow) -> None:
        """Becomes what the other is now."""
        self.layers, self.num_tokens = other.layers, other.num_tokens

    def append(self, new: Sequence[KV]) -> None:
        """The stream's next tokens, one `KV` a layer."""
        self.layers = tuple(kv.join(later) for kv, later in zip(self.layers, new, strict=True))
        self.num_tokens += new[0].num_tokens
        self._slide()

    def _slide(self) -> None:
        if self.n_local:
            self.layers = tuple(kv.last(self.n_local) for kv in self.layers)


def replay(
    system: SystemKV, memory: VideoMemory, method: MethodConfig
) -> tuple[StreamWindow, tuple[SegmentInfo, ...]]:
    """A window, and the stored segments that make it what it was, to the bit, when they are prefilled into it.

    What a layer makes of a token depends on what the layer below made of the `n_local` tokens before it. So whatever
    the first of these segments sees, each layer is right again `n_local` tokens after the one below, and the window,
    `n_local` tokens of the last, after as many times that as there are layers. It sees a blank window as long as the
    true one, since the bits of a sum depend on how many terms there are. Where there are fewer segments, all of them;
    and none from before one that was lost, where the window is what `StreamWindow.rebuild` makes of those before it.
    """
    geometry, segments = memory.geometry, memory.segments

    def num_tokens(segment: SegmentInfo) -> int:
        return (segment.num_frames + method.compress.summary) * geometry.frame_tokens

    needed: float = geometry.num_layers * method.n_local if method.n_local else math.inf
    first = len(segments)
    while needed > 0 and first > 0:
        follows = first == len(segments) or segments[first - 1].segment_no + 1 == segments[first].segment_no
        if not follows:
            break
        first -= 1
        needed -= num_tokens(segments[first])
    before = segments[:first]
    if needed <= 0:
        return StreamWindow.blank(system, method.n_local, sum(map(num_tokens, before))), segments[first:]
    return StreamWindow.rebuild(system, Excerpt(memory, before), method), segments[first:]


def tokens_of(memory: VideoMemory, layer: int, segment_nos: np.ndarray, slots: np.ndarray, *, like: KV) -> KV:
    """Stored blocks as tokens, one block after the other, where and of the type that `like` is."""
    blocks = memory.gather(layer, segment_nos, slots)
    return KV(
        blocks.keys_bNGd.flatten(0, 1).to(like.keys_TGd), blocks.values_bNGd.flatten(0, 1).to(like.values_TGd)
    )


@torch.inference_mode()
def prefill_segment(
    model: VideoLLM,
    window: StreamWindow,
    segment: Segment,
    method: MethodConfig,
    *,
    guidance_TD: Tensor | None = None,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> SegmentKV:
    """Runs a segment through the decoder and keeps what compression keeps of it.

    The stream goes on with the n frames and, with `compress.summary`, their mean as one more frame. Then the
    guidance prompt, by default the method's own, scores the frames. The window moves on when all is done: an
    error leaves it as it was.
    """
    draft = window.fork()
    frames_bND = _with_summary(segment.features_nND, method.compress.summary).to(model.device, model.dtype)
    kvs = _extend(model, draft, frames_bND.flatten(0, 1), chunk_tokens)
    blocks = [_as_blocks(segment, kv, model.geometry.frame_tokens) for kv in kvs]
    mean_keys = [b.mean_keys() for b in blocks]
    num_frames = segment.features_nND.shape[0]

    compressor = make_compressor(method.compress)
    scores: list[Tensor] = []
    if compressor.needs_scores:
        similarity = method.compress.similarity
        if guidance_TD is None:
            guidance_TD = model.guidance_embeds(method.compress.guidance)
        queries = guidance_queries(model, draft, guidance_TD, similarity)
        scores = [
            block_scores(q, keys[:num_frames], similarity) for q, keys in zip(queries, mean_keys, strict=True)
        ]
    kept = compressor.keep(model.num_layers, num_frames, scores)

    window.adopt(draft)
    return SegmentKV(
        segment_no=segment.segment_no,
        start_s=segment.start_s,
        end_s=segment.end_s,
        num_frames=num_frames,
        num_source_frames=segment.num_source_frames,
        resume_s=segment.resume_s,
        layers=tuple(
            take_blocks(b, [*rows, *range(num_frames, b.num_blocks)])
            for b, rows in zip(blocks, kept, strict=True)
        ),
        summary_vectors=torch.stack(
            [
                keys[num_frames] if method.compress.summary else keys[rows].mean(dim=0)
                for keys, rows in zip(mean_keys, kept, strict=True)
            ]
        ),
        similarities=segment.similarities,
    )


def guidance_queries(
    model: VideoLLM, window: StreamWindow, guidance_TD: Tensor, similarity: str = "dot"
) -> list[Tensor]:
    """(G * d,) a layer: the prompt's grouped query; it sees what a next frame would, and leaves nothing."""
    queries, hidden_TD = [], guidance_TD
    for layer in range(model.num_layers):
        q, k, v = model.qkv(layer, hidden_TD)
        queries.append(grouped_query(q, model.geometry.num_kv_heads, similarity))
        if layer + 1 < model.num_layers:  # the last layer's output is not read
            hidden_TD = _finish_stream_layer(model, window, layer, hidden_TD, q, KV(k, v))
    return queries


def _with_summary(features_nND: Tensor, summary: bool) -> Tensor:
    """(n, N, D) or, with the mean frame last, (n + 1, N, D)."""
    if not summary:
        return features_nND
    return torch.cat((features_nND, features_nND.mean(dim=0, keepdim=True)))


def _extend(model: VideoLLM, window: StreamWindow, tokens_TD: Tensor, chunk_tokens: int) -> list[KV]:
    """Appends stream tokens to the window, chunk by chunk; their own keys and values, one `KV` a layer."""
    chunks = []
    for hidden_TD in torch.split(tokens_TD, chunk_tokens):
        new = []
        for layer in range(model.num_layers):
            q, k, v = model.qkv(layer, hidden_TD)
            new.append(KV(k, v))
            hidden_TD = _finish_stream_layer(model, window, layer, hidden_TD, q, new[-1])
        window.append(new)
        chunks.append(new)
    return [
        KV(torch.cat([kv.keys_TGd for kv in kvs]), torch.cat([kv.values_TGd for kv in kvs]))
        for kvs in zip(*chunks, strict=True)
    ]


def _finish_stream_layer(
    model: VideoLLM, window: StreamWindow, layer: int, hidden_TD: Tensor, q_THd: Tensor, new: KV
) -> Tensor:
    attended = attend_stream(
        model.rope,
        q_THd,
        window.system[layer],
        window.layers[layer].join(new),
        num_past=window.num_tokens,
        n_local=window.n_local,
    )
    return model.finish_layer(layer, hidden_TD, attended)


def _as_blocks(segment: Segment, kv: KV, frame_tokens: int) -> LayerBlocks:
    """All blocks of one layer, the summary's with the span of the whole segment."""
    keys_bNGd = kv.keys_TGd.view(-1, frame_tokens, *kv.keys_TGd.shape[1:])
    num_blocks = keys_bNGd.shape[0]
    return LayerBlocks(
        keys_bNGd=keys_bNGd,
        values_bNGd=kv.values_TGd.view(keys_bNGd.shape),
        frame_ids=tuple(range(num_blocks)),
        spans_s=(*segment.spans_s, (segment.start_s, segment.end_s))[:num_blocks],
    )
