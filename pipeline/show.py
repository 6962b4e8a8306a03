"""Streams and answers as tables, and streams on their way as bars."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from pipeline.terminal import bars, clock, out, size

if TYPE_CHECKING:
    from pipeline.client import Client

POLL_S = 0.25
GAPS_SHOWN = 8
"""Of one stream, the latest: a camera that comes and goes has hundreds."""
OPEN_STATES = ("registered", "ingesting", "paused")
NUMBERS = ("segments", "frames", "stored", "gaps")


def wait_for_streams(client: Client, stream_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Returns when none of them is being ingested any more, with a bar for each meanwhile."""
    with bars() as progress:
        tasks = {s: progress.add_task(escape(s), total=None, note="") for s in stream_ids}
        while True:
            streams = [s for s in client.streams() if s["id"] in tasks]
            for stream in streams:
                progress.update(
                    tasks[stream["id"]],
                    total=stream["duration_s"] or None,
                    completed=min(stream["position_s"], stream["duration_s"] or stream["position_s"]),
                    note=f"{stream['segments']} segments  {stream['state']}",
                )
            if not any(stream["state"] in OPEN_STATES for stream in streams):
                return streams
            time.sleep(POLL_S)


def wait_for_pools(client: Client) -> list[dict[str, Any]]:
    """Returns when every pool has the actors that it is to have, and no others."""
    while True:
        pools = client.pools()
        if all([w["state"] for w in pool["workers"]] == ["up"] * pool["size"] for pool in pools):
            return pools
        time.sleep(POLL_S)


