"""A segment's file gives back exactly what was written, or says what is wrong with it."""

from __future__ import annotations

import base64
import errno
import gc
import json
import math
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import GEOMETRY, IDENTITY, assert_same_segment, make_kv, raw

from streamkv.errors import CorruptSegmentError, ForeignStoreError, StoreError, StreamIdError
from streamkv.store import ModelIdentity, SegmentFile, SegmentPlace, durable, segment_file, write_segment
from streamkv.types import Geometry, SegmentKV

DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture
def place(tmp_path: Path) -> SegmentPlace:
    return write_segment(tmp_path, IDENTITY, "cam", 1, make_kv())


@pytest.fixture
def file(tmp_path: Path, place: SegmentPlace) -> SegmentFile:
    return SegmentFile(tmp_path / place.path)


@st.composite
def segments(draw: st.DrawFn) -> tuple[ModelIdentity, SegmentKV]:
    small = st.integers(1, 4)
    geometry = Geometry(draw(small), 8, draw(small), draw(small), 8, draw(small))
    identity = ModelIdentity("m", geometry, draw(st.sampled_from(DTYPES)))
    counts = tuple(draw(st.integers(0, 5)) for _ in range(geometry.num_layers))
    kv = make_kv(
        draw(st.integers(0, 10**9)), identity=identity, counts=counts, seed=draw(st.integers(0, 9)), bits=True
    )
    finite = st.floats(allow_nan=False, allow_infinity=False)
    times = {name: draw(finite) for name in ("start_s", "end_s", "resume_s")}
    return identity, replace(kv, **times, similarities=tuple(draw(st.lists(finite, max_size=5))))


@settings(max_examples=60)
@given(segments())
def test_every_bit_comes_back(
    tmp_path_factory: pytest.TempPathFactory, sample: tuple[ModelIdentity, SegmentKV]
) -> None:
    identity, kv = sample
    root = tmp_path_factory.mktemp("store")
    place = write_segment(root, identity, "cam", 1, kv)
    file = SegmentFile(root / place.path)
    file.verify(place.checksum)
    assert_same_segment(file.segment_kv(), kv)
    assert file.header.identity == identity
    assert place.kv_bytes == kv.kv_bytes
    for layer, blocks in enumerate(kv.layers):
        assert raw(file.mean_keys(layer)) == raw(blocks.mean_keys())


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_lie_in_the_map(tmp_path: Path, dtype: str) -> None:
    identity = ModelIdentity("m", GEOMETRY, dtype)
    place = write_segment(tmp_path, identity, "cam", 1, make_kv(identity=identity))
    file = SegmentFile(tmp_path / place.path)
    first, last = file._map.address, file._map.address + file._map.size
    blocks = file.blocks(0)
    for tensor in (blocks.keys_bNGd, blocks.values_bNGd, file.mean_keys(0)):
        assert first <= tensor.data_ptr() < last
        assert tensor.data_ptr() + tensor.nbytes <= last
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line for line in maps if place.path in line]
    assert [int(line.split("-")[0], 16) for line in mapped] == [first]  # the file itself, not a copy of it


def test_blocks_outlive_the_file_and_its_map(tmp_path: Path, place: SegmentPlace) -> None:
    keys = SegmentFile(tmp_path / place.path).blocks(0).keys_bNGd
    (tmp_path / place.path).unlink()
    gc.collect()
    assert raw(keys) == raw(make_kv().layers[0].keys_bNGd)


