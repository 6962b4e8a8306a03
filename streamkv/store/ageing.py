"""Old segments in fewer bytes: each is written anew in another codec or with fewer blocks, then its row names the new
file.

1. The new file is written and fsynced under a temporary name.
2. In one transaction it gets its final name and the segment's row names it.
3. The old file's name goes. Who has it mapped reads on; who meets it later finds the new file by the row.

A stop before 2 leaves a temporary file, or one that no row names; a stop before 3 the old file. Both are orphans:
`collect_orphans` takes them away. Doing it again does the rest, and nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from streamkv.config import AgeingStep
from streamkv.errors import CorruptSegmentError
from streamkv.store import durable
from streamkv.store.catalog import Catalog
from streamkv.store.codecs import CODECS, make_codec
from streamkv.store.layout import segment_of
from streamkv.store.reader import SegmentFiles
from streamkv.store.records import ModelIdentity, SegmentPlace
from streamkv.store.segment_writer import rewritten
from streamkv.store.thinning import num_left, rows_left

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

    A segment takes the step with the largest `after_s` that it has reached, as far as that makes it smaller: what a
    codec has lost, and blocks that are gone, do not come back. UnknownStreamError when the stream is not there,
    ConfigError for an unknown codec, CorruptSegmentError for a segment that cannot be read; those before it are aged
    then.
    """
    steps = sorted(policy, key=lambda step: step.after_s)
    for step in steps:
        make_codec(step.codec)
    oldest = now - steps[0].after_s if steps else 0
    due = [
        (place, target)
        for place, committed_at in catalog.committed_before(stream_id, oldest)
        if (target := _target(identity, place, _step_for(now - committed_at, steps))) is not None
    ]
    before = after = count = 0
    for i, (place, target) in enumerate(due):
        aged = _rewrite(root, catalog, files, place, target)
        if aged is not None:
            before, after, count = before + place.file_bytes, after + aged.file_bytes, count + 1
        if on_segment is not None:
            on_segment(i + 1, len(due))
    return Aged(count, before, after)


def recode(
    root: Path,
    catalog: Catalog,
    files: SegmentFiles,
    identity: ModelIdentity,
    paths: Iterable[str],
    codec: str,
) -> Iterator[tuple[SegmentPlace, SegmentPlace]]:
    """Writes segments anew in the codec that they are to have where they go next; each as it was and as it is.

    Passed over are those that are that small already, on hold, deleted, or damaged.
    """
    for path in paths:
        place = catalog.segment(*segment_of(path))
        if place is None or place.path != path or not _is_smaller(identity, codec, place.codec):
            continue
        with suppress(CorruptSegmentError):  # `verify` names it
            target = _Target(codec, identity.num_blocks(place.kv_bytes))
            if (now := _rewrite(root, catalog, files, place, target)) is not None:
                yield place, now


def as_small(identity: ModelIdentity, codec: str) -> frozenset[str]:
    """Codecs of no more bytes than that one."""
    return frozenset(name for name in CODECS if not _is_smaller(identity, codec, name))


class _Target(NamedTuple):
    codec: str
    num_blocks: int  # of all layers


def _step_for(age_s: float, steps: Sequence[AgeingStep]) -> AgeingStep | None:
    """The last step that this age has reached."""
    return next((step for step in reversed(steps) if age_s >= step.after_s), None)


def _target(identity: ModelIdentity, place: SegmentPlace, step: AgeingStep | None) -> _Target | None:
    """What a segment is to become; None when it is that, or less."""
    if step is None:
        return None
    has = _Target(place.codec, identity.num_blocks(place.kv_bytes))
    wanted = _Target(
        step.codec if _is_smaller(identity, step.codec, place.codec) else place.codec,
        num_left(has.num_blocks, place.num_frames, identity.geometry.num_layers, step.keep_ratio)
        if step.keep_ratio < 1
        else has.num_blocks,
    )
    return wanted if wanted != has else None


def _is_smaller(identity: ModelIdentity, codec: str, than: str) -> bool:
    def block_bytes(name: str) -> int:
        row_bytes, value_bytes = make_codec(name).stored_bytes, identity.value_bytes
        return sum(row_bytes(identity.geometry, value_bytes, keys=keys) for keys in (True, False))

    return block_bytes(codec) < block_bytes(than)


def _rewrite(
    root: Path, catalog: Catalog, files: SegmentFiles, place: SegmentPlace, target: _Target
) -> SegmentPlace | None:
    """The segment's new place; None when its row has come to name another file meanwhile."""
    file = files.get(place)
    if not (root / place.path).exists():  # another process was here first, and `files` found what it made
        return None
    rows = rows_left(file, target.num_blocks) if target.num_blocks < file.num_blocks else None
    with rewritten(root, file, target.codec, rows) as (aged, publish):
        if not catalog.switch(place, aged, publish):
            return None
    files.forget(place.path)
    durable.remove(root / place.path)
    return aged
