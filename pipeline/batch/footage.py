"""What a log's `video` names: a file of a folder, or a stream of a store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Protocol

from pipeline.spans import origin_of
from streamkv.config import PipelineConfig
from streamkv.errors import BatchError, SourceError, UnknownStreamError
from streamkv.store import ModelIdentity, SegmentStore, is_store

HOME_STORE = "store"
"""In a server's home, which is easily taken for a store."""


@dataclass(frozen=True)
class Video:
    """One video that can be asked about."""

    name: str  # as the log has it
    path: str  # of its file; empty for a stream
    identity: tuple[Any, ...]  # another video, or another version of this one, has another
    size: int  # bytes: the larger it is, the longer it takes
    origin_s: float | None = None  # seconds since 1970 at its time 0; None: not known, as of any file


class Footage(Protocol):
    @property
    def config(self) -> PipelineConfig:
        """With which its videos are asked about."""
        ...

    def check(self, identity: ModelIdentity) -> None:
        """ForeignStoreError when what is there was made by another model."""
        ...

    def find(self, name: str) -> Video:
        """SourceError or UnknownStreamError when there is none that can be asked about."""
        ...


def open_footage(path: Path, config: PipelineConfig) -> Footage:
    """BatchError when there is neither a folder nor a store; StoreError when the store cannot be opened."""
    if not path.is_dir():
        raise BatchError(f"--footage: no folder {path}; give a folder of videos, or a store's folder")
    if is_store(path / HOME_STORE):
        raise BatchError(f"--footage: {path} is a server's home; give its store, {path / HOME_STORE}")
    return Streams(path, config) if is_store(path) else Files(path, config)


class Files:
    """The files of a folder, by their path in it."""

    def __init__(self, folder: Path, config: PipelineConfig) -> None:
        self._folder = folder.resolve()
        self.config = config

    def check(self, identity: ModelIdentity) -> None:
        """Any model can see a file."""

    def find(self, name: str) -> Video:
        """A file whose size or time of change is another has another identity."""
        relative = PurePath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise SourceError(f"video {name!r}: allowed is a file in the footage folder, named from there")
        path = self._folder / relative
        try:
            stat = path.stat()
        except (OSError, ValueError) as exc:  # ValueError: a zero byte in the name
            reason = exc.strerror if isinstance(exc, OSError) else exc
            raise SourceError(f"video {name!r}: not in {self._folder} ({reason}); check its name") from exc
        if not path.is_file():
            raise SourceError(f"video {name!r}: not a file; name one video of the footage folder")
        return Video(name, str(path), (str(relative), stat.st_size, stat.st_mtime_ns), stat.st_size)


class Streams:
    """The streams of a store, by id.

    What has been committed is no part of the identity: a batch that is resumed while a stream grows does not ask
    again what it has asked. Each answer says up to when it saw the stream.
    """

    def __init__(self, root: Path, config: PipelineConfig) -> None:
        self.config = replace(config, store=replace(config.store, root=str(root.resolve())))
        with self._open() as store:
            self._streams = {info.name: info for info in store.streams() if not info.is_next}

    def check(self, identity: ModelIdentity) -> None:
        self._open(identity).close()

    def find(self, name: str) -> Video:
        info = self._streams.get(name)
        if info is None:
            known = ", ".join(list(self._streams)[:MOST_NAMED]) or "none"
            raise UnknownStreamError(f"stream {name!r}: not in the store; it has {known}")
        return Video(name, "", (name, info.created_at), info.file_bytes, origin_of(info))

    def _open(self, identity: ModelIdentity | None = None) -> SegmentStore:
        return SegmentStore.configured(self.config.store, identity=identity, read_only=True)


MOST_NAMED = 10
"""Streams that an error names."""
