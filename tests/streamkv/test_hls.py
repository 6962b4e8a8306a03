"""A playlist's dates: from whatever is plain, and none, without a word of a password, from whatever is not."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import av
import pytest
from clips import steady, write_clip
from live_servers import answers, camera, free_port, http_server, process

from streamkv.hls import date_of_zero

SECONDS = 6
MASTER = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=90000\n{}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder, port = tmp_path_factory.mktemp("hls"), free_port()
    clip = write_clip(folder / "clip.mp4", steady(SECONDS))
    for name, kind in (("ts", "mpegts"), ("mp4", "fmp4")):
        (folder / name).mkdir()
        _make(clip, folder / name / "cam.m3u8", kind)
    with process(http_server(port, folder), is_ready=lambda: answers(port)):
        yield folder, f"http://bob:hunter2@127.0.0.1:{port}"


def _make(clip: Path, playlist: Path, kind: str) -> None:
    options = {
        "hls_time": "1",
        "hls_list_size": "3",
        "hls_flags": "program_date_time",
        "hls_segment_type": kind,
    }
    with av.open(str(clip)) as source, av.open(str(playlist), "w", format="hls", options=options) as made:
        video = made.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                made.mux(packet)


def expected(playlist: Path) -> float:
    """Of timestamp 0, by the first segment that it still has, and the first picture that FFmpeg shows of it."""
    dates = [line for line in playlist.read_text().splitlines() if "PROGRAM-DATE-TIME" in line]
    with av.open(str(playlist)) as container:
        first = next(container.decode(video=0))
    return datetime.fromisoformat(dates[0].partition(":")[2]).timestamp() - first.time


@pytest.mark.parametrize("kind", ["ts", "mp4"])
def test_dates_are_those_of_the_segments(server: tuple[Path, str], kind: str) -> None:
    folder, url = server
    (folder / f"{kind}.m3u8").write_text(MASTER.format(f"{kind}/cam.m3u8"))
    for uri in (f"{url}/{kind}/cam.m3u8", f"{url}/{kind}.m3u8"):
        found = date_of_zero(uri, timeout_s=60)
        assert found is not None
        assert float(found) == pytest.approx(expected(folder / kind / "cam.m3u8"), abs=0.1)


def test_what_has_no_date_or_cannot_be_read_has_none(
    server: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, url = server
    whole = (folder / "ts" / "cam.m3u8").read_text()
    lines = whole.splitlines(keepends=True)
    (folder / "ts" / "hole.ts").write_bytes(b"no video")
    of_what = {
        "undated": "".join(line for line in lines if "DATE" not in line),
        "locked": whole.replace("#EXTINF", '#EXT-X-KEY:METHOD=AES-128,URI="key"\n#EXTINF', 1),
        "gone": "".join(f"none-{line}" if line[0] != "#" else line for line in lines),
        "broken": "".join("hole.ts\n" if line[0] != "#" else line for line in lines),
        "wild": whole.replace("DATE-TIME:", "DATE-TIME:noon "),
        "text": "no playlist",
        "empty": "",
        "lonely": MASTER.format("none.m3u8"),
    }
    caplog.set_level(logging.DEBUG, "streamkv.hls")
    for name, text in of_what.items():
        (folder / "ts" / f"{name}.m3u8").write_text(text)
        assert date_of_zero(f"{url}/ts/{name}.m3u8", timeout_s=60) is None, name
    assert date_of_zero(f"http://bob:hunter2@127.0.0.1:{free_port()}/cam.m3u8", timeout_s=1) is None
    assert caplog.records
    assert "hunter2" not in caplog.text


def test_one_that_trickles_or_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends a byte now and then resets the time limit of each read."""

    def trickles(client: socket.socket, number: int) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n#EXTM3U\n")
        with suppress(OSError):  # we hang up
            while True:
                client.sendall(b"#")
                time.sleep(0.05)

    with camera(trickles) as port:
        assert date_of_zero(f"http://127.0.0.1:{port}/cam.m3u8", timeout_s=1) is None
        monkeypatch.setattr("streamkv.hls.MAX_BYTES", 20)
        assert date_of_zero(f"http://127.0.0.1:{port}/cam.m3u8", timeout_s=10_000) is None
