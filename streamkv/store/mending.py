"""What can be done about the problems that `verification` found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamkv.errors import CorruptSegmentError
from streamkv.store import layout
from streamkv.store.parts import Parts
from streamkv.store.records import Problem, SegmentPlace


class Mending:
    """Of one store that is open for writing; see `SegmentStore.repair`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def mend(self, problems: Sequence[Problem], collect_orphans: Callable[[str], Sequence[str]]) -> list[str]:
        """What was done, a line each."""
        if self._parts.tiers is not None:
            self._parts.tiers.are_mine()
        done = []
        places = {place.path: place for place in self._parts.catalog.all_segments()}
        for problem in problems:
            if layout.is_vectors(problem.path):
                done.append(self._forget_vectors(problem))
            elif problem.tier == "objects":
                done += self._mend_object(problem, places.get(problem.path))
            elif problem.kind != "extra" and problem.path in places:
                done += self._mend_file(problem, places[problem.path])
        on_disk = {problem.path.split("/")[1] for problem in problems if problem.tier == "disk"}
        for stream_id in sorted(on_disk & {info.stream_id for info in self._parts.catalog.streams()}):
            self._parts.catalog.take_epoch(stream_id)
            gone = [path for path in collect_orphans(stream_id) if not (self._parts.root / path).exists()]
            done += [f"{path}: removed" for path in gone]
        return done

    def _forget_vectors(self, problem: Problem) -> str:
        known = {place.segment_no for place in self._parts.catalog.all_segments(problem.stream_id)}
        self._parts.vectors.keep_only(problem.stream_id, known)
        return f"{problem.path}: vectors of segments that are not in the catalog are removed"

    def _mend_file(self, problem: Problem, place: SegmentPlace) -> list[str]:
        if self._parts.tiers is None:
            # Uploaded, and no object store is named: it may well be there.
            return [] if self._parts.catalog.objects.uploaded([place.path]) else self._lose(problem, place)
        try:
            self._parts.tiers.restore(place)
        except CorruptSegmentError:
            return self._lose(problem, place)
        self._parts.files.forget(place.path)
        return [f"{place.path}: restored from {self._parts.tiers.objects.uri_of(place.path)}"]

    def _mend_object(self, problem: Problem, place: SegmentPlace | None) -> list[str]:
        if self._parts.tiers is None:
            return []
        objects = self._parts.tiers.objects
        if place is None:
            objects.delete(problem.path)
            return [f"{objects.uri_of(problem.path)}: removed"]
        if (self._parts.root / place.path).exists():
            self._parts.catalog.objects.upload_again(place)
            return [f"{objects.uri_of(place.path)}: will be uploaded again"]
        return self._lose(problem, place)

    def _lose(self, problem: Problem, place: SegmentPlace) -> list[str]:
        # First, since the catalog has the object go once no segment needs it.
        object_kept = "" if self._parts.tiers is None else self._parts.tiers.objects.set_aside(place.path)
        if not self._parts.catalog.lose(place, f"segment {place.segment_no} is {problem.kind}"):
            return []
        self._parts.files.forget(place.path)
        self._parts.vectors.forget(place.stream_id, place.segment_no, place.segment_no + 1)
        kept = [layout.set_aside(self._parts.root, place.path), object_kept]
        where = " and ".join(path for path in kept if path)
        return [f"{place.path}: its time is a gap now{f'; what is left is {where}' if where else ''}"]
