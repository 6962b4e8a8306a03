"""The state folder, `.streamkv/` unless told otherwise: what runs, its log, its store, generated worlds."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.processes import ProcessName

if TYPE_CHECKING:
    from streamkv.config import StoreConfig

HOME_VARIABLE = "STREAMKV_HOME"
DEFAULT_HOME = ".streamkv"


@dataclass(frozen=True)
class ServerRecord:
    """What a server process says of itself in `server.json`."""

    pid: int
    created: float  # of the process, so that another one with its pid is not taken for it
    phase: str  # what it is doing; `ready` or `failed` at the end
    detail: str = ""
    url: str = ""
    config: str = ""
    preset: str = ""
    ray_temp: str = ""  # folder of its own Ray, to be removed after it; empty: it has joined another
    elsewhere: str = ""  # settings that have its store lie elsewhere than in the home's folder alone

    @property
    def process(self) -> ProcessName:
        return ProcessName(self.pid, self.created)

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive


class Home:
    """Paths and the record of the server."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root or os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).resolve()

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def old_store(self) -> Path:
        """The one that an upgrade has put another in the place of; see `pipeline.upgrade`."""
        return self.root / "store.before"

    @property
    def next(self) -> Home:
        """Of the second server, while an upgrade is under way."""
        return Home(self.root / "next")

    @property
    def is_between_stores(self) -> bool:
        """Whether an upgrade was cut off between its renames: a server would begin a third store."""
        return self.next.store.exists() and self.old_store.exists() and not self.store.exists()

    def elsewhere(self, store: StoreConfig) -> list[str]:
        """Settings that have a store lie elsewhere than in the home's folder alone."""
        from streamkv.config import StoreConfig

        is_ours = store.root == StoreConfig().root or Path(store.root).resolve() == self.store
        outside = {"root": not is_ours, "catalog_url": store.catalog_url, "remote": store.remote}
        return [f"store.{name}" for name, is_outside in outside.items() if is_outside]

    @property
    def worlds(self) -> Path:
        return self.root / "worlds"

    @property
    def log(self) -> Path:
        return self.root / "server.log"

    @property
    def record_file(self) -> Path:
        return self.root / "server.json"

    def read(self) -> ServerRecord | None:
        """The last server's record, whether or not it is alive; None when there is none."""
        try:
            return ServerRecord(**json.loads(self.record_file.read_text()))
        except (FileNotFoundError, TypeError, ValueError):
            return None

    def write(self, record: ServerRecord) -> None:
        """Whole or not at all."""
        self.root.mkdir(parents=True, exist_ok=True)
        partial = self.record_file.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(asdict(record), indent=1) + "\n")
        partial.replace(self.record_file)

    def forget(self) -> None:
        self.record_file.unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str = "server") -> Iterator[bool]:
        """Whether this process is the home's one server, or whatever it is named, for as long as the block runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f"{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