def test_open_file_holds_no_descriptor(tmp_path: Path, place: SegmentPlace) -> None:
    before = len(os.listdir("/proc/self/fd"))
    files = [SegmentFile(tmp_path / place.path) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(files) == 20


def test_tensors_that_are_not_contiguous_are_stored_as_they_read(tmp_path: Path) -> None:
    kv = make_kv()
    turned = kv.layers[0].keys_bNGd.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    layers = (replace(kv.layers[0], keys_bNGd=turned), *kv.layers[1:])
    place = write_segment(tmp_path, IDENTITY, "cam", 1, replace(kv, layers=layers))
    assert_same_segment(SegmentFile(tmp_path / place.path).segment_kv(), kv)


def test_similarity_that_is_not_a_number_comes_back_as_that(tmp_path: Path) -> None:
    place = write_segment(tmp_path, IDENTITY, "cam", 1, replace(make_kv(), similarities=(1.0, math.nan)))
    first, second = SegmentFile(tmp_path / place.path).header.similarities
    assert first == 1.0
    assert math.isnan(second)


# ---------------------------------------------------------------- names and places


def test_name_says_segment_epoch_and_content(tmp_path: Path) -> None:
    first = write_segment(tmp_path, IDENTITY, "cam", 3, make_kv(12))
    again = write_segment(tmp_path, IDENTITY, "cam", 3, make_kv(12))
    other = write_segment(tmp_path, IDENTITY, "cam", 3, make_kv(12, seed=99))
    assert first.path == f"streams/cam/00000012.e000003.{first.checksum}.arrow"
    assert again == first
    assert other.path != first.path
    assert first.file_bytes == (tmp_path / first.path).stat().st_size
    assert_same_segment(SegmentFile(tmp_path / first.path).segment_kv(), make_kv(12))


@pytest.mark.parametrize("stream_id", ["../x", "a..b", "", ".a", "a/b", "a\n", "-a", "x" * 65, "a b", "ä"])
def test_unsafe_stream_id_is_refused(tmp_path: Path, stream_id: str) -> None:
    with pytest.raises(StreamIdError, match="stream id"):
        write_segment(tmp_path / "root", IDENTITY, stream_id, 1, make_kv())
    assert not (tmp_path / "root").exists()


# ---------------------------------------------------------------- another program


def test_another_program_reads_it_by_the_specification(tmp_path: Path) -> None:
    """docs/format.md, followed with nothing but Arrow and numpy."""
    identity = ModelIdentity("town-1", GEOMETRY, "float16")
    kv = make_kv(7, identity=identity)
    place = write_segment(tmp_path, identity, "cam", 2, kv)
    file = pa.ipc.open_file((tmp_path / place.path).read_bytes())
    metadata = file.schema.metadata
    text = metadata[b"streamkv.header"]
    assert int(metadata[b"streamkv.header_crc32"], 16) == zlib.crc32(text)
    header = json.loads(text)
    assert (header["format_version"], header["codec"]) == (2, "raw")
    assert (header["stream_id"], header["segment_no"], header["epoch"]) == ("cam", 7, 2)
    vectors = base64.b64decode(metadata[b"streamkv.summary_vectors"])
    assert zlib.crc32(vectors) == header["summary_vectors_crc32"]
    geometry = header["geometry"]
    width = geometry["num_kv_heads"] * geometry["head_dim"]
    summaries = np.frombuffer(vectors, "<f4").reshape(geometry["num_layers"], width)
    np.testing.assert_array_equal(summaries, kv.summary_vectors.numpy())
    for layer, blocks in enumerate(kv.layers):
        batch = file.get_batch(layer)
        assert batch.schema.names == ["frame_id", "start_s", "end_s", "keys", "values", "mean_key"]
        assert batch.num_rows == header["layers"][layer]["num_blocks"] == blocks.num_blocks
        assert batch.column("frame_id").to_pylist() == list(blocks.frame_ids)
        starts, ends = batch.column("start_s").to_pylist(), batch.column("end_s").to_pylist()
        assert list(zip(starts, ends, strict=True)) == list(blocks.spans_s)
        means = np.array(batch.column("mean_key").to_pylist(), np.float32).reshape(-1, width)
        np.testing.assert_array_equal(means, blocks.mean_keys().numpy())
        shape = (-1, geometry["frame_tokens"], geometry["num_kv_heads"], geometry["head_dim"])
        for column, tensor in (("keys", blocks.keys_bNGd), ("values", blocks.values_bNGd)):
            data = b"".join(batch.column(column).to_pylist())
            assert zlib.crc32(data) == header["layers"][layer]["crc32"][column]
            np.testing.assert_array_equal(np.frombuffer(data, "<f2").reshape(shape), tensor.numpy())


# ---------------------------------------------------------------- damage


def _read_everything(path: Path) -> SegmentKV:
    file = SegmentFile(path)
    for layer in range(len(file.header.layers)):
        file.mean_keys(layer)
    return file.segment_kv()


def _read_or_error(path: Path) -> SegmentKV | StoreError:
    try:
        return _read_everything(path)
    except CorruptSegmentError as exc:
        return exc


def test_flipped_bit_in_any_byte_is_found(tmp_path: Path) -> None:
    """Reading either names the damage or yields the true content; `verify` always names it.

    Only bytes of no consequence (padding) may go unnoticed by a read.
    """
    kv = make_kv(counts=(2, 0, 1))
    place = write_segment(tmp_path, IDENTITY, "cam", 1, kv)
    path, whole = tmp_path / place.path, (tmp_path / place.path).read_bytes()
    unnoticed = 0
    for at in range(len(whole)):
        path.unlink()  # a mapped file must not change under its map
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        got = _read_or_error(path)
        if isinstance(got, SegmentKV):
            unnoticed += 1
            assert_same_segment(got, kv)
        else:
            assert path.name in str(got)
        with pytest.raises(CorruptSegmentError, match=path.name):
            SegmentFile(path).verify(place.checksum)
    assert unnoticed < len(whole) // 2


def test_file_cut_anywhere_is_found(tmp_path: Path, place: SegmentPlace) -> None:
    path, whole = tmp_path / place.path, (tmp_path / place.path).read_bytes()
    for size in range(0, len(whole), 13):
        path.unlink()
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptSegmentError, match=path.name):
            _read_everything(path)


