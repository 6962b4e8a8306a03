"""Bearer keys of a store: who may use its HTTP API. Knows neither HTTP nor Ray.

Kept is each key's SHA-256. A slow, salted hash guards passwords, which people choose and a dictionary holds; a
key is 256 random bits, so there is nothing to guess faster than all of them, and each request stays cheap.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from streamkv.errors import ConfigError

KEY_VARIABLE = "STREAMKV_API_KEY"
PREFIX = "skv_"
"""Makes a key known for one where it should not be, to people and to scanners."""
KEY_BYTES = 32
FILE = "keys.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Key:
    """What is known of a key: not the key."""

    name: str
    created_at: float  # seconds since 1970
    last_four: str
    sha256: str


class KeyFile:
    """`keys.json` in the store's folder: every node that serves the store sees it. Read again when it changes."""

    def __init__(self, store: Path) -> None:
        self.path = store / FILE
        self._seen: tuple[int, ...] = ()
        self._keys: tuple[Key, ...] = ()

    def all(self) -> tuple[Key, ...]:
        """By name; ConfigError when the file cannot be read."""
        try:
            stat = self.path.stat()
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen != self._seen:
                self._keys = tuple(Key(**values) for values in json.loads(self.path.read_text()))
                self._seen = seen
        except FileNotFoundError:
            self._seen, self._keys = (), ()
        except (OSError, ValueError, TypeError) as exc:
            raise ConfigError(f"{self.path}: not a file of keys ({exc}); restore it, or remove it") from exc
        return self._keys

    def admits(self, key: str) -> bool:
        """Whether it is one of the keys. Compares with every one, in a time that tells nothing."""
        given = _sha256(key)
        matches = [hmac.compare_digest(given, known.sha256) for known in self.all()]
        return any(matches)

    def add(self, name: str) -> str:
        """Makes a key and returns it: nobody can show it again. ConfigError when the name is taken or unsafe."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"key name: got {name[:80]!r}, allowed 1 to 64 of A-Z a-z 0-9 . _ -")
        key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        with self._changing():
            if any(known.name == name for known in self.all()):
                raise ConfigError(f"key {name!r}: exists already; choose another name, or remove it first")
            self._write((*self.all(), Key(name, time.time(), key[-4:], _sha256(key))))
        return key

    def remove(self, name: str) -> None:
        """It opens nothing any more, from the next request on. ConfigError when there is none."""
        with self._changing():
            left = [known for known in self.all() if known.name != name]
            if len(left) == len(self.all()):
                names = ", ".join(known.name for known in left) or "none"
                raise ConfigError(f"key {name!r}: unknown; known: {names}")
            self._write(left)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write(self, keys: tuple[Key, ...] | list[Key]) -> None:
        """Whole or not at all, and for nobody else to read."""
        partial = self.path.with_suffix(f".{os.getpid()}.tmp")
        values = [asdict(key) for key in sorted(keys, key=lambda key: key.name)]
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps(values, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_guarded(host: str, keys: KeyFile) -> None:
    """ConfigError when the network would reach a server that knows no key."""
    if not is_loopback(host) and not keys.all():
        raise ConfigError(
            f"serve.host: {host} lets the network in, and there is no key yet; make one with "
            f"`streamkv keys add NAME --store {keys.path.parent}`, or stay on serve.host=127.0.0.1"
        )


def key_from_environment() -> str:
    """The key that this user's commands send; empty when there is none."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"{KEY_VARIABLE}: not a key; give what `streamkv keys add` printed")
    return key
