"""A segment's file, read by memory map: a record batch a layer, a row a block. The layout is docs/format.md.

Knows nothing of the catalog, nor of how the file got there (`segment_writer.py`). torch is imported where a tensor is
made: whoever opens files to commit, check or move them does without.
"""

from __future__ import annotations

import base64
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np
import pyarrow as pa

from streamkv.errors import CorruptSegmentError, ForeignStoreError, MissingFileError
from streamkv.store.codecs import CODECS, Codec
from streamkv.store.header import SegmentHeader
from streamkv.store.layout import segment_path
from streamkv.store.records import ModelIdentity, SegmentPlace
from streamkv.types import LayerBlocks, SegmentKV

if TYPE_CHECKING:
    import torch
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

SUMMARY_VECTORS = b"streamkv.summary_vectors"
COLUMNS = ("frame_id", "start_s", "end_s", "keys", "values", "mean_key")


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return cast("torch.dtype", getattr(torch, name))


def schema_of(identity: ModelIdentity, codec: str) -> Any:
    """The columns of a segment file: a row a block."""
    keys, values = (pa.binary(_row_bytes_of(CODECS[codec], identity, keys=keys)) for keys in (True, False))
    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), identity.geometry.summary_dim)
    columns = zip(COLUMNS, (pa.int32(), pa.float64(), pa.float64(), keys, values, vector), strict=True)
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


def _row_bytes_of(codec: Codec, identity: ModelIdentity, *, keys: bool) -> int:
    return codec.stored_bytes(identity.geometry, identity.value_bytes, keys=keys)


class StoredBlocks(NamedTuple):
    """Blocks of a layer as they lie in the map: a row of bytes a block."""

    keys: Tensor
    values: Tensor
    frame_ids: tuple[int, ...]
    spans_s: tuple[tuple[float, float], ...]

    def sliced(self, start: int, stop: int) -> StoredBlocks:
        rows = slice(start, stop)
        return StoredBlocks(self.keys[rows], self.values[rows], self.frame_ids[rows], self.spans_s[rows])


