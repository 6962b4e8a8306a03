"""Writes one segment as one file, durably. The layout is docs/format.md.

Knows nothing of the catalog: a file that is written is not yet committed.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa

from streamkv.errors import StoreError
from streamkv.store import durable
from streamkv.store.codecs import CODECS, Codec, make_codec
from streamkv.store.header import LayerHeader, SegmentHeader
from streamkv.store.layout import stream_folder, temp_name
from streamkv.store.records import ModelIdentity, SegmentPlace
from streamkv.store.segment_file import SUMMARY_VECTORS, SegmentFile, schema_of, torch_dtype
from streamkv.types import LayerBlocks, SegmentKV, take_blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def write_segment(
    root: Path | str,
    identity: ModelIdentity,
    stream_id: str,
    epoch: int,
    kv: SegmentKV,
    codec: str = "raw",
) -> SegmentPlace:
    """Writes a segment's file durably and says where; it counts once `SegmentStore.commit` has that place.

    Needs no catalog. Repeating it is harmless: the same content gets the same name, other content another.
    Raises StoreFullError when the disk is full, StoreError when `kv` is not of this identity, ConfigError for an
    unknown codec; nothing is left behind then.
    """
    root = Path(root)
    make_codec(codec)
    check_fits(kv, identity)
    folder = stream_folder(root, stream_id)
    temp = folder / temp_name(kv.segment_no, epoch)
    mean_keys = [blocks.mean_keys() for blocks in kv.layers]
    with durable.removed_on_error(temp):
        durable.make_folder(folder)
        place = _write_temp(temp, identity, stream_id, epoch, kv, mean_keys, codec)
        durable.publish(temp, root / place.path)
    return place


@contextmanager
def rewritten(
    root: Path, file: SegmentFile, codec: str, rows: Sequence[Sequence[int]] | None = None
) -> Iterator[tuple[SegmentPlace, Callable[[], None]]]:
    """The same segment in another codec, in a temporary file: its place, and a call that gives it that name.

    `rows`: the only blocks that it has then, by layer; None: all. What is searched by, summary vectors and mean keys,
    stays to the bit. Without the call nothing is left behind.
    """
    header, kv = file.header, file.segment_kv()
    mean_keys = [file.mean_keys(layer) for layer in range(len(kv.layers))]
    if rows is not None:
        kv = replace(kv, layers=tuple(map(take_blocks, kv.layers, rows)))
        mean_keys = [keys[list(some)] for keys, some in zip(mean_keys, rows, strict=True)]
    temp = stream_folder(root, header.stream_id) / temp_name(header.segment_no, header.epoch)
    with durable.removed_on_error(temp):
        place = _write_temp(temp, header.identity, header.stream_id, header.epoch, kv, mean_keys, codec)
        yield place, lambda: durable.publish(temp, root / place.path)
        temp.unlink(missing_ok=True)


def _write_temp(
    temp: Path,
    identity: ModelIdentity,
    stream_id: str,
    epoch: int,
    kv: SegmentKV,
    mean_keys: Sequence[Tensor],
    codec: str,
) -> SegmentPlace:
    """Writes the file under its temporary name; returns where it is to go."""
    columns = [
        _columns(blocks, means, CODECS[codec]) for blocks, means in zip(kv.layers, mean_keys, strict=True)
    ]
    durable.write_temp(temp, lambda file: _write_arrow(file, identity, stream_id, epoch, kv, columns, codec))
    written = SegmentFile(temp)
    return written.place(written.framing_checksum())


def check_fits(kv: SegmentKV, identity: ModelIdentity) -> None:
    """StoreError unless shapes and types are the identity's."""
    geometry, dtype = identity.geometry, torch_dtype(identity.dtype)
    block = (geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim)
    name = f"segment {kv.segment_no}"
    if len(kv.layers) != geometry.num_layers:
        raise StoreError(f"{name}: got {len(kv.layers)} layers, the store takes {geometry.num_layers}")
    vectors = (len(kv.layers), geometry.summary_dim)
    _check_tensor(f"{name} summary_vectors", kv.summary_vectors, vectors, torch_dtype("float32"))
    for layer, blocks in enumerate(kv.layers):
        rows = len(blocks.frame_ids)
        if len(blocks.spans_s) != rows:
            raise StoreError(f"{name} layer {layer}: got {rows} frame ids and {len(blocks.spans_s)} spans")
        _check_tensor(f"{name} layer {layer} keys", blocks.keys_bNGd, (rows, *block), dtype)
        _check_tensor(f"{name} layer {layer} values", blocks.values_bNGd, (rows, *block), dtype)


def _check_tensor(name: str, got: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(got.shape) != shape or got.dtype != dtype:
        raise StoreError(f"{name}: got {tuple(got.shape)} {got.dtype}, the store takes {shape} {dtype}")


def _write_arrow(
    file: BinaryIO,
    identity: ModelIdentity,
    stream_id: str,
    epoch: int,
    kv: SegmentKV,
    columns: Sequence[dict[str, memoryview]],
    codec: str,
) -> None:
    vectors = _bytes_of(kv.summary_vectors)
    header = SegmentHeader(
        identity=identity,
        codec=codec,
        stream_id=stream_id,
        segment_no=kv.segment_no,
        epoch=epoch,
        start_s=kv.start_s,
        end_s=kv.end_s,
        num_frames=kv.num_frames,
        num_source_frames=kv.num_source_frames,
        resume_s=kv.resume_s,
        similarities=kv.similarities,
        summary_vectors_crc32=zlib.crc32(vectors),
        layers=tuple(
            LayerHeader(len(blocks.frame_ids), {name: zlib.crc32(data) for name, data in buffers.items()})
            for blocks, buffers in zip(kv.layers, columns, strict=True)
        ),
    )
    metadata = header.to_metadata() | {SUMMARY_VECTORS: base64.b64encode(vectors)}
    schema = schema_of(identity, codec).with_metadata(metadata)
    with pa.ipc.new_file(file, schema) as writer:
        for layer, buffers in zip(header.layers, columns, strict=True):
            writer.write_batch(_batch(schema, layer.num_blocks, buffers))


def _columns(blocks: LayerBlocks, mean_keys: Tensor, codec: Codec) -> dict[str, memoryview]:
    """The layer's buffers by column; raw keys and values that lie contiguous on the CPU are not copied.

    Mean keys are those of the keys before the codec: what is found does not depend on it.
    """
    spans = np.array(blocks.spans_s, np.float64).reshape(-1, 2)
    return {
        "frame_id": np.array(blocks.frame_ids, np.int32).view(np.uint8).data,
        "start_s": spans[:, 0].copy().view(np.uint8).data,
        "end_s": spans[:, 1].copy().view(np.uint8).data,
        "keys": _bytes_of(codec.encode(blocks.keys_bNGd.detach(), keys=True)),
        "values": _bytes_of(codec.encode(blocks.values_bNGd.detach(), keys=False)),
        "mean_key": _bytes_of(mean_keys),
    }


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, flat; through uint8 because numpy has no bfloat16."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _batch(schema: Any, rows: int, buffers: dict[str, memoryview]) -> Any:
    arrays = [_array(field.type, rows, pa.py_buffer(buffers[field.name])) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(kind: Any, rows: int, data: Any) -> Any:
    if not pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, rows, [None, data])
    items = pa.Array.from_buffers(kind.value_type, rows * kind.list_size, [None, data])
    return pa.Array.from_buffers(kind, rows, [None], children=[items])
