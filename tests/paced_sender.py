"""Sends a file's pictures at the pace of their timestamps: paced_sender.py FILE URL FORMAT [option=value ...]."""

import sys
import time

import av

path, url, form, *options = sys.argv[1:]
with (
    av.open(path) as source,
    av.open(url, "w", format=form, options=dict(o.split("=", 1) for o in options)) as sink,
):
    stream = source.streams.video[0]
    out = sink.add_stream_from_template(stream)
    sink.start_encoding()
    print("ready", flush=True)
    began = time.monotonic()
    for packet in source.demux(stream):
        if packet.dts is None:
            continue
        time.sleep(max(0.0, float(packet.dts * packet.time_base) - (time.monotonic() - began)))
        packet.stream = out
        sink.mux(packet)
