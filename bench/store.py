"""What the segment store costs: bytes against an uncompressed cache, writing against copying, reading against memcpy.

    python -m bench.store --json

Random keys and values, float32 as a model on a CPU has them, at the geometries of the demo model and of LLaVA-OneVision
0.5B and 7B; segments of 8 frames and a summary. Sides are timed by turns, one thread each:

- `bytes_over_rekv_fp16`: files of a stream against all its frames' keys and values in float16 (default codec, 7B, half
  of the frames kept); `_<geometry>_<codec>_<keep>` for the others.
- `write_over_copy`: bytes a second of writing a segment (codec, checksums, fsync, rename) over those of copying its
  file with the same fsyncs (default codec, 7B). `_float16`: of a segment in float16, as a model on a GPU has it.
- `gather_over_memcpy`: seconds of reading the blocks of one question, 64 in each of 28 layers, files in the page cache
  and checked before, over those of one memcpy of as many bytes as the model gets (default codec, 7B). `_first`: the
  first question to meet the files, which checks them; `_near`: the same from host memory that the process keeps
  (`serve.host_bytes`), which has them all.
- `prefetched_over_cold`: seconds of the same from files that are on the disk and not in the page cache, over those
  without telling the disk of them first (`VideoMemory.prefetch`).
- `open_100k_segments_s`: opening a store and one of its streams, 100,000 segments long (demo geometry), index exact.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from sqlalchemy import insert

from bench.machine import Figure, machine, report
from streamkv.store import (
    ModelIdentity,
    NearTier,
    SegmentPlace,
    SegmentStore,
    StreamReader,
    durable,
    write_segment,
)
from streamkv.store.codecs import CODECS
from streamkv.store.layout import segment_path
from streamkv.store.tables import SegmentRow, StreamRow
from streamkv.types import Geometry, LayerBlocks, SegmentKV

GEOMETRIES = {
    "demo": Geometry(6, 6, 2, 32, 192, 36),
    "0.5b": Geometry(24, 14, 2, 64, 896, 196),
    "7b": Geometry(28, 28, 4, 128, 3584, 196),
}
"""Layers, heads, key heads, head, hidden, tokens a frame."""
DEFAULT = "fp16"
FRAMES, FRAME_S = 8, 2.0
"""Frames a segment, and the seconds that each stands for: an hour has 1,800."""
KEEPS = (0.25, 0.5, 1.0)
KEEP = 0.5
FRAMES_AN_HOUR = 3600 / FRAME_S
ASKED_BLOCKS = 64
STREAM = "s"


def random_segment(
    geometry: Geometry, keep: float, segment_no: int = 0, dtype: torch.dtype = torch.float32
) -> SegmentKV:
    """A segment of which each layer keeps a share, and its summary."""
    rows = max(1, round(keep * FRAMES)) + 1
    shape = (2, rows, geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim)
    generator = torch.Generator().manual_seed(segment_no)
    start_s = segment_no * FRAMES * FRAME_S
    spans_s = tuple((start_s + FRAME_S * i, start_s + FRAME_S * (i + 1)) for i in range(rows))
    layers = []
    for _ in range(geometry.num_layers):
        keys, values = torch.randn(shape, generator=generator).to(dtype)
        layers.append(LayerBlocks(keys, values, tuple(range(rows)), spans_s))
    return SegmentKV(
        segment_no=segment_no,
        start_s=start_s,
        end_s=start_s + FRAMES * FRAME_S,
        num_frames=FRAMES,
        num_source_frames=FRAMES,
        resume_s=start_s + FRAMES * FRAME_S,
        layers=tuple(layers),
        summary_vectors=torch.randn(geometry.num_layers, geometry.summary_dim, generator=generator),
        similarities=(0.9,) * FRAMES,
    )


def identity_of(geometry: Geometry, dtype: str = "float32") -> ModelIdentity:
    return ModelIdentity("bench", geometry, dtype)


@contextmanager
def folder() -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


# ---------------------------------------------------------------- bytes


def sizes(name: str, codecs: Sequence[str]) -> list[Figure]:
    """Bytes of an hour, and over ReKV's, for each codec and keep ratio."""
    geometry, out = GEOMETRIES[name], []
    rekv = FRAMES * geometry.num_layers * geometry.block_bytes(2)
    for keep in KEEPS:
        kv = random_segment(geometry, keep)
        for codec in codecs:
            with folder() as root:
                size = write_segment(root, identity_of(geometry), STREAM, 1, kv, codec).file_bytes
            ratio = size / rekv
            out.append(Figure(f"bytes_over_rekv_fp16_{name}_{codec}_{keep}", "ratio", (ratio,)))
            hour = size / FRAMES * FRAMES_AN_HOUR / 1e9
            out.append(Figure(f"gb_an_hour_{name}_{codec}_{keep}", "GB", (hour,), "at 0.5 frames/s"))
    hour = rekv / FRAMES * FRAMES_AN_HOUR / 1e9
    return [*out, Figure(f"gb_an_hour_{name}_rekv_fp16", "GB", (hour,), "at 0.5 frames/s")]


