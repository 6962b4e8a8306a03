"""Live sources on loopback: what is sampled is what was shown, what is missing is told, and nothing hangs or spins."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from clips import SIDE, steady, write_clip
from live_servers import (
    Town,
    answers,
    camera,
    free_port,
    http_server,
    needs_ffmpeg,
    needs_rtsp_server,
    paced_sender,
    process,
    rtmp_server,
    rtsp_server,
    wait_until,
)

from streamkv import live
from streamkv.errors import SourceError
from streamkv.live import LiveFrame, LiveSource, Timeline, is_live, probe_live
from streamkv.sources import probe_source

UDP = socket.SOCK_DGRAM


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    return Town(tmp_path_factory.mktemp("town"))


class Watch:
    """A source that is read in a thread of its own."""

    def __init__(self, uri: str, *, fps: float = 2.0, timeout_s: float = 3.0, **settings: float) -> None:
        self.frames: list[LiveFrame] = []
        self.gaps: list[tuple[float, float, str]] = []
        self.error = ""
        self.origin_s = settings.pop("origin_s", time.time())
        self.source = LiveSource(
            uri,
            fps,
            origin_s=self.origin_s,
            on_gap=lambda *gap: self.gaps.append(gap),
            timeout_s=timeout_s,
            **settings,
        )
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            for frame in self.source.frames():
                self.frames.append(frame)
        except SourceError as exc:
            self.error = str(exc)

    def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        wait_until(lambda: condition() or not self.thread.is_alive(), timeout_s)

    def until_frames(self, count: int) -> None:
        self.until(lambda: len(self.frames) >= count)
        assert len(self.frames) >= count, self.error

    @property
    def ended(self) -> bool:
        return not self.thread.is_alive()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.source.stop()
        self.thread.join()

    def check(self, town: Town | None = None) -> None:
        """Every sampling time has its frame or is in a gap; each connection shows the world as time passes."""
        step = 0.5
        times = [f.start_s for f in self.frames]
        assert times == sorted(set(times))
        for before, after in zip(self.frames, self.frames[1:], strict=False):
            is_told = any(start == before.end_s and end == after.start_s for start, end, _ in self.gaps)
            assert after.start_s == before.end_s or is_told, (before.end_s, after.start_s, self.gaps)
        assert all(f.end_s == f.start_s + step for f in self.frames)
        for run in self.runs() if town is not None else []:
            seen = [town.time_of(f.rgb) for f in run]
            shift = median(at - f.start_s for at, f in zip(seen, run, strict=True))
            for at, frame in zip(seen, run, strict=True):
                assert town.world.scene_at(at) in town.scenes_near(frame.start_s + shift), (at, frame.start_s)

    def runs(self) -> list[list[LiveFrame]]:
        """Frames between gaps."""
        runs: list[list[LiveFrame]] = [[]]
        for frame in self.frames:
            if runs[-1] and runs[-1][-1].end_s != frame.start_s:
                runs.append([])
            runs[-1].append(frame)
        return runs


@needs_rtsp_server
@pytest.mark.parametrize("transport", ["", "?udp"])
def test_rtsp_shows_the_right_scenes_and_goes_on_after_its_server_was_killed(
    town: Town, transport: str
) -> None:
    port = free_port()
    with process(rtsp_server(port, town.video)) as server:
        watch = Watch(f"rtsp://127.0.0.1:{port}/live{transport}")
        with watch:
            watch.until(lambda: any(f.clock == "sender" for f in watch.frames) and len(watch.frames) > 12)
            seen = len(watch.frames)
            server.kill()
            server.wait()
            watch.until(lambda: watch.source.outage is not None)
            with process(rtsp_server(port, town.video)):
                watch.until_frames(seen + 10)
                watch.source.stop()
                watch.thread.join()
    watch.check(town)
    assert len(watch.gaps) == 1
    start, _, reason = watch.gaps[0]
    assert live.utc(watch.origin_s + start) in reason
    assert watch.source.connections == 2
    assert [f.clock for f in watch.runs()[0]].index("sender") > 0, "dated by arrival until the first report"
    assert all(abs(f.wall_s - watch.origin_s - f.start_s) < live.MAX_SKEW_S for f in watch.frames)


def test_hls_shows_the_right_scenes_and_goes_on_after_its_server_was_killed(
    town: Town, tmp_path: Path
) -> None:
    port, playlist = free_port(), tmp_path / "cam.m3u8"
    dated = "hls_flags=program_date_time"
    maker = paced_sender(town.quick, str(playlist), "hls", "hls_time=1", "hls_list_size=4", dated)
    with process(maker):
        wait_until(playlist.exists)
        first_date = re.search(r"#EXT-X-PROGRAM-DATE-TIME:(.*)", playlist.read_text())
        assert first_date is not None
        begun = datetime.fromisoformat(first_date[1]).timestamp()
        uri = f"http://127.0.0.1:{port}/cam.m3u8"
        with process(http_server(port, tmp_path), is_ready=lambda: answers(port)) as server:
            info = probe_source(uri, timeout_s=10)
            assert (info.is_live, info.width) == (True, 480)
            watch = Watch(uri)
            with watch:
                watch.until_frames(8)
                server.kill()
                server.wait()
                watch.until(lambda: watch.source.outage is not None)
                time.sleep(3)  # the maker goes on
                seen = len(watch.frames)
                with process(http_server(port, tmp_path), is_ready=lambda: answers(port)):
                    watch.until_frames(seen + 8)
                    watch.source.stop()
                    watch.thread.join()
    watch.check(town)
    assert len(watch.gaps) == 1
    first, second = (town.time_of(run[-1].rgb) for run in watch.runs())
    assert second > first, "nothing is shown twice"
    assert {frame.clock for frame in watch.frames} == {"sender"}
    for run in (
        watch.runs()
    ):  # dated by when the maker made them, not by when they came, which is some segments later
        assert abs(median(f.wall_s - begun - town.time_of(f.rgb) for f in run)) < 0.4


def test_a_playlist_that_comes_to_its_end_ends_the_stream(tmp_path: Path) -> None:
    port, playlist = free_port(), tmp_path / "cam.m3u8"
    clip = write_clip(tmp_path / "clip.mp4", steady(6))
    maker = paced_sender(clip, str(playlist), "hls", "hls_time=1", "hls_list_size=4")
    with process(http_server(port, tmp_path), is_ready=lambda: answers(port)), process(maker):
        wait_until(playlist.exists)
        with Watch(f"http://127.0.0.1:{port}/cam.m3u8") as watch:
            watch.until(lambda: watch.ended, 40)
            assert watch.ended
    assert watch.error == ""
    assert watch.frames


def test_a_playlist_whose_maker_died_is_not_read_over_and_over(tmp_path: Path, quick: None) -> None:
    port, playlist = free_port(), tmp_path / "cam.m3u8"
    clip = write_clip(tmp_path / "clip.mp4", steady(30))
    maker = paced_sender(clip, str(playlist), "hls", "hls_time=1", "hls_list_size=4")
    with process(http_server(port, tmp_path), is_ready=lambda: answers(port)), process(maker) as making:
        wait_until(playlist.exists)
        with Watch(f"http://127.0.0.1:{port}/cam.m3u8", timeout_s=2) as watch:
            watch.until_frames(3)
            making.kill()
            watch.until(lambda: watch.source.outage is not None and watch.source.outage.attempts > 1)
            shown = len(watch.frames)
            watch.until(lambda: watch.source.outage is not None and watch.source.outage.attempts > 2)
            assert watch.source.connections > 2, "it was read again"
            assert len(watch.frames) == shown


def test_mpeg_ts_over_udp_shows_the_right_scenes_and_goes_on_after_a_silence(town: Town) -> None:
    port = free_port(UDP)
    sender = paced_sender(town.video, f"udp://127.0.0.1:{port}?pkt_size=1316", "mpegts")
    with Watch(f"udp://127.0.0.1:{port}", timeout_s=3) as watch:
        with process(sender):
            watch.until_frames(10)
        watch.until(lambda: watch.source.outage is not None)
        with process(sender):
            seen = len(watch.frames)
            watch.until_frames(seen + 8)
            watch.source.stop()
            watch.thread.join()
    watch.check(town)
    assert len(watch.runs()) == 2
    assert re.search("not answer in time|no picture for 3 s", watch.gaps[-1][2])


@needs_ffmpeg
def test_rtmp_shows_the_right_scenes(town: Town) -> None:
    uri = f"rtmp://127.0.0.1:{free_port()}/live/cam"
    with Watch(uri, timeout_s=6) as watch, process(rtmp_server(uri, town.video), is_ready=lambda: True):
        watch.until_frames(8)
        watch.source.stop()
        watch.thread.join()
    watch.check(town)


# ---------------------------------------------------------------- cameras that misbehave


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Four seconds of transport stream."""
    return write_clip(tmp_path_factory.mktemp("ts") / "clip.ts", steady(4)).read_bytes()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "BACKOFF_S", (0.05, 0.1, 0.2, 0.4))


