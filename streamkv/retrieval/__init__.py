"""Queries and a `VideoMemory` to the blocks that each layer reads. Knows no attention.

An answer asks a `Retriever` in this order: `look` finds what a layer could read, `reconsider` changes that once all
layers have looked, `allocate` gives each its count, `choose` takes that many.
"""

from streamkv.config import MethodConfig
from streamkv.errors import ConfigError
from streamkv.retrieval.agreement import Agreement
from streamkv.retrieval.base import BlockChoice, Candidates, Looks, Query, Retriever
from streamkv.retrieval.controls import Everything, Recent, Window
from streamkv.retrieval.coverage import Coverage
from streamkv.retrieval.topk import TopK
from streamkv.types import Geometry

__all__ = [
    "RETRIEVERS",
    "BlockChoice",
    "Candidates",
    "Looks",
    "Query",
    "Retriever",
    "TopK",
    "make_retriever",
]

RETRIEVERS: dict[str, type[Retriever]] = {
    "topk": TopK,
    "agree": Agreement,
    "cover": Coverage,
    "recent": Recent,
    "window": Window,
    "everything": Everything,
}
"""Retrieval policies by name. To add one: a `Retriever` and a row here."""


def make_retriever(method: MethodConfig, geometry: Geometry) -> Retriever:
    policy = method.retrieve.policy
    if policy not in RETRIEVERS:
        raise ConfigError(f"retrieve.policy: unknown {policy!r}; known: {', '.join(sorted(RETRIEVERS))}")
    return RETRIEVERS[policy](method, geometry)
