"""An inspection in the terminal: one character is a stretch of time, one line a layer.

segments     ████████▒▒▒▒▒▒▒▒▒▒████████▒▒▒▒      a change of shade is a new segment
similarity   ▆▇▇█▁▇▇█▇▇▇▆▇█▂▇▇▇█▁▇▇█▇▇          lowest in each character, against the threshold
layer 0      ▒▒▒▒▒▒▒▒░░░░░░▓▓▓▓▓▓▓▓             kept share
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pipeline.terminal import clock
from streamkv.inspection import FrameTrack, Inspection, QuestionView, SegmentView

LABEL, TAIL = 12, 6
"""Columns before and after the time line."""
CHART_ROWS = 4
SHADES = "░▒▓█"
EIGHTHS = " ▁▂▃▄▅▆▇█"
SEGMENT_STYLES = ("blue", "cyan")
KEPT, READ, LOW, MISSING = "green", "yellow", "red", "dim"

Span = tuple[float, float]


class Sketch:
    """Prints within the console's width; an empty stream has its heading alone."""

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        num_cells = max(8, options.max_width - LABEL - TAIL)
        drawn = self.inspection.binned(num_cells)
        yield from _heading(drawn)
        if drawn.segments:
            yield from _Lines(drawn, num_cells).all()
        for note in drawn.notes:
            yield Text(f"note: {note}", style="dim")