def test_a_camera_that_connects_and_never_sends_is_timed_out() -> None:
    hang_up = threading.Event()
    with camera(lambda client, number: hang_up.wait() and None) as port:
        for uri in (f"rtsp://127.0.0.1:{port}/1", f"tcp://127.0.0.1:{port}", f"rtmp://127.0.0.1:{port}/a/b"):
            with pytest.raises(SourceError, match="no picture"):
                probe_live(uri, timeout_s=0.5)
            hang_up.set()
            hang_up.clear()
        hang_up.set()


def test_a_camera_that_falls_silent_is_away_and_its_gap_is_told(footage: bytes, quick: None) -> None:
    hang_up = threading.Event()

    def falls_silent(client: socket.socket, number: int) -> None:
        client.sendall(footage)
        if number == 0:
            hang_up.wait()
        else:
            time.sleep(1)

    with camera(falls_silent) as port, Watch(f"tcp://127.0.0.1:{port}", timeout_s=1) as watch:
        watch.until(lambda: watch.source.outage is not None)
        hang_up.set()
        watch.until(lambda: watch.source.connections > 1 and len(watch.frames) > 8)
    watch.check()


def test_a_camera_that_sends_sound_alone_is_timed_out(tmp_path: Path, quick: None) -> None:
    import av

    path = tmp_path / "both.ts"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=8)
        video.width = video.height = SIDE
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        for k in range(160):  # ten seconds of sound, two of pictures
            if k % 2 == 0 and k < 32:
                picture = av.VideoFrame.from_ndarray(np.zeros((SIDE, SIDE, 3), np.uint8), format="rgb24")
                container.mux(video.encode(picture))
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            noise.sample_rate, noise.pts = 16_000, k * 1024
            container.mux(sound.encode(noise))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    data = path.read_bytes()

    hang_up = threading.Event()

    def trickle(client: socket.socket, number: int) -> None:
        half = len(data) // 2
        client.sendall(data[:half])
        while not hang_up.wait(0.05):
            client.sendall(data[half:])

    with camera(trickle) as port, Watch(f"tcp://127.0.0.1:{port}", timeout_s=1.5) as watch:
        watch.until(lambda: watch.source.outage is not None, 20)
        hang_up.set()
    assert watch.source.outage is not None
    assert re.search("not answer in time|no picture for 1.5 s", watch.source.outage.reason)


