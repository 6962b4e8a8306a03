"""Answers to a table: accuracy with its interval, by kind and by age; bytes an hour; time to first token."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamkv.evaluation.runner import AnswerRow

AGES_S = ((60.0, "<1 min"), (600.0, "1-10 min"), (3600.0, "10-60 min"), (math.inf, ">1 h"))
"""How long before the question the true moment ended: upper bound, and its name."""
Z_95 = 1.959964
MOST_KINDS = 20
"""Columns by kind that a Markdown table may have; answers.parquet has them all."""


@dataclass(frozen=True)
class SummaryRow:
    """One variant over one suite."""

    suite: str
    preset: str
    seed: int
    questions: int
    accuracy: float | None  # of the answers that a rule can score; None: all are for a judge
    ci95: tuple[float, float] | None
    evidence_top3: float | None
    bytes_per_hour: float
    ttft_ms_p50: float
    blocks_per_layer: float
    by_kind: dict[str, tuple[float, int]]  # accuracy and number of questions
    by_age: dict[str, tuple[float, int]]
    unanswered: int  # nothing was shown, or the video is missing: they count as wrong
    for_a_judge: int

    def as_json(self) -> dict[str, Any]:
        """Plain values; numbers rounded to what they are worth."""
        row = asdict(self)
        row["bytes_per_hour"] = round(self.bytes_per_hour)
        for name in ("accuracy", "evidence_top3"):
            row[name] = None if row[name] is None else round(row[name], 4)
        for name in ("ttft_ms_p50", "blocks_per_layer"):
            row[name] = None if math.isnan(row[name]) else round(row[name], 2)
        row["ci95"] = self.ci95 and [round(x, 4) for x in self.ci95]
        for name in ("by_kind", "by_age"):
            row[name] = {k: {"accuracy": round(a, 4), "questions": n} for k, (a, n) in row[name].items()}
        return row


def wilson(right: float, total: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927); (0, 1) of nothing."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = right / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def age_name(age_s: float) -> str:
    return next(name for bound, name in AGES_S if age_s < bound)


def summarise(rows: Iterable[AnswerRow]) -> list[SummaryRow]:
    """One row for each suite and variant, in the order in which they come."""
    groups: dict[tuple[str, str], list[AnswerRow]] = defaultdict(list)
    for row in rows:
        groups[row.suite, row.variant].append(row)
    return [_summary(suite, variant, group) for (suite, variant), group in groups.items()]


def _summary(suite: str, variant: str, rows: list[AnswerRow]) -> SummaryRow:
    scored = [r for r in rows if r.score is not None]
    right = sum(r.score or 0.0 for r in scored)
    videos = {r.video: r for r in rows}.values()
    hours = sum(r.duration_s for r in videos) / 3600
    found = [r.in_top3 for r in rows if r.in_top3 is not None]
    times = [r.first_token_ms for r in rows if not math.isnan(r.first_token_ms)]
    return SummaryRow(
        suite=suite,
        preset=variant,
        seed=rows[0].seed,
        questions=len(rows),
        accuracy=right / len(scored) if scored else None,
        ci95=wilson(right, len(scored)) if scored else None,
        evidence_top3=sum(found) / len(found) if found else None,
        bytes_per_hour=sum(r.stored_bytes for r in videos) / hours if hours else 0.0,
        ttft_ms_p50=statistics.median(times) if times else math.nan,
        blocks_per_layer=statistics.fmean(r.blocks_per_layer for r in rows),
        by_kind=_by(scored, lambda r: r.kind),
        by_age=_by([r for r in scored if r.age_s is not None], lambda r: age_name(r.age_s or 0.0)),
        unanswered=sum(bool(r.error) for r in rows),
        for_a_judge=len(rows) - len(scored),
    )


def _by(rows: Sequence[AnswerRow], key: Callable[[AnswerRow], str]) -> dict[str, tuple[float, int]]:
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        scores[key(row)].append(row.score or 0.0)
    order = [name for _, name in AGES_S]
    names = sorted(scores, key=lambda name: (order.index(name) if name in order else -1, name))
    return {name: (statistics.fmean(scores[name]), len(scores[name])) for name in names}


def to_markdown(summaries: Sequence[SummaryRow], heading: str = "") -> str:
    """A table for each suite."""
    lines = [heading, ""] if heading else []
    for suite in dict.fromkeys(s.suite for s in summaries):
        mine = [s for s in summaries if s.suite == suite]
        kinds = list(dict.fromkeys(kind for s in mine for kind in s.by_kind))
        ages = [name for _, name in AGES_S if any(name in s.by_age for s in mine)]
        kinds = kinds if len(kinds) <= MOST_KINDS else []
        heads = ["preset", "questions", "accuracy", "95%", "top-3 evidence", "MB/hour", "first token ms"]
        heads += ["blocks/layer", *ages, *kinds]
        lines += [f"### {suite}", "", "| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
        lines += ["| " + " | ".join(_cells(s, ages, kinds)) + " |" for s in mine]
        lines.append("")
    return "\n".join(lines)


def _cells(s: SummaryRow, ages: Sequence[str], kinds: Sequence[str]) -> list[str]:
    return [
        s.preset,
        str(s.questions) + (f" ({s.unanswered} unanswered)" if s.unanswered else ""),
        share(s.accuracy),
        f"{s.ci95[0]:.3f}-{s.ci95[1]:.3f}" if s.ci95 else "-",
        share(s.evidence_top3),
        f"{s.bytes_per_hour / 1e6:.2f}",
        "-" if math.isnan(s.ttft_ms_p50) else f"{s.ttft_ms_p50:.1f}",
        f"{s.blocks_per_layer:.1f}",
        *(share(s.by_age[a][0]) if a in s.by_age else "-" for a in ages),
        *(share(s.by_kind[k][0]) if k in s.by_kind else "-" for k in kinds),
    ]


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def write_answers(rows: Sequence[AnswerRow], path: Path) -> None:
    """Every answer as a row of Parquet; the file appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema()), partial)
    partial.replace(path)