class SegmentFile:
    """A segment's file in a memory map. Threads may share one.

    The header is checked on opening, each buffer when it is first read; CorruptSegmentError says which file
    and what. Tensors point into the map: they keep it alive, must not be written to (the process would die),
    and survive the file's deletion. `verified` remembers the checked buffers; hand it in to open the same
    file again without checking twice.
    """

    def __init__(self, path: Path, verified: bytearray | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._is_coming = False
        self._batches: dict[int, Any] = {}
        self._layers: dict[int, StoredBlocks] = {}
        self._map = self._read(_map_file, path)
        self._reader = self._read(pa.ipc.open_file, self._map)
        metadata = self._reader.schema.metadata or {}
        self.header = self._read(SegmentHeader.from_metadata, metadata, str(path))
        self._encoded_vectors: bytes = metadata.get(SUMMARY_VECTORS, b"")
        self._check_shape()
        self.codec = CODECS[self.header.codec]
        self.verified = verified or bytearray(1 + len(self.header.layers) * len(COLUMNS))

    @property
    def num_bytes(self) -> int:
        return cast(int, self._map.size)

    @property
    def num_blocks(self) -> int:
        """Of all layers."""
        return sum(layer.num_blocks for layer in self.header.layers)

    def will_need(self) -> None:
        """Has the disk begin to read all of it, once: a touched page brings its neighbours only."""
        if self._is_coming:
            return
        self._is_coming = True
        with suppress(OSError):  # it is deleted, and the map is all that is left
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)

    def summary_vectors(self) -> np.ndarray:
        """(L, G * d) float32: what FAISS indexes."""
        data = self._read(base64.b64decode, self._encoded_vectors)
        geometry = self.header.identity.geometry
        self._verify(0, "summary_vectors", data, self.header.summary_vectors_crc32)
        return np.frombuffer(data, np.float32).reshape(geometry.num_layers, geometry.summary_dim)

    def mean_keys(self, layer: int) -> Tensor:
        """(b, G * d) float32, in the map."""
        shape = (self.header.layers[layer].num_blocks, self.header.identity.geometry.summary_dim)
        return self._tensor(layer, "mean_key", "float32", shape)

    def blocks(self, layer: int, rows: slice = slice(None)) -> LayerBlocks:
        """The layer's blocks, or some of them; keys and values lie in the map unless the codec has to make them."""
        stored, identity = self.stored(layer), self.header.identity
        decode, geometry, dtype = self.codec.decode, identity.geometry, torch_dtype(identity.dtype)
        return LayerBlocks(
            keys_bNGd=decode(stored.keys[rows], geometry, dtype, keys=True),
            values_bNGd=decode(stored.values[rows], geometry, dtype, keys=False),
            frame_ids=stored.frame_ids[rows],
            spans_s=stored.spans_s[rows],
        )

    def stored(self, layer: int) -> StoredBlocks:
        """A layer's checked columns, looked up once: questions come for some of it again and again."""
        found = self._layers.get(layer)
        if found is None:
            rows, identity = self.header.layers[layer].num_blocks, self.header.identity
            keys, values = (
                self._tensor(
                    layer, name, "uint8", (rows, _row_bytes_of(self.codec, identity, keys=name == "keys"))
                )
                for name in ("keys", "values")
            )
            starts, ends = (
                np.frombuffer(self._buffer(layer, name), np.float64, rows).tolist()
                for name in ("start_s", "end_s")
            )
            frame_ids = np.frombuffer(self._buffer(layer, "frame_id"), np.int32, rows).tolist()
            found = StoredBlocks(keys, values, tuple(frame_ids), tuple(zip(starts, ends, strict=True)))
            self._layers[layer] = found
        return found

    def segment_kv(self) -> SegmentKV:
        """The whole segment as it was written, or as its codec gives it back."""
        import torch

        header = self.header
        return SegmentKV(
            segment_no=header.segment_no,
            start_s=header.start_s,
            end_s=header.end_s,
            num_frames=header.num_frames,
            num_source_frames=header.num_source_frames,
            resume_s=header.resume_s,
            layers=tuple(self.blocks(layer) for layer in range(len(header.layers))),
            summary_vectors=torch.from_numpy(self.summary_vectors().copy()),
            similarities=header.similarities,
        )

    def place(self, checksum: str) -> SegmentPlace:
        """What its row says, once it has its name; `checksum` is that of its framing."""
        header = self.header
        return SegmentPlace(
            stream_id=header.stream_id,
            segment_no=header.segment_no,
            epoch=header.epoch,
            path=segment_path(header.stream_id, header.segment_no, header.epoch, checksum),
            start_s=header.start_s,
            end_s=header.end_s,
            num_frames=header.num_frames,
            num_source_frames=header.num_source_frames,
            resume_s=header.resume_s,
            kv_bytes=2 * header.identity.block_bytes * self.num_blocks,
            file_bytes=self.num_bytes,
            checksum=checksum,
            codec=header.codec,
        )

    def framing_checksum(self) -> str:
        """crc32, in hex, of every byte outside the layers' buffers; the header there has the buffers' own."""
        crc32, at = 0, 0
        for start, end in sorted(self._buffer_ranges()):
            crc32, at = zlib.crc32(self._map[at:start], crc32), end
        return f"{zlib.crc32(self._map[at:], crc32):08x}"

    def verify(self, checksum: str) -> None:
        """Reads every byte anew; CorruptSegmentError unless all are as written."""
        self.verified[:] = bytes(len(self.verified))
        if self.framing_checksum() != checksum:
            raise CorruptSegmentError(
                f"{self.path}: the bytes around the buffers do not match checksum {checksum}"
            )
        self.summary_vectors()
        for layer in range(len(self.header.layers)):
            for column in COLUMNS:
                self._buffer(layer, column)

    # ---- the file's inside

    def _check_shape(self) -> None:
        header, num_batches = self.header, self._reader.num_record_batches
        if header.codec not in CODECS:
            raise ForeignStoreError(
                f"{self.path}: codec {header.codec!r}, this program reads {', '.join(CODECS)}"
            )
        if not self._reader.schema.equals(schema_of(header.identity, header.codec)):
            raise CorruptSegmentError(f"{self.path}: the columns are not those of the header's geometry")
        if not num_batches == len(header.layers) == header.identity.geometry.num_layers:
            raise CorruptSegmentError(f"{self.path}: {num_batches} record batches are not one a layer")

    def _tensor(self, layer: int, column: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
        import torch
        from torch.utils.dlpack import from_dlpack

        if shape[0] == 0:
            return torch.empty(shape, dtype=torch_dtype(dtype))
        data = self._buffer(layer, column)
        # DLPack, because torch warns of any read-only buffer that reaches it through numpy
        raw = from_dlpack(pa.Array.from_buffers(pa.uint8(), data.size, [None, data]))
        return raw.view(torch_dtype(dtype)).view(shape)

    def _buffer(self, layer: int, column: str) -> Any:
        """One column's checked bytes."""
        data = self._raw_buffer(layer, column)
        part = 1 + layer * len(COLUMNS) + COLUMNS.index(column)
        self._verify(part, f"layer {layer}, {column}", data, self.header.layers[layer].crc32[column])
        return data

    def _verify(self, part: int, name: str, data: Any, crc32: int) -> None:
        if self.verified[part]:
            return
        if zlib.crc32(data) != crc32:
            raise CorruptSegmentError(f"{self.path}: {name}: the bytes do not match their checksum")
        self.verified[part] = True

    def _raw_buffer(self, layer: int, column: str) -> Any:
        """One column's bytes, cut to the rows that the header states."""
        size = self.header.layers[layer].num_blocks * _row_bytes(self._reader.schema.field(column).type)
        data = self._read(_data_of, self._batch(layer), column)
        if data is None or data.size < size:
            raise CorruptSegmentError(f"{self.path}: layer {layer}, {column}: fewer than {size} bytes")
        return data.slice(0, size)

    def _batch(self, layer: int) -> Any:
        with self._lock:
            if layer not in self._batches:
                self._batches[layer] = self._read(self._reader.get_batch, layer)
            return self._batches[layer]

    def _buffer_ranges(self) -> Iterator[tuple[int, int]]:
        for layer in range(len(self.header.layers)):
            for column in self._reader.schema.names:
                data = self._raw_buffer(layer, column)
                if data.size:
                    start = data.address - self._map.address
                    yield start, start + data.size

    def _read(self, step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs one step of parsing; whatever it stumbles over means that the file is not what was written."""
        try:
            return step(*args, **kwargs)
        except FileNotFoundError as exc:
            raise MissingFileError(f"{self.path}: the segment file is missing") from exc
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as exc:
            raise CorruptSegmentError(f"{self.path}: cut or altered: {exc}") from exc


def _map_file(path: Path) -> Any:
    """The file's bytes in a read-only map; holds no file descriptor."""
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def _row_bytes(kind: Any) -> int:
    if pa.types.is_fixed_size_list(kind):
        return cast(int, kind.list_size * kind.value_type.bit_width // 8)
    return cast(int, kind.bit_width // 8)


def _data_of(batch: Any, column: str) -> Any:
    """A column's one buffer of data: the last, after the validity ones."""
    return batch.column(column).buffers()[-1]
