"""Figures with their names, units and spread, and how they are printed."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.machine import machine, versions

__all__ = ["Figure", "machine", "report", "table", "versions"]


@dataclass(frozen=True)
class Figure:
    """One named value; its spread over the runs."""

    name: str
    unit: str
    runs: tuple[float, ...]
    note: str = ""

    @property
    def value(self) -> float:
        return statistics.median(self.runs)

    def as_json(self) -> dict[str, Any]:
        return {
            "value": round(self.value, 4),
            "unit": self.unit,
            "n": len(self.runs),
            "spread": [round(min(self.runs), 4), round(max(self.runs), 4)],
        }


def report(figures: Iterable[Figure], about: dict[str, Any], *, as_json: bool, **more: Any) -> None:
    """Prints one JSON object, or a line for each figure after the machine."""
    figures = list(figures)
    if as_json:
        body = {
            "machine": about,
            "versions": versions(),
            "figures": {f.name: f.as_json() for f in figures},
            **more,
        }
        sys.stdout.write(json.dumps(body, indent=1) + "\n")
        return
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    print(", ".join(f"{k} {v}" for k, v in versions().items()))
    for figure in figures:
        low, high = min(figure.runs), max(figure.runs)
        span = f"{low:.3g} to {high:.3g} in {len(figure.runs)} runs" if len(figure.runs) > 1 else ""
        print(f"{figure.name:28} {figure.value:10.3f} {figure.unit:16} {span}  {figure.note}".rstrip())


def table(title: str, rows: Sequence[tuple[str, float, float]], heads: tuple[str, str]) -> None:
    """Two columns of numbers beside each name."""
    print(f"\n{title:28} {heads[0]:>10} {heads[1]:>10}")
    for name, left, right in rows:
        print(f"{name:28} {left:10.2f} {right:10.2f}")