# ---------------------------------------------------------------- writing


def writes(name: str, codecs: Sequence[str], rounds: int, dtype: str = "float32") -> list[Figure]:
    """Throughput of `write_segment` over that of copying what it wrote."""
    geometry, out = GEOMETRIES[name], []
    kv, identity = random_segment(geometry, KEEP, dtype=getattr(torch, dtype)), identity_of(geometry, dtype)
    of = "" if dtype == "float32" else f"_{dtype}"
    for codec in codecs:
        ratios, speeds = [], []
        with folder() as root:
            for i in range(rounds + 1):
                begun = time.perf_counter()
                place = write_segment(root, identity, STREAM, 1, replace(kv, segment_no=i), codec)
                wrote = time.perf_counter() - begun
                begun = time.perf_counter()
                copy_durably(root / place.path, root / "copy")
                copied = time.perf_counter() - begun
                if i:  # the first warms up, and makes the stream's folder
                    ratios.append(copied / wrote)
                    speeds.append(place.file_bytes / wrote / 1e6)
        out.append(Figure(f"write_over_copy_{name}_{codec}{of}", "ratio", tuple(ratios), "aim >= 0.8"))
        out.append(Figure(f"write_mb_s_{name}_{codec}{of}", "MB/s", tuple(speeds), "of the file"))
    return out


