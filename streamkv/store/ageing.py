"""Old segments in fewer bytes: each is written anew in another codec, then its row names the new file.

1. The new file is written and fsynced under a temporary name.
2. In one transaction it gets its final name and the segment's row names it.
3. The old file's name goes. Who has it mapped reads on; who meets it later finds the new file by the row.

A stop before 2 leaves a temporary file, or one that no row names; a stop before 3 the old file. Both are orphans:
`collect_orphans` takes them away. Doing it again does the rest, and nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamkv.config import AgeingStep
from streamkv.store import durable
from streamkv.store.catalog import Catalog
from streamkv.store.codecs import make_codec
from streamkv.store.reader import SegmentFiles
from streamkv.store.records import ModelIdentity, SegmentPlace
from streamkv.store.segment_file import torch_dtype
from streamkv.store.segment_writer import rewritten

OnSegment = Callable[[int, int], object]
"""Called with how many are done, and of how many."""


@dataclass(frozen=True)
class Aged:
    """What became of a stream's old segments."""

    num_segments: int  # written anew
    bytes_before: int  # of those
    bytes_after: int


def age_stream(
    root: Path,
    catalog: Catalog,
    files: SegmentFiles,
    identity: ModelIdentity,
    stream_id: str,
    policy: Sequence[AgeingStep],
    now: float,
    on_segment: OnSegment | None = None,
) -> Aged:
    """Applies the policy to the stream's segments as of `now`, seconds since 1970.

    A segment takes the step with the largest `after_s` that it has reached, if that makes it smaller: what a
    codec has lost does not come back. UnknownStreamError when the stream is not there, ConfigError for an unknown
    codec, CorruptSegmentError for a segment that cannot be read; those before it are aged then.
    """
    steps = sorted(policy, key=lambda step: step.after_s)
    for step in steps:
        make_codec(step.codec)
    due = [
        (place, codec)
        for place, committed_at in catalog.committed_before(stream_id, now - steps[0].after_s if steps else 0)
        if (codec := _codec_for(now - committed_at, steps)) and _is_smaller(identity, codec, place.codec)
    ]
    before = after = count = 0
    for i, (place, codec) in enumerate(due):
        aged = _rewrite(root, catalog, files, place, codec)
        if aged is not None:
            before, after, count = before + place.file_bytes, after + aged.file_bytes, count + 1
        if on_segment is not None:
            on_segment(i + 1, len(due))
    return Aged(count, before, after)


def _codec_for(age_s: float, steps: Sequence[AgeingStep]) -> str:
    """Of the last step that this age has reached; empty when none."""
    return next((step.codec for step in reversed(steps) if age_s >= step.after_s), "")


def _is_smaller(identity: ModelIdentity, codec: str, than: str) -> bool:
    def block_bytes(name: str) -> int:
        dtype = torch_dtype(identity.dtype)
        return sum(make_codec(name).row_bytes(identity.geometry, dtype, keys=keys) for keys in (True, False))

    return block_bytes(codec) < block_bytes(than)


def _rewrite(
    root: Path, catalog: Catalog, files: SegmentFiles, place: SegmentPlace, codec: str
) -> SegmentPlace | None:
    """The segment's new place; None when its row has come to name another file meanwhile."""
    file = files.get(place)
    if not (root / place.path).exists():  # another process was here first, and `files` found what it made
        return None
    with rewritten(root, file, codec) as (aged, publish):
        if not catalog.switch(place, aged, publish):
            return None
    files.forget(place.path)
    durable.remove(root / place.path)
    return aged
