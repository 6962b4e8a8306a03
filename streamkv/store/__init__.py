"""The segment store: what streams leave behind, durable on disk, and how answers read it."""

from streamkv.store.ageing import Aged
from streamkv.store.layout import check_stream_id
from streamkv.store.object_store import ObjectStore
from streamkv.store.opening import is_store
from streamkv.store.reader import StreamReader, StreamSnapshot
from streamkv.store.records import (
    ENDED,
    NEXT,
    Front,
    Gap,
    ModelIdentity,
    NearTier,
    Problem,
    SegmentPlace,
    StreamInfo,
    StreamRecord,
    StreamState,
)
from streamkv.store.segment_file import SegmentFile
from streamkv.store.segment_writer import write_segment
from streamkv.store.store import SegmentStore
from streamkv.store.tiers import Offloaded, TierState
from streamkv.store.watch_rows import Due, WatchRecord

__all__ = [
    "ENDED",
    "NEXT",
    "Aged",
    "Due",
    "Front",
    "Gap",
    "ModelIdentity",
    "NearTier",
    "ObjectStore",
    "Offloaded",
    "Problem",
    "SegmentFile",
    "SegmentPlace",
    "SegmentStore",
    "StreamInfo",
    "StreamReader",
    "StreamRecord",
    "StreamSnapshot",
    "StreamState",
    "TierState",
    "WatchRecord",
    "check_stream_id",
    "is_store",
    "write_segment",
]