def _heading(inspection: Inspection) -> Iterator[Text]:
    shares = inspection.layer_shares()
    kept = f"   {100 * sum(shares) / len(shares):.0f} % of frames kept" if shares else "   nothing stored yet"
    yield Text.assemble(
        (inspection.stream_id, "bold"),
        f"   {clock(inspection.as_of_s)}   {_count(inspection.num_segments, 'segment')}",
        f"   {_count(inspection.num_frames, 'frame')}{kept}   {inspection.state}",
    )
    yield Text(inspection.source, style="dim")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class _Lines:
    """The lines over one time axis of `num_cells` characters."""

    def __init__(self, inspection: Inspection, num_cells: int) -> None:
        self._inspection = inspection
        self._num_cells = num_cells
        self._start_s = inspection.segments[0].start_s
        self._cell_s = (inspection.as_of_s - self._start_s) / num_cells

    def all(self) -> Iterator[Text]:
        yield Text()
        yield self._line(_cell_label(self._cell_s), self._clock_cells(), style="dim")
        yield self._line("segments", self._segment_cells(self._inspection.segments))
        if self._inspection.frames is not None:
            yield Text()
            yield from self._similarity(self._inspection.frames)
        yield Text()
        yield from self._kept(self._inspection.segments)
        if self._inspection.question is not None:
            yield Text()
            yield from self._question(self._inspection.question)

    def _line(self, label: str, cells: Iterable[Text], tail: str = "", *, style: str = "") -> Text:
        line = Text(f"{label:<{LABEL}}", style=style, no_wrap=True)
        for cell in cells:
            line.append_text(cell)
        return line.append(f" {tail:>{TAIL - 1}}" if tail else "")

    def _clock_cells(self) -> list[Text]:
        """A time at its cell, as many as leave a gap between them."""
        cells = [" "] * self._num_cells
        width = len(clock(self._inspection.as_of_s)) + 3
        for at in range(0, self._num_cells - width + 1, max(width, self._num_cells // 6)):
            text = clock(self._start_s + at * self._cell_s)
            cells[at : at + len(text)] = text
        return [Text(cell) for cell in cells]

    def _segment_cells(self, segments: Sequence[SegmentView]) -> list[Text]:
        """The segment at the middle of each cell, its shade by turns; a dot where there is none."""
        cells = []
        for cell in range(self._num_cells):
            middle_s = self._start_s + (cell + 0.5) * self._cell_s
            at = next((i for i, s in enumerate(segments) if s.start_s <= middle_s < s.end_s), None)
            turn = 0 if at is None else at % 2
            cells.append(
                Text("·", MISSING) if at is None else Text(SHADES[3 - 2 * turn], SEGMENT_STYLES[turn])
            )
        return cells

    def _similarity(self, track: FrameTrack) -> Iterator[Text]:
        lows = self._raster(track.spans_s, track.similarities, min)
        seen = [v for v in lows if math.isfinite(v)]
        if not seen:
            return
        theta = math.nan if track.theta is None else track.theta
        bottom = min([*seen, *([theta] if math.isfinite(theta) else [])])
        top = max(1.0, *seen) if track.similarity == "cosine" else max(seen)
        bottom -= max(0.08 * (top - bottom), 1e-6)  # so that the lowest is still seen
        step = (top - bottom) / CHART_ROWS
        for row in range(CHART_ROWS - 1, -1, -1):
            floor = bottom + row * step
            has_theta = floor <= theta < floor + step
            cells = [_bar((v - floor) / step, v <= theta, has_theta) for v in lows]
            label = "similarity" if row == CHART_ROWS - 1 else ""
            yield self._line(
                label, cells, f"{floor + step:.2f}" if row == CHART_ROWS - 1 else f"{floor:.2f}" * (not row)
            )
        yield Text(" " * LABEL + _similarity_legend(track), style="dim")

    def _kept(self, segments: Sequence[SegmentView]) -> Iterator[Text]:
        spans = [(s.start_s, s.end_s) for s in segments]
        means = self._inspection.layer_shares()
        yield self._caption("kept share of each segment's frames", KEPT, 1.0, "mean")
        for layer, mean in enumerate(means):
            shares = self._raster(spans, [s.kept_share_L[layer] for s in segments], _mean)
            yield self._line(f"layer {layer}", [_shade(v, KEPT) for v in shares], f"{mean:.2f}")

    def _question(self, question: QuestionView) -> Iterator[Text]:
        yield Text.assemble(
            (question.question, "bold"), "  ", (question.answer or "(no answer)", "bold green")
        )
        yield Text("rests on " + evidence_text(question, 5) if question.evidence else "rests on nothing")
        largest = max((b.share for b in question.blocks), default=0.0)
        yield self._caption("blocks read, by attention on them", READ, largest, "count")
        for layer in range(self._inspection.num_layers):
            blocks = [b for b in question.blocks if b.layer == layer]
            shares = self._raster([(b.start_s, b.end_s) for b in blocks], [b.share for b in blocks], max)
            cells = [_shade(v / largest if largest else v, READ) for v in shares]
            yield self._line(f"layer {layer}", cells, str(len(blocks)))

    def _caption(self, what: str, style: str, top: float, tail: str) -> Text:
        legend = Text.assemble(f"{what}   0 ", (SHADES, style), f" {top:.2g}")
        return self._line("", [legend, Text(" " * max(0, self._num_cells - len(legend)))], tail, style="dim")

    def _raster(
        self, spans: Sequence[Span], values: Sequence[float], reduce: Callable[[list[float]], float]
    ) -> list[float]:
        """Each cell's value, of all that it shares some time with; NaN where that is nothing."""
        found: list[list[float]] = [[] for _ in range(self._num_cells)]
        for (start_s, end_s), value in zip(spans, values, strict=True):
            first = math.floor((start_s - self._start_s) / self._cell_s + 1e-6)
            last = math.ceil((end_s - self._start_s) / self._cell_s - 1e-6)
            for cell in range(max(0, first), min(max(last, first + 1), self._num_cells)):
                if math.isfinite(value):
                    found[cell].append(value)
        return [reduce(some) if some else math.nan for some in found]


def evidence_text(question: QuestionView, count: int) -> str:
    """`0:20-0:30 (0.66), 0:52-1:00 (0.12)`: the heaviest segments."""
    return ", ".join(
        f"{clock(e.start_s)}-{clock(e.end_s)} ({e.weight:.2f})" for e in question.evidence[:count]
    )


def _cell_label(seconds: float) -> str:
    return f"cell {seconds:.0f} s" if seconds >= 10 else f"cell {seconds:.1f} s"


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _shade(share: float, style: str) -> Text:
    """Blank for NaN, where nothing is; the lightest shade for whatever is there, however little."""
    if not math.isfinite(share):
        return Text(" ")
    return Text(SHADES[min(len(SHADES) - 1, max(0, int(share * len(SHADES))))], style)


def _bar(fill: float, is_low: bool, has_theta: bool) -> Text:
    """One character of a column, full at 1; the threshold shows through where the column ends below it."""
    eighths = 0 if not math.isfinite(fill) else min(8, max(0, round(fill * 8)))
    if not eighths:
        return Text("╌" if has_theta else " ", LOW if has_theta else "")
    return Text(EIGHTHS[eighths], LOW if is_low else "")


def _similarity_legend(track: FrameTrack) -> str:
    what = f"{track.similarity} to the frame before, lowest in a cell"
    return what if track.theta is None else f"{what}; ╌ threshold {track.theta:g}"