def test_one_that_reconnects_all_the_time_neither_spins_nor_floods_the_log(
    footage: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(live, "BACKOFF_S", (0.01, 0.02, 0.04, 0.08))
    caplog.set_level(logging.DEBUG, "streamkv.live")
    with camera(lambda client, number: client.sendall(footage)) as port:
        watch = Watch(f"tcp://bob:hunter2@127.0.0.1:{port}")
        wait = watch.source._stop.wait

        def noting_wait(timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return wait(timeout)

        monkeypatch.setattr(watch.source._stop, "wait", noting_wait)
        with watch:
            watch.until(lambda: watch.source.connections >= 8)
    assert pauses[-4:] == [0.08] * 4, "a connection that does not last does not shorten the pause"
    assert len(caplog.records) == 1
    assert "hunter2" not in caplog.text
    times = [f.start_s for f in watch.frames]
    assert times == sorted(set(times))


def test_a_source_that_is_away_for_too_long_has_failed_and_keeps_its_password(quick: None) -> None:
    with Watch(f"rtsp://bob:hunter2@127.0.0.1:{free_port()}/1?token=hunter2", outage_limit_s=0.5) as watch:
        watch.until(lambda: watch.ended)
    assert "refused" in watch.error
    assert "source.outage_limit_s" in watch.error
    assert "hunter2" not in watch.error
    assert "hunter2" not in str(watch.source.outage)


def test_what_was_missed_while_nobody_read_is_a_gap(footage: bytes, quick: None) -> None:
    def stays(client: socket.socket, number: int) -> None:
        client.sendall(footage)
        time.sleep(1)

    with camera(stays) as port:
        settings = {"origin_s": time.time() - 100, "start_s": 40.0}
        with Watch(f"tcp://127.0.0.1:{port}", **settings) as watch:
            watch.until_frames(4)
    assert watch.frames[0].start_s >= 100
    start, end, reason = watch.gaps[0]
    assert (start, end) == (40.0, watch.frames[0].start_s)
    assert "nobody read the source" in reason


def test_keyframes_alone_are_decoded_when_that_is_asked_for(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "clip.ts", steady(8), gop=16).read_bytes()

    def stays(client: socket.socket, number: int) -> None:
        client.sendall(data)
        time.sleep(1)

    with camera(stays) as port, Watch(f"tcp://127.0.0.1:{port}", keyframes_only=True) as watch:
        watch.until_frames(12)
    shades = [round(float(f.rgb[SIDE // 2 + 4 :].mean())) for f in watch.frames[:12]]
    assert len(set(shades)) in (3, 4), "keyframes are two seconds apart"
    assert shades == sorted(shades)
    assert shades[-1] - shades[0] > 35


def test_a_stop_is_heard_while_the_source_is_away() -> None:
    watch = Watch(f"rtsp://127.0.0.1:{free_port()}/1")
    watch.until(lambda: watch.source.outage is not None and watch.source.outage.attempts > 1)
    with watch:
        pass
    assert watch.ended
    assert watch.error == ""


# ---------------------------------------------------------------- time


def test_stream_time_follows_timestamps_and_only_ever_rises() -> None:
    timeline = Timeline()
    assert timeline.place(live.Fraction(0), live.Fraction(100)) == 100
    assert timeline.place(live.Fraction(2), live.Fraction(101)) == 102, "a burst runs ahead of its arrival"
    assert timeline.place(live.Fraction(1), live.Fraction(101)) is None
    timeline.begin_connection()
    assert timeline.place(live.Fraction(50), live.Fraction(101)) is None, "never back to before the burst"
    assert timeline.place(live.Fraction(51), live.Fraction(103)) == 103


def test_timestamps_that_leave_the_wall_clock_are_not_believed() -> None:
    timeline = Timeline()
    timeline.place(live.Fraction(0), live.Fraction(100))
    assert timeline.place(live.Fraction(600), live.Fraction(101)) == 101, "ten minutes within a second"
    assert timeline.place(live.Fraction(601), live.Fraction(102)) == 102
    assert timeline.place(live.Fraction(602), live.Fraction(302)) == 302, "a silence of the timestamps alone"


def test_a_picture_is_dated_by_the_least_delay() -> None:
    timeline = Timeline()
    dates = [
        timeline.taken_at(live.Fraction(own), live.Fraction(now))
        for own, now in ((0, 103), (1, 103), (2, 104))
    ]
    assert dates == [103, 103, 104]
    assert timeline.taken_at(live.Fraction(3), live.Fraction(109)) == 105, "it was held up for four seconds"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("rtsp://cam/1", True),
        ("RTSPS://cam/1", True),
        ("rtmp://host/app/stream", True),
        ("udp://239.0.0.1:1234", True),
        ("srt://host:9000", True),
        ("v4l2:///dev/video0", True),
        ("/dev/video12", True),
        ("/footage/video0.mp4", False),
        ("file:///footage/a.mp4", False),
        ("https://host/a.mp4", False),
    ],
)
def test_a_uri_says_whether_it_is_live(uri: str, expected: bool) -> None:
    assert is_live(uri) == expected


@pytest.mark.parametrize(
    ("uri", "opened", "transport"),
    [
        ("rtsp://cam/1", "rtsp://cam/1", "tcp"),
        ("rtsp://cam/1?udp", "rtsp://cam/1", "udp"),
        ("rtsp://cam/1?channel=2&tcp", "rtsp://cam/1?channel=2", "tcp"),
    ],
)
def test_an_rtsp_uri_may_name_its_transport(uri: str, opened: str, transport: str) -> None:
    place, arguments = live._how_to_open(uri)
    assert place == opened
    assert arguments["options"]["rtsp_transport"] == transport


@pytest.mark.parametrize("uri", ["srt://127.0.0.1:9", "/dev/video99", "v4l2:///dev/video99"])
def test_what_cannot_be_had_here_is_refused_in_time(uri: str) -> None:
    with pytest.raises(SourceError, match="no picture"):
        probe_source(uri, timeout_s=2)


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before
