"""What bench.watches counts is what a catalog tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import IDENTITY, make_kv

from bench.watches import Hearing
from streamkv.store import SegmentStore, write_segment
from streamkv.types import Evidence
from streamkv.watches import OpenAnswers, Watch, WatchAnswer


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["", "red", "blue"]), max_size=3), st.sampled_from(["", "red", "blue"])
        ),
        max_size=5,
    )
)
def test_what_the_bench_has_told_is_what_a_catalog_tells(
    tmp_path: Path, segments: list[tuple[list[str], str]]
) -> None:
    """Looks at each segment while it is open, then its commit."""
    hearing = Hearing(["a"], 0.5)
    with SegmentStore.open(tmp_path / str(len(list(tmp_path.iterdir()))), identity=IDENTITY) as store:
        store.add_stream("cam", "uri")
        store.watches.add(Watch("a", "cam", "a", min_confidence=0.5), 9)
        epoch = store.begin_writing("cam")
        for no, (looks, at_last) in enumerate(segments):
            kv = replace(make_kv(0), segment_no=no)
            evidence = (Evidence(no, kv.start_s, kv.end_s, 1.0, 1),)
            for text in looks:
                said = [WatchAnswer("a", text, 0.9, evidence)]
                hearing.look(kv, said, kv.start_s)
                store.watches.hear_open(OpenAnswers("cam", epoch, no, (kv.start_s, kv.end_s), said))
            said = [WatchAnswer("a", at_last, 0.9, evidence)]
            hearing.close(kv, said)
            store.commit(write_segment(store.root, IDENTITY, "cam", epoch, kv), said)
        (events,) = store.watches.events([("a", -1)], 99)
    assert events is not None
    assert [event.answer for event in events] == [change.answer for change in hearing.events["a"]]
