"""Annotation files as checked records: what is malformed is named by file, record, field, and what it may be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamkv.errors import SuiteError

CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")
SHOWN = 80
"""Characters of a wrong value that an error shows."""


@dataclass(frozen=True)
class Record:
    """One JSON object of an annotation file."""

    file: Path
    where: str
    """Which one, counted from 1: `record 3, question 2`."""
    fields: Mapping[str, Any]

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def wrong(self, name: str, allowed: str) -> SuiteError:
        """The error for a field: what it holds and what it may hold."""
        got = repr(self.fields[name])[:SHOWN] if name in self.fields else "nothing"
        return SuiteError(
            f"{self.file}: {self.where}, field {name!r}: got {got}, allowed: {allowed}; "
            "download the file again, or mend the record"
        )

    def text(self, name: str) -> str:
        """A text that is not blank, or a number's."""
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise self.wrong(name, "a text")
        return str(value).strip()

    def maybe_text(self, name: str, default: str) -> str:
        return default if self.fields.get(name) is None else self.text(name)

    def whole(self, name: str, allowed: range) -> int:
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
            raise self.wrong(name, f"a whole number from {allowed.start} to {allowed.stop - 1}")
        return value

    def seconds(self, name: str) -> float:
        """Seconds, whole or not, or a clock: `HH:MM:SS` or `MM:SS`."""
        seconds = to_seconds(self.fields.get(name))
        if seconds is None:
            raise self.wrong(name, 'seconds from 0, or "HH:MM:SS"')
        return seconds

    def seconds_list(self, name: str) -> list[float]:
        values = self.fields.get(name)
        seconds = [to_seconds(v) for v in values] if isinstance(values, list) else [None]
        if any(s is None for s in seconds):
            raise self.wrong(name, "a list of seconds")
        return [s for s in seconds if s is not None]

    def texts(self, name: str, at_most: int) -> list[str]:
        """From two texts on."""
        values = self.fields.get(name)
        if (
            not isinstance(values, list)
            or not 2 <= len(values) <= at_most
            or not all(isinstance(v, str | int | float) for v in values)
        ):
            raise self.wrong(name, f"a list of 2 to {at_most} texts")
        return [str(v).strip() for v in values]

    def records(self, name: str, what: str) -> list[Record]:
        """The objects of a list, each of them a record inside this one."""
        values = self.fields.get(name)
        if not isinstance(values, list) or not values:
            raise self.wrong(name, "a list of objects, not empty")
        return [_record(self.file, f"{self.where}, {what} {k}", value) for k, value in enumerate(values, 1)]


def to_seconds(value: object) -> float | None:
    """Seconds of a number or a clock; None of anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if 0 <= value < float("inf") else None
    clock = CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if clock is None:
        return None
    hours, minutes, seconds = clock.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def read_records(file: Path) -> list[Record]:
    """The objects of a JSON list; lists inside it are opened, and counted as if they were not there.

    Raises:
        SuiteError: no such file, not JSON, or not a list of objects.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SuiteError(
            f"annotations: {file} cannot be read ({exc.strerror}); give the published file, see docs/benchmarks.md"
        ) from exc
    except ValueError as exc:
        raise SuiteError(f"{file}: not JSON ({exc}); download the file again") from exc
    if not isinstance(data, list) or not data:
        raise SuiteError(
            f"{file}: got {repr(data)[:SHOWN]}, allowed: a list of records, not empty; see docs/benchmarks.md"
        )
    flat = [item for entry in data for item in (entry if isinstance(entry, list) else [entry])]
    return [_record(file, f"record {k}", value) for k, value in enumerate(flat, 1)]


def _record(file: Path, where: str, value: object) -> Record:
    if not isinstance(value, dict):
        raise SuiteError(
            f"{file}: {where}: got {repr(value)[:SHOWN]}, allowed: an object with fields; download the file again"
        )
    return Record(file, where, value)
