"""An S3 server of the tests' own: moto's, a process on a free port, behind a gate that can be shut, or slow."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pyarrow import fs

from streamkv.config import S3Config

START_S = 60.0


class Gate:
    """Hands on what goes to another port and comes back, and writes down the requests."""

    def __init__(self, to_port: int) -> None:
        self.requests: list[str] = []  # `GET /bucket/path HTTP/1.1`
        self.delay_s = 0.0  # before each piece of an answer
        self._to_port = to_port
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start()

    def shut(self) -> None:
        """Connections are refused, and those that were open are cut."""
        for end in (self._listener, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start()

    def _start(self) -> None:
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                asker, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to_port))
            self._open |= {asker, server}
            threading.Thread(target=self._serve, args=(asker, server), daemon=True).start()

    def _serve(self, asker: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._hand_on, args=(server, asker, False), daemon=True)
        back.start()
        self._hand_on(asker, server, True)
        back.join()
        for end in (asker, server):
            self._open.discard(end)
            end.close()

    def _hand_on(self, come: socket.socket, go: socket.socket, is_request: bool) -> None:
        with suppress(OSError):
            while data := come.recv(1 << 16):
                if is_request and data.startswith((b"GET ", b"PUT ", b"POST ", b"DELETE ", b"HEAD ")):
                    self.requests.append(data.partition(b"\r\n")[0].decode())
                if not is_request:
                    time.sleep(self.delay_s)
                go.sendall(data)
        with suppress(OSError):
            go.shutdown(socket.SHUT_RDWR)


class S3Server:
    """A server that is up until its block ends."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        # Errors to nowhere: the server's log of requests would fill a pipe.
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "moto.server",
            "-H",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()
        self._system = self._connected()
        self.gate = Gate(self.port)

    @property
    def config(self) -> S3Config:
        """For a client that soon gives up."""
        return S3Config(
            endpoint_override=f"127.0.0.1:{self.gate.port}",
            scheme="http",
            region="us-east-1",
            timeout_s=2.0,
            attempts=1,
        )

    def new_prefix(self) -> str:
        """A bucket of its own, and a folder in it."""
        bucket = f"b{uuid.uuid4().hex[:20]}"
        self._system.create_dir(bucket, recursive=False)
        return f"s3://{bucket}/footage"

    def objects(self, prefix: str) -> dict[str, int]:
        """Bytes of each object of segments below a prefix, by its path there."""
        folder = prefix.removeprefix("s3://")
        found = self._system.get_file_info(
            fs.FileSelector(f"{folder}/streams", recursive=True, allow_not_found=True)
        )
        return {i.path.removeprefix(folder + "/"): i.size for i in found if i.type == fs.FileType.File}

    def read(self, prefix: str, path: str) -> bytes:
        with self._system.open_input_stream(f"{prefix.removeprefix('s3://')}/{path}") as stream:
            return bytes(stream.read())

    def write(self, prefix: str, path: str, data: bytes) -> None:
        with self._system.open_output_stream(f"{prefix.removeprefix('s3://')}/{path}") as stream:
            stream.write(data)

    def delete(self, prefix: str, path: str) -> None:
        self._system.delete_file(f"{prefix.removeprefix('s3://')}/{path}")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Cannot be reached; its objects stay."""
        self.gate.shut()
        try:
            yield
        finally:
            self.gate.open()

    @contextmanager
    def slow(self, delay_s: float) -> Iterator[None]:
        self.gate.delay_s = delay_s
        try:
            yield
        finally:
            self.gate.delay_s = 0.0

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Takes connections and says nothing."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        self.gate.shut()
        self._process.kill()
        self._process.wait()

    def _connected(self) -> Any:
        return fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{self.port}",
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )

    def _wait(self) -> None:
        give_up = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/moto-api/").close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                assert time.monotonic() < give_up, "moto does not start"
                assert self._process.poll() is None, "moto has ended"
                time.sleep(0.05)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """With credentials in the environment, as the client wants some."""
    for name, value in {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "word"}.items():
        os.environ.setdefault(name, value)
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    server = S3Server()
    try:
        yield server
    finally:
        server.stop()
