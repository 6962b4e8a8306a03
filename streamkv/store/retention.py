"""What is to be deleted: by age, and by bytes of a stream and of a tenant.

What goes is always a stream's beginning, so that one number says what is left: its first segment. Deleting is

1. in one transaction, the rows of the segments before that number go, and a gap takes their place;
2. their files and vectors go. Who has a file mapped reads on.

A stop between the two leaves files that no row names; `SegmentStore.open` finishes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing

from streamkv.config import RetentionConfig
from streamkv.store.catalog import Catalog


class _Plan:
    """Which segment of each stream is to be the first, and what the streams then have."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._streams = catalog.streams()
        self.firsts: dict[str, int] = defaultdict(int)
        self._bytes = {info.stream_id: info.file_bytes for info in self._streams}

    def free(self, tenant: str | None = None) -> list[str]:
        """Streams that may lose segments: not on legal hold."""
        return [
            info.stream_id for info in self._streams if not info.legal_hold and tenant in (None, info.tenant)
        ]

    def tenants(self) -> dict[str, int]:
        """The tenants and the bytes of each, those on legal hold too."""
        found: dict[str, int] = defaultdict(int)
        for info in self._streams:
            found[info.tenant] += self._bytes[info.stream_id]
        return found

    def tenant_of(self, stream_id: str) -> str:
        return next(info.tenant for info in self._streams if info.stream_id == stream_id)

    def bytes_of(self, stream_id: str) -> int:
        return self._bytes[stream_id]

    def drop_before(self, stream_id: str, first: int) -> None:
        """Of a stream that has lost nothing yet."""
        self.firsts[stream_id] = first
        self._bytes[stream_id] -= self._catalog.front(stream_id, first).file_bytes

    def drop_oldest(self, stream_ids: Sequence[str], excess: int) -> None:
        """The oldest segments of some streams, until they are `excess` bytes."""
        if excess <= 0:
            return
        with closing(self._catalog.oldest(stream_ids)) as segments:
            for segment in segments:
                if excess <= 0:
                    return
                if segment.segment_no >= self.firsts[segment.stream_id]:
                    self.firsts[segment.stream_id] = segment.segment_no + 1
                    self._bytes[segment.stream_id] -= segment.file_bytes
                    excess -= segment.file_bytes


def due(catalog: Catalog, policy: RetentionConfig, now: float) -> dict[str, int]:
    """The first segment that stays, of each stream that loses some, as of `now`, seconds since 1970."""
    plan = _Plan(catalog)
    if policy.max_age_s:
        for stream_id in plan.free():
            plan.drop_before(stream_id, catalog.first_younger(stream_id, now - policy.max_age_s))
    if policy.when_full == "oldest" and policy.stream_bytes:
        for stream_id in plan.free():
            plan.drop_oldest([stream_id], plan.bytes_of(stream_id) - policy.stream_bytes)
    if policy.when_full == "oldest" and policy.tenant_bytes:
        for tenant, stored in plan.tenants().items():
            plan.drop_oldest(plan.free(tenant), stored - policy.tenant_bytes)
    return {stream_id: first for stream_id, first in plan.firsts.items() if first}


def room_for(
    catalog: Catalog, policy: RetentionConfig, stream_id: str, num_bytes: int, disk_bytes: int
) -> dict[str, int]:
    """As `due`: for so many bytes more of a stream, on a disk that lacks so many."""
    plan = _Plan(catalog)
    tenant = plan.tenant_of(stream_id)
    if policy.stream_bytes and stream_id in plan.free():
        plan.drop_oldest([stream_id], plan.bytes_of(stream_id) + num_bytes - policy.stream_bytes)
    over = plan.tenants()[tenant] + num_bytes - policy.tenant_bytes if policy.tenant_bytes else 0
    plan.drop_oldest(plan.free(tenant), max(over, disk_bytes))
    return {name: first for name, first in plan.firsts.items() if first}
