"""Each codec gives back what it promises, byte rows decode alone, and readers decode only what they gather."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import IDENTITY, make_kv

from streamkv.errors import ConfigError, CorruptSegmentError
from streamkv.store import SegmentFile, SegmentStore, write_segment
from streamkv.store.codecs import CODECS, Steps, make_codec
from streamkv.types import Geometry

GEOMETRY = Geometry(num_layers=2, num_heads=6, num_kv_heads=2, head_dim=5, hidden_dim=30, frame_tokens=7)
LEVELS = {"int8": 255, "int4": 15, "int2": 3}


def blocks_of(seed: int, scale: float, offset: float, rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, GEOMETRY.frame_tokens, GEOMETRY.num_kv_heads, GEOMETRY.head_dim)
    return torch.randn(shape, generator=generator) * scale + offset


def bound(name: str, blocks: torch.Tensor, *, keys: bool) -> torch.Tensor:
    """The error that the codec's docstring allows, for each number."""
    if name == "raw":
        return torch.zeros_like(blocks)
    if name == "fp16":
        return blocks.abs() * 2**-11 + 2**-25
    axis = 1 if keys else 3
    low, high = blocks.amin(axis, keepdim=True), blocks.amax(axis, keepdim=True)
    largest = torch.maximum(low.abs(), high.abs())
    step = (high - low).clamp(min=2**-13) / LEVELS[name]
    return (step / 2 + 3 * largest * 2**-11 + 2**-13).expand_as(blocks)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(CODECS)),
    st.booleans(),
    st.integers(0, 999),
    st.floats(0, 100),
    st.floats(-500, 500),
)
def test_round_trip_is_within_the_stated_error(
    name: str, keys: bool, seed: int, scale: float, offset: float
) -> None:
    blocks, codec = blocks_of(seed, scale, offset), CODECS[name]
    rows = codec.encode(blocks, keys=keys)
    assert rows.dtype == torch.uint8
    assert rows.shape == (3, codec.stored_bytes(GEOMETRY, 4, keys=keys))
    back = codec.decode(rows, GEOMETRY, torch.float32, keys=keys)
    assert back.shape == blocks.shape
    assert bool(((back - blocks).abs() <= bound(name, blocks, keys=keys)).all())


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_row_decodes_alone_as_among_others(name: str) -> None:
    rows = CODECS[name].encode(blocks_of(1, 2.0, 0.5), keys=True)
    every = CODECS[name].decode(rows, GEOMETRY, torch.float32, keys=True)
    for i in range(3):
        assert torch.equal(
            CODECS[name].decode(rows[i : i + 1], GEOMETRY, torch.float32, keys=True)[0], every[i]
        )


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("name", sorted(LEVELS))
def test_extreme_groups_stay_finite(name: str, keys: bool) -> None:
    blocks = torch.zeros(1, GEOMETRY.frame_tokens, GEOMETRY.num_kv_heads, GEOMETRY.head_dim)
    blocks[0, 0] = 1e9
    blocks[0, 1] = -1e9
    back = CODECS[name].decode(CODECS[name].encode(blocks, keys=keys), GEOMETRY, torch.float32, keys=keys)
    assert bool(back.isfinite().all())
    assert back.max() > 6e4
    assert back.min() < -6e4


def test_channels_of_keys_and_tokens_of_values_do_not_disturb_each_other() -> None:
    """A key channel a thousand times the others, and a value token: the others keep their own steps."""
    blocks = blocks_of(5, 1.0, 0.0)
    loud_channel, loud_token = blocks.clone(), blocks.clone()
    loud_channel[:, :, :, 0] *= 1000
    loud_token[:, 0] *= 1000
    for loud, keys in ((loud_channel, True), (loud_token, False)):
        back = CODECS["int8"].decode(
            CODECS["int8"].encode(loud, keys=keys), GEOMETRY, torch.float32, keys=keys
        )
        quiet = (slice(None), slice(1, None), slice(None), slice(1, None))
        assert (back - loud)[quiet].abs().max() < 0.05


def test_unknown_codec_is_named() -> None:
    with pytest.raises(ConfigError, match=r"store.codec: unknown 'zip'; known: raw, fp16, int8, int4, int2"):
        make_codec("zip")


@pytest.mark.parametrize("name", sorted(CODECS))
def test_files_of_every_codec_keep_what_is_searched_exactly(tmp_path: Path, name: str) -> None:
    kv = make_kv()
    place = write_segment(tmp_path, IDENTITY, "cam", 1, kv, name)
    file = SegmentFile(tmp_path / place.path)
    assert file.header.codec == name
    file.verify(place.checksum)
    np.testing.assert_array_equal(file.summary_vectors(), kv.summary_vectors.numpy())
    for layer, blocks in enumerate(kv.layers):
        assert torch.equal(file.mean_keys(layer), blocks.mean_keys())
        assert file.blocks(layer).frame_ids == blocks.frame_ids
        assert file.blocks(layer).keys_bNGd.dtype == blocks.keys_bNGd.dtype


@pytest.mark.parametrize("name", ["fp16", *LEVELS])
def test_a_flipped_bit_is_found_in_every_codec(tmp_path: Path, name: str) -> None:
    place = write_segment(tmp_path, IDENTITY, "cam", 1, make_kv(), name)
    path = tmp_path / place.path
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(whole), 150, replace=False).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(CorruptSegmentError):
            SegmentFile(path).verify(place.checksum)


def test_an_answer_decodes_only_what_it_gathers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = Steps.decode_into
    monkeypatch.setattr(
        Steps,
        "decode_into",
        lambda self, rows, *a, **k: decoded.append(sum(map(len, rows))) or original(self, rows, *a, **k),
    )
    with SegmentStore.open(tmp_path, identity=IDENTITY) as store:
        store.add_stream("cam", "cam.mp4")
        epoch = store.begin_writing("cam")
        for no in range(3):  # one stream, three codecs
            codec = ("int8", "int4", "raw")[no]
            store.commit(write_segment(tmp_path, IDENTITY, "cam", epoch, make_kv(no), codec))
        memory = store.reader("cam").refresh()
        table = memory.table(0)
        assert not decoded
        memory.gather(0, table.segment_nos[:1], table.slots[:1])
        assert decoded == [1, 1]
        decoded.clear()
        chosen = np.array([0, 5, 6, 10])  # segments 0, 1, 1, 2
        memory.gather(0, table.segment_nos[chosen], table.slots[chosen])
        assert decoded == [1, 1, 2, 2]  # keys and values of each run; the raw one is copied
