"""The supervisor's face to other processes. Importing it is cheap, so any process may hold a handle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.views import NewWatch, PlaneState, PoolView, Reencoding, StreamView, WatchEventView, WatchView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actors.workers import Decoder
    from streamkv.config import PipelineConfig


class SupervisorFront:
    """A `Supervisor` of Ray workers; see there for what the methods do and raise."""

    def __init__(self, config: PipelineConfig) -> None:
        from actors.spawn import RayWorkers
        from actors.supervisor import Supervisor

        self._supervisor = Supervisor(config, RayWorkers(config))

    def state(self) -> PlaneState:
        return self._supervisor.state()

    def add_stream(
        self, stream_id: str, uri: str, guidance: str = "", tenant: str = "", priority: int = 1
    ) -> StreamView:
        return self._supervisor.add_stream(stream_id, uri, guidance, tenant, priority)

    def streams(self) -> list[StreamView]:
        return self._supervisor.streams()

    def stream(self, stream_id: str) -> StreamView:
        return self._supervisor.stream(stream_id)

    def remove_stream(self, stream_id: str) -> None:
        self._supervisor.remove_stream(stream_id)

    def add_watch(self, new: NewWatch) -> tuple[WatchView, str]:
        return self._supervisor.watching.add(new)

    def watches(self, stream_id: str | None = None) -> list[WatchView]:
        return self._supervisor.watching.all(stream_id)

    def watch(self, watch_id: str) -> WatchView:
        return self._supervisor.watching.one(watch_id)

    def remove_watch(self, watch_id: str) -> None:
        self._supervisor.watching.remove(watch_id)

    def watch_events(self, after: Sequence[tuple[str, int]], limit: int) -> list[list[WatchEventView] | None]:
        return self._supervisor.watching.events(after, limit)

    def reencode(self, stream_id: str, new: Reencoding) -> StreamView:
        return self._supervisor.reencode(stream_id, new)

    def cancel_reencode(self, stream_id: str) -> StreamView:
        return self._supervisor.cancel_reencode(stream_id)

    def decoder_of(self, stream_id: str) -> Decoder | None:
        return self._supervisor.decoder_of(stream_id)

    def pools(self) -> list[PoolView]:
        return self._supervisor.pools()

    def scale(self, sizes: Mapping[str, int]) -> list[PoolView]:
        return self._supervisor.scale(sizes)

    def stats(self) -> dict[str, float]:
        return self._supervisor.stats()

    def shutdown(self) -> None:
        self._supervisor.shutdown()