def print_pools(pools: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("pool", "actors", "busy", "actor", "state", "streams", "detail"):
        table.add_column(name, justify="right" if name in ("actors", "busy", "streams") else "left")
    for pool in pools:
        rule = "set" if pool["is_set"] else f"{pool['lowest']} to {pool['highest']}"
        size_text = (
            str(pool["size"])
            if pool["lowest"] == pool["size"] == pool["highest"]
            else f"{pool['size']} ({rule})"
        )
        busy = f"{pool['busy']:.0%}" if pool["busy"] is not None else ""
        for i, worker in enumerate(pool["workers"]):
            first = (pool["name"], size_text, busy) if i == 0 else ("", "", "")
            shown = (worker["name"], worker["state"], str(worker["streams"]), escape(worker["detail"]))
            table.add_row(*first, *shown)
    out.print(table)


def print_streams(streams: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stream", "state", "ingested", "of", "segments", "frames", "stored", "gaps", "source"):
        table.add_column(
            name, justify="right" if name in ("segments", "frames", "stored", "gaps") else "left"
        )
    for s in streams:
        table.add_row(
            escape(s["id"]),
            s["state"] + (f" ({s['restarts']} restarts)" if s["restarts"] else ""),
            clock(s["as_of_s"]),
            clock(s["duration_s"]) if s["duration_s"] else "live" if s.get("live") else "?",
            str(s["segments"]),
            str(s["source_frames"]),
            size(s["file_bytes"]),
            str(len(s["gaps"])) if s["gaps"] else "",
            escape(s["uri"]),
        )
    out.print(table)
    for s in streams:
        if s["detail"]:
            out.print(f"{escape(s['id'])}: {escape(s['detail'])}", highlight=False)
        if s.get("legal_hold"):
            out.print(f"{escape(s['id'])}: on legal hold: {escape(s['legal_hold'])}", highlight=False)
        if s.get("reencode"):
            out.print(f"{escape(s['id'])}: {escape(reencode_text(s['reencode']))}", highlight=False)
        if s.get("live"):
            out.print(f"{escape(s['id'])}: {escape(live_text(s['live']))}", highlight=False)
        if waiting := waiting_text(s):
            out.print(f"{escape(s['id'])}: {waiting}", highlight=False)
        gaps = s["gaps"]
        if len(gaps) > GAPS_SHOWN:
            out.print(
                f"{escape(s['id'])}: {len(gaps) - GAPS_SHOWN} earlier gaps; --json has them", highlight=False
            )
        for gap in gaps[-GAPS_SHOWN:]:
            out.print(f"{escape(s['id'])}: {gap_text(gap)}", highlight=False)


def wait_for_reencode(client: Client, stream_id: str) -> dict[str, Any]:
    """The stream, when the new memory is in its place, has failed, or is kept from its place."""
    with bars() as progress:
        task = progress.add_task(escape(stream_id), total=None, note="")
        while True:
            stream = client.stream(stream_id)
            new = stream["reencode"]
            if new is None or new["state"] == "failed" or (new["state"] == "done" and new["detail"]):
                return stream
            progress.update(
                task,
                total=new["duration_s"] or None,
                completed=new["position_s"],
                note=f"{new['segments']} segments  {new['state']}",
            )
            time.sleep(POLL_S)


def reencode_text(new: dict[str, Any]) -> str:
    """`encoded again: ingesting, 1:20 of 10:00, 12 segments, 9.4 MB`, and why it does not go on."""
    of = f" of {clock(new['duration_s'])}" if new["duration_s"] else ""
    done = f"{clock(new['position_s'])}{of}, {new['segments']} segments, {size(new['file_bytes'])}"
    return f"encoded again: {new['state']}, {done}" + (f": {new['detail']}" if new["detail"] else "")


def waiting_text(stream: dict[str, Any]) -> str:
    """`waiting: 32 frames for the tower, 2 segments for prefill`; empty when nothing does."""
    queues = (("queued_frames", "frame", "the tower"), ("waiting_segments", "segment", "prefill"))
    counts = [(stream.get(field, 0), what, stage) for field, what, stage in queues]
    parts = [f"{count} {what}{'s' * (count > 1)} for {stage}" for count, what, stage in counts if count]
    return f"waiting: {', '.join(parts)}" if parts else ""


def live_text(live: dict[str, Any]) -> str:
    """`1 frame/s, newest frame 1.4 s old (sender's clock), 12 frames dropped, away since ...`"""
    parts = [f"{live['sample_fps']:g} frames/s"]
    if live["frame_age_s"] is not None:
        parts.append(f"newest frame {live['frame_age_s']:.1f} s old ({live['clock']} clock)")
    if live["dropped_frames"]:
        parts.append(f"{live['dropped_frames']} frames dropped")
    if live["connections"] > 1:
        parts.append(f"connected {live['connections']} times")
    if live["outage"]:
        parts.append(live["outage"])
    return ", ".join(parts)


def print_answer(answer: dict[str, Any], url: str) -> None:
    """`url`: the server's, where the heaviest evidence can be seen."""
    out.print(f"[bold]{escape(answer['answer'])}[/]")
    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
    for name in ("rests on", "from", "to", "weight"):
        table.add_column(name, justify="left" if name == "rests on" else "right")
    for e in answer["evidence"]:
        table.add_row(f"segment {e['segment']}", clock(e["start_s"]), clock(e["end_s"]), f"{e['weight']:.2f}")
    out.print(table)
    times = "  ".join(f"{name} {ms:.0f} ms" for name, ms in answer["timings_ms"].items())
    sure = f"   {answer['confidence']:.0%} sure" if answer["confidence"] is not None else ""
    out.print(f"[dim]as of {clock(answer['as_of_s'])}{sure}   {times}[/]", highlight=False)
    best = answer["evidence"][0] if answer["evidence"] else {}
    if best.get("clip"):
        out.print(f"[dim]see it: {escape(url + best['clip'])}[/]", highlight=False, soft_wrap=True)
    if answer["span"]:
        out.print(span_text(answer["span"]), highlight=False)
    for gap in answer["gaps"]:
        out.print(f"[yellow]{gap_text(gap)}[/]", highlight=False)


def print_found(found: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stream", "answer", "from", "to", "score"):
        table.add_column(name, justify="left" if name in ("stream", "answer") else "right", overflow="fold")
    for stream in found["streams"]:
        answer = escape(stream["answer"]["answer"]) if stream["answer"] else ""
        for moment in stream["moments"]:
            times = (clock(moment["start_s"]), clock(moment["end_s"]), f"{moment['score']:.1f}")
            is_first = moment is stream["moments"][0]
            table.add_row(*((escape(stream["stream_id"]), answer) if is_first else ("", "")), *times)
    out.print(table)
    out.print(f"[dim]{found['searched']} streams searched in {found['timings_ms']['search']:.0f} ms[/]")
    for skipped in found["skipped"]:
        out.print(
            f"[yellow]not searched: {escape(skipped['stream_id'])} ({escape(skipped['reason'])})[/]",
            highlight=False,
        )


def span_text(span: dict[str, Any]) -> str:
    """`looked at 1:00 to 2:00 only`, and which words of the question say so."""
    start_s, end_s = span["start_s"], span["end_s"]
    start = "the beginning" if start_s is None else clock(max(start_s, 0))
    end = "the end" if end_s is None else clock(max(end_s, 0))
    because = f" ({escape(span['words'])})" if span["words"] else ""
    return f"looked at {start} to {end} only{because}"


def gap_text(gap: dict[str, Any]) -> str:
    return (
        f"footage is missing from {clock(gap['start_s'])} to {clock(gap['end_s'])}: {escape(gap['reason'])}"
    )
