"""What an open store is made of, for those who do its larger works: deleting, verifying, mending."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamkv.store.catalog import Catalog
from streamkv.store.reader import SegmentFiles
from streamkv.store.records import ModelIdentity
from streamkv.store.tiers import Tiers
from streamkv.store.vectors import SummaryVectors


@dataclass(frozen=True)
class Parts:
    root: Path
    identity: ModelIdentity
    catalog: Catalog
    files: SegmentFiles
    vectors: SummaryVectors
    tiers: Tiers | None  # None: all files are on the local disk