def read_answers(path: Path) -> list[AnswerRow]:
    """The inverse of `write_answers`."""
    import pyarrow.parquet as pq

    return [AnswerRow(**row) for row in pq.read_table(path, partitioning=None).to_pylist()]


def write_table(summaries: Sequence[SummaryRow], path: Path) -> None:
    """The table as Parquet, one row a suite and variant."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = []
    for s in summaries:
        row = s.as_json()
        for name in ("by_kind", "by_age"):
            row[name] = [{"name": k, **v} for k, v in row[name].items()]
        flat.append(row)
    pq.write_table(pa.Table.from_pylist(flat), path)


def _schema() -> Any:
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    fields = AnswerRow.__dataclass_fields__.values()
    return pa.schema([(f.name, types[str(f.type).partition(" ")[0]]) for f in fields])


def plot(summaries: Sequence[SummaryRow], path: Path) -> None:
    """Accuracy against bytes an hour, a panel for each suite."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    suites = list(dict.fromkeys(s.suite for s in summaries))
    figure, axes = plt.subplots(
        1, len(suites), figsize=(4.6 * len(suites), 4), squeeze=False, layout="constrained", sharey=True
    )
    names = list(dict.fromkeys(s.preset for s in summaries))
    colours = {name: plt.get_cmap("tab10")(i % 10) for i, name in enumerate(names)}
    for axis, suite in zip(axes[0], suites, strict=True):
        for s in (s for s in summaries if s.suite == suite):
            if s.accuracy is None or s.ci95 is None:
                continue
            low, high = s.ci95
            error = [[max(0.0, s.accuracy - low)], [max(0.0, high - s.accuracy)]]
            axis.errorbar(
                s.bytes_per_hour / 1e6, s.accuracy, yerr=error, fmt="o", capsize=3, color=colours[s.preset]
            )
            axis.annotate(
                s.preset, (s.bytes_per_hour / 1e6, s.accuracy), xytext=(6, 4), textcoords="offset points"
            )
        axis.set(xscale="log", ylim=(0, 1.02), title=suite, xlabel="stored, MB an hour")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("accuracy, with its 95% interval")
    figure.savefig(path, dpi=120)
    plt.close(figure)
