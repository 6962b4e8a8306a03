"""Small segments to store, every axis of its own size so that a swap fails."""

from __future__ import annotations

import pytest
import torch

from streamkv.store import ModelIdentity, SegmentPlace, SegmentStore, StreamSnapshot, write_segment
from streamkv.types import Geometry, LayerBlocks, SegmentKV

GEOMETRY = Geometry(num_layers=3, num_heads=8, num_kv_heads=2, head_dim=5, hidden_dim=40, frame_tokens=7)
IDENTITY = ModelIdentity("town-1", GEOMETRY, "float32")

on_both = pytest.mark.parametrize("catalog_url", ["sqlite", "postgresql"], indirect=True)
"""Tests with their catalog in SQLite and in a real PostgreSQL."""


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Any bit pattern, NaNs and infinities too: storage must not care."""
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8, generator=generator)
    return raw.view(dtype)


def make_kv(
    segment_no: int = 0,
    *,
    identity: ModelIdentity = IDENTITY,
    counts: tuple[int, ...] = (4, 0, 2),
    seed: int | None = None,
    bits: bool = False,
) -> SegmentKV:
    """A segment of four seconds whose layer i keeps counts[i] blocks."""
    generator = torch.Generator().manual_seed(segment_no if seed is None else seed)
    geometry, dtype = identity.geometry, getattr(torch, identity.dtype)
    start_s = 4.0 * segment_no

    def tensor(rows: int) -> torch.Tensor:
        shape = (rows, geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim)
        if bits:
            return random_bits(shape, dtype, generator)
        return torch.randn(shape, generator=generator).to(dtype)

    layers = tuple(
        LayerBlocks(
            keys_bNGd=tensor(rows),
            values_bNGd=tensor(rows),
            frame_ids=tuple(range(rows)),
            spans_s=tuple((start_s + i, start_s + i + 1.0) for i in range(rows)),
        )
        for rows in counts
    )
    return SegmentKV(
        segment_no=segment_no,
        start_s=start_s,
        end_s=start_s + 4.0,
        num_frames=4,
        num_source_frames=5,
        resume_s=start_s + 4.0,
        layers=layers,
        summary_vectors=torch.randn(geometry.num_layers, geometry.summary_dim, generator=generator),
        similarities=(1.0, 0.995, 0.1 + 0.2, 0.3),
    )


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same_segment(got: SegmentKV, wanted: SegmentKV) -> None:
    """Equal to the last bit."""
    assert (got.segment_no, got.start_s, got.end_s) == (wanted.segment_no, wanted.start_s, wanted.end_s)
    assert (got.num_frames, got.num_source_frames) == (wanted.num_frames, wanted.num_source_frames)
    assert (got.resume_s, got.similarities) == (wanted.resume_s, wanted.similarities)
    assert raw(got.summary_vectors) == raw(wanted.summary_vectors)
    for mine, theirs in zip(got.layers, wanted.layers, strict=True):
        assert (mine.frame_ids, mine.spans_s) == (theirs.frame_ids, theirs.spans_s)
        for a, b in ((mine.keys_bNGd, theirs.keys_bNGd), (mine.values_bNGd, theirs.values_bNGd)):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert raw(a) == raw(b)


def store_segment(store: SegmentStore, stream_id: str, epoch: int, kv: SegmentKV) -> SegmentPlace:
    """Written and committed."""
    place = write_segment(store.root, store.identity, stream_id, epoch, kv)
    assert store.commit(place)
    return place


def filled(store: SegmentStore, count: int, stream_id: str = "cam") -> int:
    """Commits segments 0 to count - 1; returns the epoch."""
    epoch = store.begin_writing(stream_id)
    for segment_no in range(count):
        store_segment(store, stream_id, epoch, make_kv(segment_no))
    return epoch


def segment_files(store: SegmentStore) -> list[str]:
    """Every file of segments that the store holds, relative to its root."""
    return sorted(path.relative_to(store.root).as_posix() for path in store.root.glob("streams/*/*"))


def check_segments(snapshot: StreamSnapshot, count: int) -> None:
    """Segments 0 to count - 1, each once, each to the last bit."""
    assert [segment.segment_no for segment in snapshot.segments] == list(range(count))
    for no in range(count):
        assert_same_segment(snapshot._file(no).segment_kv(), make_kv(no))
    assert sorted(snapshot.search(0, torch.ones(10), 99).tolist()) == list(range(count))
