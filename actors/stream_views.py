"""A stream as users see it: what the catalog has of it, and what is going on now. Calls nobody."""

from __future__ import annotations

from actors.placement import Charge
from actors.views import GapView, NextView, StreamView
from streamkv.store import StreamInfo
from streamkv.uris import redact_uri


def view_stream(info: StreamInfo, charge: Charge | None, made: NextView | None = None) -> StreamView:
    """`charge`: None when it is not in care; `made`: what is to take its place."""
    feed = charge.feed if charge is not None else None
    paused = charge.paused if charge is not None else ""
    waits = charge.waits if charge is not None and not paused else ""
    return StreamView(
        stream_id=info.name,
        uri=redact_uri(info.uri),
        # A full disk may not even take the catalog's note that the stream is paused.
        state="paused" if paused else "registered" if waits else info.state,
        detail=paused or waits or info.detail,
        duration_s=float(info.config.get("duration_s", 0.0)),
        position_s=max(info.as_of_s, feed.position_s if feed is not None else 0.0),
        as_of_s=info.as_of_s,
        num_segments=info.num_segments,
        num_frames=info.num_frames,
        num_source_frames=info.num_source_frames,
        kv_bytes=info.kv_bytes,
        file_bytes=info.file_bytes,
        restarts=charge.restarts if charge is not None else 0,
        gaps=tuple(GapView(gap.start_s, gap.end_s, gap.reason) for gap in info.gaps),
        live=feed.live if feed is not None else None,
        created_at=info.created_at,
        guidance=str(info.config.get("guidance", "")),
        tenant=info.tenant,
        legal_hold=info.legal_hold,
        keep_ratio=float(info.config.get("keep_ratio", 0.0)),
        next=made,
        priority=int(info.config.get("priority", 1)),
        queued_frames=feed.queued if feed is not None else 0,
        waiting_segments=feed.in_flight if feed is not None else 0,
    )


def view_next(info: StreamInfo, charge: Charge | None, why_not: str) -> NextView:
    """Of what is to take a stream's place; `why_not`: what keeps it from that though it is whole."""
    view = view_stream(info, charge)
    return NextView(
        state=view.state,
        detail=why_not or view.detail,
        duration_s=view.duration_s,
        position_s=view.position_s,
        num_segments=view.num_segments,
        file_bytes=view.file_bytes,
        guidance=view.guidance,
        keep_ratio=view.keep_ratio,
    )