def copy_durably(source: Path, to: Path) -> None:
    """As a segment is written: a temporary name, fsync, rename, fsync of the folder."""
    temp = to.with_suffix(".tmp")
    with source.open("rb") as reading, temp.open("xb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)
        writing.flush()
        os.fsync(writing.fileno())
    durable.publish(temp, to)


# ---------------------------------------------------------------- reading


def gathers(name: str, codecs: Sequence[str], rounds: int, segments: int) -> list[Figure]:
    """One question's blocks from the page cache, against a memcpy."""
    geometry, out = GEOMETRIES[name], []
    rng = np.random.default_rng(0)
    for codec in codecs:
        with folder() as root, SegmentStore.open(root, identity=identity_of(geometry)) as store:
            fill(store, segments, codec)
            asked = []
            table = store.reader(STREAM).snapshot.table(0)
            for _ in range(geometry.num_layers):
                rows = np.sort(
                    rng.choice(table.num_blocks, min(ASKED_BLOCKS, table.num_blocks), replace=False)
                )
                asked.append((table.segment_nos[rows], table.slots[rows]))
            sources = [torch.randn(2, len(nos), *block_shape(geometry)) for nos, _ in asked]
            target = torch.empty_like(sources[0])
            with SegmentStore.open(root) as cold:
                ask, copy = asker(cold, asked), partial(copy_all, sources, target)
                first = timed(ask)
                pairs = [(timed(ask), timed(copy)) for _ in range(rounds + 1)][1:]
                cold.keep_near([NearTier("cpu", 4 * sum(source.nbytes for source in sources))])
                ask()
                near = [timed(ask) / timed(copy) for _ in range(rounds + 1)][1:]
        ratios = tuple(mine / theirs for mine, theirs in pairs)
        copied = tuple(theirs for _, theirs in pairs)
        out += [
            Figure(f"gather_over_memcpy_{name}_{codec}", "ratio", ratios, "aim <= 2"),
            Figure(f"gather_over_memcpy_first_{name}_{codec}", "ratio", (first / float(np.median(copied)),)),
            Figure(f"gather_over_memcpy_near_{name}_{codec}", "ratio", tuple(near)),
            Figure(f"gather_ms_{name}_{codec}", "ms", tuple(1000 * mine for mine, _ in pairs)),
            Figure(f"memcpy_ms_{name}_{codec}", "ms", tuple(1000 * theirs for theirs in copied)),
        ]
    return out


def prefetched(name: str, codec: str, rounds: int, segments: int) -> Figure:
    """One question's blocks from the disk: all of some segments, as where layers agree on them."""
    geometry, nos = GEOMETRIES[name], np.arange(segments)

    def cold(root: Path, *, prefetch: bool) -> float:
        for path in root.rglob("*.arrow"):
            forget_pages(path)
        with SegmentStore.open(root, read_only=True) as store:
            snapshot = store.reader(STREAM).snapshot
            table = snapshot.table(0)  # opens the files, as looking for segments does
            asked = [(table.segment_nos, table.slots)] * geometry.num_layers

            def read() -> None:
                if prefetch:
                    snapshot.prefetch(nos)
                for layer, (segment_nos, slots) in enumerate(asked):
                    snapshot.gather(layer, segment_nos, slots)

            return timed(read)

    with folder() as root, SegmentStore.open(root, identity=identity_of(geometry)) as store:
        fill(store, segments, codec)
        pairs = [(cold(root, prefetch=True), cold(root, prefetch=False)) for _ in range(rounds)]
    return Figure(f"prefetched_over_cold_{name}_{codec}", "ratio", tuple(a / b for a, b in pairs))


def forget_pages(path: Path) -> None:
    """Has the page cache give the file up."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def fill(store: SegmentStore, segments: int, codec: str) -> None:
    store.add_stream(STREAM, "file:random")
    epoch = store.begin_writing(STREAM)
    kv = random_segment(store.identity.geometry, KEEP)
    for no in range(segments):
        numbered = replace(kv, segment_no=no)
        store.commit(write_segment(store.root, store.identity, STREAM, epoch, numbered, codec))


def block_shape(geometry: Geometry) -> tuple[int, int, int]:
    return geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim


def asker(store: SegmentStore, asked: list[tuple[np.ndarray, np.ndarray]]) -> Callable[[], None]:
    """Reads layer after layer, as an answer does: one layer's blocks are let go before the next."""
    snapshot = store.reader(STREAM).snapshot

    def ask() -> None:
        for layer, (nos, slots) in enumerate(asked):
            blocks = snapshot.gather(layer, nos, slots)
            assert blocks.num_blocks == len(nos)

    return ask


def copy_all(sources: list[torch.Tensor], target: torch.Tensor) -> None:
    """Into memory that is there already, which is more than a gather gets."""
    for source in sources:
        target.copy_(source)


def timed(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


# ---------------------------------------------------------------- opening


def opening(name: str, count: int, rounds: int) -> Figure:
    """Seconds to open a store and a stream of so many segments; their files are not there, and not missed."""
    geometry = GEOMETRIES[name]
    with folder() as root:
        with SegmentStore.open(root, identity=identity_of(geometry)) as store:
            make_rows(store, count)
        seconds = []
        with mock.patch.object(StreamReader, "_compact_in_background"):  # it would run beside the next round
            for _ in range(rounds + 1):
                begun = time.perf_counter()
                with SegmentStore.open(root) as store:
                    snapshot = store.reader(STREAM).snapshot
                    seconds.append(time.perf_counter() - begun)
                assert len(snapshot.search(0, torch.randn(geometry.summary_dim), 9)) == 9
                del snapshot
    suffix = "" if name == "demo" else f"_{name}"
    return Figure(f"open_100k_segments_s{suffix}", "s", tuple(seconds[1:]), f"{count:,} segments, aim < 2")


def make_rows(store: SegmentStore, count: int) -> None:
    """Committed segments without files: what a stream of that length has in the catalog and noted beside it."""
    store.add_stream(STREAM, "file:random")
    epoch = store.begin_writing(STREAM)
    geometry = store.identity.geometry
    vectors = np.random.default_rng(0).standard_normal((1000, geometry.num_layers, geometry.summary_dim))
    vectors = vectors.astype(np.float32)
    places = [
        SegmentPlace(
            stream_id=STREAM,
            segment_no=no,
            epoch=epoch,
            path=segment_path(STREAM, no, epoch, f"{no:08x}"),
            start_s=16.0 * no,
            end_s=16.0 * (no + 1),
            num_frames=FRAMES,
            num_source_frames=FRAMES,
            resume_s=16.0 * (no + 1),
            kv_bytes=1,
            file_bytes=1,
            checksum=f"{no:08x}",
        )
        for no in range(count)
    ]
    with store._catalog._writing() as session:
        session.execute(insert(SegmentRow), [asdict(place) for place in places])
        stream = session.get(StreamRow, STREAM)
        assert stream is not None
        stream.next_segment_no = count
    for no, place in enumerate(places):
        store._vectors.write(place, vectors[no % 1000])


# ---------------------------------------------------------------- all


def measure(*, quick: bool) -> list[Figure]:
    torch.set_num_threads(1)
    rounds = 2 if quick else 5
    names = ("demo",) if quick else tuple(GEOMETRIES)
    codecs = tuple(CODECS)
    big = names[-1]
    out: list[Figure] = []
    for name in names:
        out += sizes(name, codecs if name != "7b" else codecs[1:])
    for name in names:
        out += writes(name, codecs if name != "7b" else codecs[1:], rounds)
        out += writes(name, (DEFAULT,), rounds, "float16")
        say(out)
    for name in names:
        out += gathers(name, codecs if name != "7b" else codecs[1:], rounds, 26)
        say(out)
    out.append(prefetched(big, DEFAULT, rounds, 2 if quick else 7))
    say(out)
    out.append(opening("demo", 2_000 if quick else 100_000, rounds))
    if not quick:
        out.append(opening("0.5b", 100_000, 2))
    found = {figure.name: figure for figure in out}
    heads = {
        "bytes_over_rekv_fp16": f"bytes_over_rekv_fp16_{big}_{DEFAULT}_{KEEP}",
        "write_over_copy": f"write_over_copy_{big}_{DEFAULT}",
        "gather_over_memcpy": f"gather_over_memcpy_{big}_{DEFAULT}",
    }
    return [*(replace(found[of], name=name) for name, of in heads.items()), *out]


def say(figures: Sequence[Figure]) -> None:
    print(f"{figures[-1].name} {figures[-1].value:.3g}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the demo geometry only, few rounds")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    about = machine()
    report(measure(quick=given.quick), about, as_json=given.json)


if __name__ == "__main__":
    main()
