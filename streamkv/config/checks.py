"""What is wrong with settings, said all at once."""

from __future__ import annotations

from collections.abc import Iterable

from streamkv.errors import ConfigError


def check(problems: Iterable[str]) -> None:
    found = [p for p in problems if p]
    if found:
        raise ConfigError("; ".join(found))


def need(ok: bool, name: str, got: object, allowed: str) -> str:
    return "" if ok else f"{name}: got {got!r}, allowed {allowed}"
