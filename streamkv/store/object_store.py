"""The object store behind the local disk: each segment's file as an object, under the path that it has in the root.

Whatever `pyarrow.fs` has a URI for: `s3://bucket/prefix`, `file:///folder` and others. Knows nothing of the catalog.
"""

from __future__ import annotations

import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

from streamkv.config import S3Config
from streamkv.errors import ConfigError, MissingObjectError, ObjectStoreError
from streamkv.store import durable
from streamkv.store.layout import DAMAGED, STREAMS

_CHUNK_BYTES = 8 << 20


class ObjectInfo(NamedTuple):
    num_bytes: int
    written_at: float  # seconds since 1970


class ObjectStore:
    """Objects by their path under the prefix. Threads may share one; it connects when first used.

    Each method raises ObjectStoreError when the object store cannot be reached or refuses, after the retries that
    `S3Config` has.
    """

    def __init__(self, uri: str, s3: S3Config | None = None) -> None:
        """ConfigError for a URI that holds credentials or options: those stand elsewhere, and it is shown."""
        self.uri = uri.rstrip("/")
        self._s3 = s3 or S3Config()
        parts = urlsplit(uri)
        if not parts.scheme or parts.username or parts.query:
            raise ConfigError(
                "store.remote: allowed a URI such as s3://bucket/prefix or file:///folder, with neither credentials "
                "(AWS_ACCESS_KEY_ID and the like) nor options (store.s3)"
            )

    def uri_of(self, path: str) -> str:
        return f"{self.uri}/{path}"

    def put(self, path: str, data: Any) -> None:
        """Replaces an object of that path. `data` is bytes, or a buffer of Arrow's."""
        with self._translated(path):
            if self._folder is not None:
                self._put_in_folder(self._folder / path, data)
                return
            with self._system.open_output_stream(self._at(path)) as stream:
                stream.write(data)

    def crc32(self, path: str) -> int:
        """Of an object's bytes, read anew. MissingObjectError when it is not there."""
        crc32 = 0
        for chunk in self._chunks(path):
            crc32 = zlib.crc32(chunk, crc32)
        return crc32

    def get(self, path: str, file: BinaryIO) -> None:
        """Writes an object's bytes. MissingObjectError when it is not there."""
        for chunk in self._chunks(path):
            file.write(chunk)

    def read(self, path: str) -> bytes | None:
        """A small object; None when it is not there."""
        try:
            return b"".join(bytes(chunk) for chunk in self._chunks(path))
        except MissingObjectError:
            return None

    def listed(self, stream_id: str | None = None) -> dict[str, ObjectInfo]:
        """Every segment's object, or one stream's, by path."""
        from pyarrow import fs

        folder = STREAMS if stream_id is None else f"{STREAMS}/{stream_id}"
        with self._translated(folder):
            found = self._system.get_file_info(
                fs.FileSelector(self._at(folder), recursive=True, allow_not_found=True)
            )
        start = len(self._at(""))
        return {
            info.path[start:]: ObjectInfo(info.size, info.mtime.timestamp() if info.mtime else time.time())
            for info in found
            if info.type == fs.FileType.File
        }

    def delete(self, path: str) -> None:
        """None is needed: it may be gone already."""
        with self._translated(path), suppress(FileNotFoundError):
            self._system.delete_file(self._at(path))

    def set_aside(self, path: str) -> str:
        """Moves a damaged object out of the way; returns where it is now, empty when it is not there."""
        from pyarrow import fs

        to = f"{DAMAGED}/{path.partition('/')[2].replace('/', '.')}"
        with self._translated(path):
            if self._system.get_file_info(self._at(path)).type == fs.FileType.NotFound:
                return ""
            if self._folder is not None:
                (self._folder / DAMAGED).mkdir(exist_ok=True)
            self._system.move(self._at(path), self._at(to))
        return self.uri_of(to)

    # ---- inside

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the prefix there."""
        from pyarrow import ArrowException, fs

        parts = urlsplit(self.uri)
        try:
            if parts.scheme != "s3":
                system, prefix = fs.FileSystem.from_uri(self.uri)
                return system, prefix.rstrip("/")
            system = fs.S3FileSystem(
                endpoint_override=self._s3.endpoint_override or None,
                scheme=self._s3.scheme,
                region=self._s3.region or None,
                connect_timeout=self._s3.timeout_s,
                request_timeout=self._s3.timeout_s,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=self._s3.attempts),
                allow_delayed_open=True,  # one request for a small object, not three
            )
        except (ArrowException, ValueError) as exc:
            raise ConfigError(f"store.remote: cannot use {self.uri!r}: {exc}") from exc
        return system, (parts.netloc + parts.path).rstrip("/")

    @property
    def _system(self) -> Any:
        return self._place[0]

    @property
    def _folder(self) -> Path | None:
        """Where objects are files."""
        system, prefix = self._place
        return Path(prefix) if system.type_name == "local" else None

    def _at(self, path: str) -> str:
        return f"{self._place[1]}/{path}"

    def _put_in_folder(self, path: Path, data: Any) -> None:
        """Durably: what is uploaded may leave the local disk."""
        temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        durable.make_folder(path.parent)
        durable.write_temp(temp, lambda file: file.write(data))
        durable.publish(temp, path)

    def _chunks(self, path: str) -> Iterator[Any]:
        with self._translated(path), self._system.open_input_stream(self._at(path)) as stream:
            while chunk := stream.read_buffer(_CHUNK_BYTES):
                yield chunk

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as exc:
            raise MissingObjectError(f"{self.uri_of(path)}: the object is missing") from exc
        except OSError as exc:
            raise ObjectStoreError(f"{self.uri_of(path)}: {exc}; check store.remote and store.s3") from exc
