"""Real live sources on loopback: processes that can be killed, and a camera on a socket that misbehaves."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from shutil import which

import av
import numpy as np
import pytest

from streamkv.townsquare.draw import draw_moment
from streamkv.townsquare.script import Scene, World, make_scenes
from streamkv.townsquare.video import write_video

HERE = Path(__file__).parent
SYSTEM_PYTHON = "/usr/bin/python3"
GST = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
STEP_S = 0.5  # between the moments that a picture is compared with


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@cache
def has_rtsp_server() -> bool:
    if not Path(SYSTEM_PYTHON).exists():
        return False
    return subprocess.run([SYSTEM_PYTHON, "-c", GST], capture_output=True, check=False).returncode == 0


# pip has neither; .ci/run installs both, and a skip is a failure there.
needs_rtsp_server = pytest.mark.skipif(
    not has_rtsp_server(),
    reason="needs an RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 (see .ci/run)",
)
needs_ffmpeg = pytest.mark.skipif(
    not which("ffmpeg"), reason="needs an RTMP server: apt-get install ffmpeg (see .ci/run)"
)


@contextmanager
def process(
    command: Sequence[str], *, is_ready: Callable[[], bool] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Runs until the block ends, or is killed within it. Begins when it says `ready`, or when `is_ready`."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout is not None
            if is_ready is None:
                assert child.stdout.readline() == "ready\n", "the server does not start"
            else:
                wait_until(is_ready)
            yield child
        finally:
            child.kill()


def rtsp_server(port: int, video: Path) -> list[str]:
    return [SYSTEM_PYTHON, str(HERE / "rtsp_server.py"), str(port), str(video)]


def paced_sender(video: Path, url: str, form: str, *options: str) -> list[str]:
    return [sys.executable, str(HERE / "paced_sender.py"), str(video), url, form, *options]


def rtmp_server(uri: str, video: Path) -> list[str]:
    """For one client, which sees the video from its start."""
    return f"ffmpeg -loglevel error -re -i {video} -c copy -f flv -listen 1 {uri}".split()


def http_server(port: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


Script = Callable[[socket.socket, int], None]
"""What a camera does with its client, and with which one in order: 0, 1 ... It hangs up at its end."""


@contextmanager
def camera(script: Script, *, at_once: int = 1) -> Iterator[int]:
    """A camera on a TCP port, which is yielded; so many clients at a time."""
    stopping = threading.Event()
    numbers = count()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def serve() -> None:
            while not stopping.is_set():
                try:
                    client, _ = server.accept()
                except TimeoutError:
                    continue
                with client, suppress(OSError):
                    client.settimeout(None)
                    script(client, next(numbers))

        threads = [threading.Thread(target=serve) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            stopping.set()
            for thread in threads:
                thread.join()


class Town:
    """A world of short scenes and its video: the footage that every server here sends."""

    def __init__(self, folder: Path, *, scenes: int = 10, scene_s: float = 4.0) -> None:
        self.world: World = make_scenes(random.Random(5), [scene_s] * scenes)
        self.video = write_video(self.world, folder / "town.mp4")
        self.quick = _with_keyframes(self.video, folder / "quick.mp4")
        self._times = np.arange(0, self.world.duration_s, STEP_S)
        self._moments = np.stack([_small(draw_moment(self.world, t)) for t in self._times])

    def time_of(self, rgb: np.ndarray) -> float:
        """The time of the world that the picture looks most like."""
        return float(self._times[np.abs(self._moments - _small(rgb)).mean(axis=(1, 2, 3)).argmin()])

    def scenes_near(self, time_s: float, margin_s: float = 0.6) -> list[Scene]:
        return [self.world.scene_at(max(0.0, time_s + d)) for d in (-margin_s, margin_s)]


def _with_keyframes(video: Path, path: Path) -> Path:
    """The same with a keyframe a second, for segments as short."""
    with av.open(str(video)) as source, av.open(str(path), "w") as sink:
        shown = source.streams.video[0]
        out = sink.add_stream("libx264", rate=shown.average_rate, options={"preset": "veryfast"})
        out.width, out.height, out.pix_fmt = shown.width, shown.height, "yuv420p"
        out.codec_context.gop_size = round(shown.average_rate)
        for picture in source.decode(shown):
            picture.pict_type = 0
            sink.mux(out.encode(picture))
        sink.mux(out.encode(None))
    return path


def _small(rgb: np.ndarray) -> np.ndarray:
    return rgb[::4, ::4].astype(np.float32)