@pytest.mark.parametrize("column", segment_file.COLUMNS)
def test_damage_names_layer_and_column(tmp_path: Path, place: SegmentPlace, column: str) -> None:
    path, file = tmp_path / place.path, SegmentFile(tmp_path / place.path)
    at = file._raw_buffer(2, column).address - file._map.address
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()
    path.write_bytes(data)
    damaged = SegmentFile(path)  # damage in one layer leaves the others readable
    assert raw(damaged.blocks(0).keys_bNGd) == raw(make_kv().layers[0].keys_bNGd)
    with pytest.raises(CorruptSegmentError, match=f"{path.name}.*layer 2, {column}"):
        _read_everything(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptSegmentError, match=r"gone\.arrow.*missing"):
        SegmentFile(tmp_path / "gone.arrow")


def test_buffers_are_checked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: SegmentPlace
) -> None:
    file = SegmentFile(tmp_path / place.path)
    file.blocks(0)
    again = SegmentFile(tmp_path / place.path, file.verified)
    checked: list[int] = []

    def counting(data: object, start: int = 0) -> int:
        checked.append(1)
        return 0

    monkeypatch.setattr(segment_file.zlib, "crc32", counting)
    file.blocks(0)
    again.blocks(0)
    assert not checked
    with pytest.raises(CorruptSegmentError):
        again.blocks(2)
    assert checked


def test_other_format_version_and_codec_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamkv.store.header.FORMAT_VERSION", 3)
    monkeypatch.setattr("streamkv.store.header.READABLE", (3,))  # the writer looks at what it wrote
    place = write_segment(tmp_path, IDENTITY, "cam", 1, make_kv())
    monkeypatch.undo()
    with pytest.raises(ForeignStoreError, match="format version 3, this program reads 1, 2"):
        SegmentFile(tmp_path / place.path)
    place = write_segment(tmp_path, IDENTITY, "cam", 2, make_kv())
    monkeypatch.setattr(segment_file, "CODECS", ("int4",))
    with pytest.raises(ForeignStoreError, match="codec 'raw', this program reads int4"):
        SegmentFile(tmp_path / place.path)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kv: replace(kv, layers=kv.layers[:2]), "got 2 layers, the store takes 3"),
        (lambda kv: replace(kv, summary_vectors=kv.summary_vectors[:, :3]), "summary_vectors: got"),
        (lambda kv: _first_layer(kv, keys_bNGd=kv.layers[0].keys_bNGd.half()), "layer 0 keys: got .*float16"),
        (lambda kv: _first_layer(kv, values_bNGd=kv.layers[2].values_bNGd), "layer 0 values: got"),
        (lambda kv: _first_layer(kv, spans_s=()), "4 frame ids and 0 spans"),
        (lambda kv: replace(kv, end_s=math.inf), "times must be finite"),
    ],
)
def test_segment_of_another_shape_is_refused(
    tmp_path: Path, change: Callable[[SegmentKV], SegmentKV], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        write_segment(tmp_path, IDENTITY, "cam", 1, change(make_kv()))
    assert not list(tmp_path.rglob("*.*"))


def _first_layer(kv: SegmentKV, **changes: object) -> SegmentKV:
    return replace(kv, layers=(replace(kv.layers[0], **changes), *kv.layers[1:]))


@pytest.mark.parametrize("step", ["sync_file", "rename", "sync_folder"])
def test_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_segment(tmp_path, IDENTITY, "cam", 1, make_kv(0))
    before = sorted(tmp_path.rglob("*"))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, step, full)
    with pytest.raises(StoreError, match=r"disk full while writing .*cam.*free space"):
        write_segment(tmp_path, IDENTITY, "cam", 1, make_kv(1))
    assert not list(tmp_path.rglob("*.tmp"))
    if step != "sync_folder":  # by then the file has its name; it is an orphan like any other
        assert sorted(tmp_path.rglob("*")) == before


def test_full_device_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own ENOSPC, through Arrow's writer: /dev/full takes no byte."""
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: real(Path("/dev/full"), "wb"))
    with pytest.raises(StoreError, match="disk full"):
        write_segment(tmp_path, IDENTITY, "cam", 1, make_kv(counts=(300, 300, 300)))


def test_root_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_segment(tmp_path / "root", IDENTITY, "cam", 1, make_kv())
