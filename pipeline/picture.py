"""An inspection as a PNG: panels over one time axis. Drawn by matplotlib without a display or global state.

    pictures       one a segment, as many as fit side by side, each joined to its segment
    segments       by turns dark and light
    similarity     of neighbouring frames, with the threshold
    kept share     a row a layer, a column a segment (or a bin)
    blocks read    a row a layer; for a question

Colours: the categories are of Okabe and Ito's set, the scales grow darker all the way, so that neither needs
hue to be told apart.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MultipleLocator

from pipeline.sketch import evidence_text
from pipeline.terminal import clock
from streamkv.inspection import (
    MAX_THUMBNAILS,
    BlockView,
    FrameTrack,
    Inspection,
    QuestionView,
    SegmentView,
    Thumbnail,
)

WIDTH_IN, DPI = 13.0, 110
MARGIN_LEFT_IN, MARGIN_RIGHT_IN = 0.95, 1.15
PLOT_IN = WIDTH_IN - MARGIN_LEFT_IN - MARGIN_RIGHT_IN
MAX_COLUMNS = 600
"""Columns of a heat map: about two pixels each."""
THUMBNAIL_GAP_IN = 0.08
MAX_FRAMES = 1000
"""Beyond these, similarity is drawn as the range in each of as many stretches."""
MAX_LINES = 150
"""Segments whose beginnings are drawn as lines; more would be a grey area."""
MIN_BLOCK_IN = 0.035
"""A block that would be drawn narrower is widened to this, so that it is seen."""
TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
MAX_TICKS = 12

INK, FAINT, GRID = "#22303C", "#66727C", "#D9DEE3"
BLUE, PALE_BLUE, VERMILION = "#0072B2", "#8DBEDC", "#D55E00"
SEGMENT_COLOURS = ("#5A7A94", "#B9CAD7")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a `$` in a question is a `$`
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True)
class _Panel:
    """A strip of the figure, from the top: room for its title, then its own height."""

    name: str
    title_in: float
    height_in: float


def write_picture(inspection: Inspection, path: Path) -> None:
    """Whole or not at all; a file of that name is replaced. There must be a segment."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with mpl.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a letter that the font lacks is a box
            draw(inspection).savefig(partial, format="png", dpi=DPI, pil_kwargs={"optimize": True})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def draw(inspection: Inspection) -> Figure:
    """The figure; its axes are labelled by panel: `segments`, `similarity`, `kept`, `read`, `picture`."""
    inspection = _widened(inspection.binned(MAX_COLUMNS))
    with mpl.rc_context(STYLE):
        return _Drawing(inspection).figure


class _Drawing:
    """Lays the panels out and fills them."""

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection
        self._start_s, self._end_s = inspection.segments[0].start_s, inspection.as_of_s
        self._headings = list(_headings(inspection))
        panels = list(self._panels())
        head_in = 0.62 + 0.22 * len(self._headings)
        foot_in = 0.55 + 0.17 * len(inspection.notes)
        self._height_in = head_in + sum(p.title_in + p.height_in for p in panels) + foot_in
        self.figure = Figure(figsize=(WIDTH_IN, self._height_in), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self._axes: dict[str, Axes] = {}
        top_in = self._height_in - head_in
        for panel in panels:
            top_in -= panel.title_in + panel.height_in
            self._axes[panel.name] = self._strip(panel.name, top_in, panel.height_in)
        self._write_head()
        self._fill()
        self._write_foot(foot_in)

    # ---- layout

    def _panels(self) -> Iterator[_Panel]:
        inspection = self.inspection
        rows_in = min(3.6, max(0.9, 0.21 * inspection.num_layers))
        if inspection.thumbnails:
            yield _Panel("pictures", 0.0, self._picture_height_in() + 0.3)
        yield _Panel("segments", 0.0 if inspection.thumbnails else 0.2, 0.3)
        if inspection.frames is not None:
            yield _Panel("similarity", 0.45, 1.25)
        yield _Panel("kept", 0.45, rows_in)
        if inspection.question is not None:
            yield _Panel("read", 0.78, rows_in * 1.25)

    def _picture_width_in(self) -> float:
        return PLOT_IN / MAX_THUMBNAILS - THUMBNAIL_GAP_IN

    def _picture_height_in(self) -> float:
        """Of the tallest picture, all drawn of one width; portraits are capped."""
        tallest = max(t.rgb.shape[0] / t.rgb.shape[1] for t in self.inspection.thumbnails)
        return float(min(1.6, self._picture_width_in() * tallest))

    def _strip(self, name: str, bottom_in: float, height_in: float) -> Axes:
        axes = self._axes_at(name, MARGIN_LEFT_IN, bottom_in, PLOT_IN, height_in)
        axes.set_xlim(self._start_s, self._end_s)
        step = next((t for t in TICKS_S if (self._end_s - self._start_s) / t <= MAX_TICKS), TICKS_S[-1])
        axes.xaxis.set_major_locator(MultipleLocator(step))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda s, _: clock(s)))
        axes.tick_params(length=0, labelbottom=False)
        return axes

    def _axes_at(
        self, name: str, left_in: float, bottom_in: float, width_in: float, height_in: float
    ) -> Axes:
        figure_in = (WIDTH_IN, self._height_in, WIDTH_IN, self._height_in)
        box = [v / of for v, of in zip((left_in, bottom_in, width_in, height_in), figure_in, strict=True)]
        return self.figure.add_axes((box[0], box[1], box[2], box[3]), label=name)

    # ---- words

    def _write_head(self) -> None:
        top = 1 - 0.32 / self._height_in
        left = MARGIN_LEFT_IN / WIDTH_IN
        self.figure.text(left, top, self.inspection.stream_id, fontsize=16, fontweight="bold", va="center")
        for i, (text, weight, colour) in enumerate(self._headings):
            y = 1 - (0.62 + 0.22 * i) / self._height_in
            self.figure.text(left, y, text, fontsize=9.5, fontweight=weight, color=colour, va="center")

    def _write_foot(self, foot_in: float) -> None:
        for i, note in enumerate(self.inspection.notes):
            y = (foot_in - 0.5 - 0.17 * i) / self._height_in
            self.figure.text(
                MARGIN_LEFT_IN / WIDTH_IN, y, f"note: {note}", fontsize=8, color=FAINT, va="center"
            )

    # ---- panels

    def _fill(self) -> None:
        inspection, axes = self.inspection, self._axes
        self._draw_segments(axes["segments"])
        if inspection.thumbnails:
            self._draw_pictures(axes["pictures"], axes["segments"])
        if inspection.frames is not None:
            self._draw_similarity(axes["similarity"], inspection.frames)
        self._draw_kept(axes["kept"])
        if inspection.question is not None:
            self._draw_read(axes["read"], inspection.question)
        last = list(axes.values())[-1]
        last.tick_params(labelbottom=True)
        last.set_xlabel("stream time (minutes:seconds)" if self._end_s < 3600 else "stream time (h:mm:ss)")

    def _draw_segments(self, axes: Axes) -> None:
        for i, segment in enumerate(self.inspection.segments):
            length_s = segment.end_s - segment.start_s
            axes.add_patch(
                Rectangle((segment.start_s, 0), length_s, 1, facecolor=SEGMENT_COLOURS[i % 2], linewidth=0)
            )
            name = str(segment.first_no)
            if segment.num_segments == 1 and self._inches(length_s) > 0.09 * len(name) + 0.06:
                colour = "white" if i % 2 == 0 else INK
                middle_s = (segment.start_s + segment.end_s) / 2
                axes.text(middle_s, 0.48, name, ha="center", va="center", fontsize=8, color=colour)
        for gap in self.inspection.gaps:
            length_s = max(gap.end_s - gap.start_s, self._seconds(MIN_BLOCK_IN))
            axes.add_patch(
                Rectangle((gap.start_s, 0), length_s, 1, facecolor="white", edgecolor=INK, hatch="////", lw=0)
            )
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.set_ylabel("segments", rotation=0, ha="right", va="center")
        for side in axes.spines.values():
            side.set_visible(False)
        if self.inspection.gaps:
            missing = Patch(facecolor="white", edgecolor=INK, hatch="////", lw=0, label="footage\nmissing")
            axes.legend(handles=[missing], loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2)

    def _draw_pictures(self, strip: Axes, segments: Axes) -> None:
        """Each above its segment as nearly as its neighbours let it, and joined to it by a line."""
        strip.set_axis_off()
        width_in, height_in = self._picture_width_in(), self._picture_height_in()
        spans = {s.first_no: s for s in self.inspection.segments}
        shown = [(t, _middle_of(t, spans)) for t in self.inspection.thumbnails]
        middles_in = [self._inches(middle_s - self._start_s) for _, middle_s in shown]
        bottom_in = strip.get_position().y0 * self._height_in + 0.3
        lefts_in = spread(middles_in, width_in, THUMBNAIL_GAP_IN, PLOT_IN)
        for (thumbnail, middle_s), left_in in zip(shown, lefts_in, strict=True):
            picture = self._axes_at("picture", MARGIN_LEFT_IN + left_in, bottom_in, width_in, height_in)
            picture.imshow(thumbnail.rgb, interpolation="lanczos", aspect="equal")
            picture.set_anchor("S")
            picture.set_xticks([])
            picture.set_yticks([])
            for side in picture.spines.values():
                side.set_visible(True)
                side.set_color(FAINT)
                side.set_linewidth(0.6)
            line = ConnectionPatch(
                xyA=(0.5, 0.0),
                coordsA=picture.transAxes,
                xyB=(middle_s, 1.0),
                coordsB=segments.transData,
                color=FAINT,
                lw=0.8,
            )
            self.figure.add_artist(line)

    def _draw_similarity(self, axes: Axes, track: FrameTrack) -> None:
        middles = np.array([(a + b) / 2 for a, b in track.spans_s])
        values = np.array(track.similarities)
        starts = self._mark_starts(axes)
        is_range = len(values) > MAX_FRAMES
        if is_range:
            at_s, low, high = _ranges(middles, values, MAX_FRAMES)
            axes.fill_between(at_s, low, high, color=PALE_BLUE, lw=0)
            handles: list[Any] = [
                Patch(color=PALE_BLUE, label="similarity to the frame before, lowest to highest")
            ]
        else:
            axes.plot(middles, values, color=BLUE, lw=1.2, marker=".", ms=4)
            handles = [Line2D([], [], color=BLUE, lw=1.3, label="similarity to the frame before")]
        if track.theta is not None:
            dashed: dict[str, Any] = {"color": VERMILION, "lw": 1.1, "ls": (0, (5, 3))}
            axes.axhline(track.theta, **dashed)
            handles.append(Line2D([], [], **dashed, label=f"threshold {track.theta:g}"))
            if not is_range:
                is_low = values <= track.theta
                mark: dict[str, Any] = {"color": VERMILION, "ls": "", "marker": "v", "ms": 6}
                axes.plot(middles[is_low], values[is_low], **mark)
                handles.append(Line2D([], [], **mark, label="at or below it: a segment may close"))
        self._legend(axes, [*handles, *starts])
        axes.set_title(f"Frame similarity ({track.similarity})", pad=6)
        axes.set_ylim(*_padded(values, track))
        axes.grid(axis="y", color=GRID, lw=0.5)
        axes.set_axisbelow(True)

    def _draw_kept(self, axes: Axes) -> None:
        edges_s, shares_LC = _columns(self.inspection.segments)
        mesh = axes.pcolormesh(
            edges_s, np.arange(self.inspection.num_layers + 1) - 0.5, shares_LC,
            cmap=_kept_colours(), norm=Normalize(0, 1), edgecolors="white",
            linewidth=0.4 if shares_LC.shape[1] <= 150 else 0,
        )  # fmt: skip
        what = "segment's" if self.inspection.num_segments == len(self.inspection.segments) else "bin's"
        axes.set_title(f"Kept share of each {what} frames, by layer", pad=6)
        self._finish_layers(axes)
        self._scale(axes, mesh, "kept share")

    def _draw_read(self, axes: Axes, question: QuestionView) -> None:
        top = max((b.share for b in question.blocks), default=1.0) or 1.0
        norm, colours = Normalize(0, top), _read_colours()
        blocks = sorted(question.blocks, key=lambda b: b.share)  # the heaviest on top
        marks = PatchCollection([self._mark(b) for b in blocks], cmap=colours, norm=norm, lw=0)
        marks.set_array(np.array([b.share for b in blocks]))
        axes.add_collection(marks)
        axes.set_title("Blocks read for the question, by layer", pad=28)
        self._finish_layers(axes)
        axes.hlines(
            np.arange(1, self.inspection.num_layers) - 0.5, self._start_s, self._end_s, color=GRID, lw=0.5, zorder=0
        )  # fmt: skip
        self._mark_starts(axes)
        self._mark_evidence(axes, question)
        dark = colours(0.75)
        dark_frame = Line2D(
            [], [], color=dark, ls="", marker="s", ms=7, label="a frame (upper part of a row)"
        )
        dark_summary = Line2D([], [], color=dark, lw=2.6, label="a segment's summary (lower part)")
        bracket = Line2D(
            [], [], color=INK, lw=2.2, label="a segment that the answer rests on, and its weight"
        )
        self._legend(axes, [dark_frame, dark_summary, bracket], above_in=0.28)
        self._scale(axes, marks, "share of attention")

    def _mark(self, block: BlockView) -> Rectangle:
        """A frame takes the upper part of its layer's row, a summary the lower."""
        width_s = max(block.end_s - block.start_s, self._seconds(MIN_BLOCK_IN))
        start_s = (block.start_s + block.end_s - width_s) / 2
        bottom, height = (0.2, 0.22) if block.is_summary else (-0.42, 0.56)
        return Rectangle((start_s, block.layer + bottom), width_s, height)

    def _mark_evidence(self, axes: Axes, question: QuestionView) -> None:
        """A bracket over each segment that the answer rests on, with its weight; the lighter give way."""
        taken: list[float] = []
        over, above = (1 + self._share_of(axes, inches) for inches in (0.06, 0.1))
        for e in question.evidence:
            middle_s = (e.start_s + e.end_s) / 2
            # a little shorter than the segment, so that neighbours stay apart
            half_s = max((e.end_s - e.start_s) / 2 - self._seconds(0.025), self._seconds(MIN_BLOCK_IN))
            axes.plot(
                [middle_s - half_s, middle_s + half_s], [over, over], transform=axes.get_xaxis_transform(),
                clip_on=False, color=INK, lw=2.2, solid_capstyle="butt",
            )  # fmt: skip
            at_in = self._inches(middle_s)
            if all(abs(at_in - other) > 0.32 for other in taken):
                axes.text(
                    middle_s, above, f"{e.weight:.2f}", transform=axes.get_xaxis_transform(), ha="center",
                    va="bottom", fontsize=8,
                )  # fmt: skip
                taken.append(at_in)

    def _mark_starts(self, axes: Axes) -> list[Line2D]:
        """A line where each segment begins, and its key; neither when they would be too many."""
        if len(self.inspection.segments) > MAX_LINES:
            return []
        starts = [s.start_s for s in self.inspection.segments[1:]]
        axes.vlines(starts, 0, 1, color=GRID, lw=0.7, zorder=0, transform=axes.get_xaxis_transform())
        return [Line2D([], [], color=GRID, lw=1.2, label="a segment begins")]

    def _finish_layers(self, axes: Axes) -> None:
        """Layer 0 on top, a tick for each or every few."""
        num_layers = self.inspection.num_layers
        axes.set_ylim(num_layers - 0.5, -0.5)
        axes.set_yticks(range(0, num_layers, 1 if num_layers <= 12 else 4))
        axes.set_ylabel("layer")
        axes.grid(False)

    def _scale(self, axes: Axes, mappable: Any, label: str) -> None:
        box = axes.get_position()
        bottom_in, height_in = box.y0 * self._height_in, box.height * self._height_in
        bar = self._axes_at("scale", WIDTH_IN - MARGIN_RIGHT_IN + 0.15, bottom_in, 0.13, height_in)
        self.figure.colorbar(mappable, cax=bar)
        bar.set_ylabel(label)
        bar.tick_params(length=2)
        for side in bar.spines.values():
            side.set_visible(False)

    def _legend(self, axes: Axes, handles: Sequence[Any], *, above_in: float = 0.0) -> None:
        """One line on the right, above the panel."""
        axes.legend(
            handles=list(handles), loc="lower right", bbox_to_anchor=(1.0, 1 + self._share_of(axes, above_in)),
            ncols=len(handles), borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
        )  # fmt: skip

    def _share_of(self, axes: Axes, inches: float) -> float:
        """Inches as a share of the panel's height."""
        return inches / (axes.get_position().height * self._height_in)

    def _inches(self, seconds: float) -> float:
        return seconds / (self._end_s - self._start_s) * PLOT_IN

    def _seconds(self, inches: float) -> float:
        return inches / PLOT_IN * (self._end_s - self._start_s)


def _headings(inspection: Inspection) -> Iterator[tuple[str, str, str]]:
    """Lines under the stream's name: text, weight, colour."""
    shares = inspection.layer_shares()
    facts = (
        f"{clock(inspection.as_of_s)} stored",
        f"{inspection.num_segments:,} segments",
        f"{inspection.num_frames:,} frames, of which a layer keeps {100 * sum(shares) / len(shares):.0f} % on average",
        f"{inspection.num_layers} layers",
        inspection.state,
    )
    yield "  ·  ".join(facts), "normal", FAINT
    question = inspection.question
    if question is not None:
        yield (
            f"{_cut(question.question, 110)}   →   {_cut(question.answer, 60) or '(no answer)'}",
            "bold",
            INK,
        )
        if question.evidence:
            yield f"rests on  {evidence_text(question, 5)}   (start-end, weight)", "normal", FAINT


def _widened(inspection: Inspection) -> Inspection:
    """With a note if blocks are too short to be drawn to scale."""
    if inspection.question is None or not inspection.segments:
        return inspection
    least_s = MIN_BLOCK_IN / PLOT_IN * (inspection.as_of_s - inspection.segments[0].start_s)
    if all(b.end_s - b.start_s >= least_s for b in inspection.question.blocks):
        return inspection
    note = f"blocks shorter than {least_s:.0f} s are drawn that wide, so that they are seen"
    return replace(inspection, notes=(*inspection.notes, note))


def _cut(text: str, limit: int) -> str:
    """One line of at most `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def spread(middles: Sequence[float], width: float, gap: float, total: float) -> list[float]:
    """Left edges of boxes that lie near their middles, in order, `gap` apart at least, within 0 to total.

    There must be room: n * (width + gap) <= total + gap.
    """
    lefts: list[float] = []
    for middle in middles:
        lefts.append(max(middle - width / 2, lefts[-1] + width + gap if lefts else 0.0))
    limit = total - width
    for i in reversed(range(len(lefts))):
        lefts[i] = min(lefts[i], limit)
        limit = lefts[i] - width - gap
    return lefts


def _middle_of(thumbnail: Thumbnail, spans: Mapping[int, SegmentView]) -> float:
    """Where its segment is; its own time when that segment is in a bin."""
    segment = spans.get(thumbnail.segment_no)
    if segment is None or segment.num_segments > 1:
        return thumbnail.time_s
    return (segment.start_s + segment.end_s) / 2


def _columns(segments: Sequence[SegmentView]) -> tuple[np.ndarray, np.ndarray]:
    """Edges (C + 1,) and kept shares (L, C) of a heat map; NaN between segments that do not touch."""
    edges_s, columns = [segments[0].start_s], []
    for segment in segments:
        if segment.start_s > edges_s[-1]:
            edges_s.append(segment.start_s)
            columns.append([np.nan] * len(segment.kept_share_L))
        edges_s.append(segment.end_s)
        columns.append(list(segment.kept_share_L))
    return np.array(edges_s), np.array(columns).T


def _padded(values: np.ndarray, track: FrameTrack) -> tuple[float, float]:
    """Limits around all values and the threshold."""
    seen = [*values[np.isfinite(values)].tolist(), *([track.theta] if track.theta is not None else [])]
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    pad = max(0.08 * (high - low), 0.005)
    return low - pad, high + pad


def _ranges(at_s: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle, lowest and highest of `count` runs of neighbours; NaN where a run has nothing finite."""
    runs = np.array_split(np.arange(len(values)), count)
    seen = [values[run][np.isfinite(values[run])] for run in runs]
    low, high = (np.array([f(v) if len(v) else np.nan for v in seen]) for f in (np.min, np.max))
    return np.array([at_s[run].mean() for run in runs]), low, high


def _kept_colours() -> Colormap:
    """Light to dark blue."""
    return LinearSegmentedColormap.from_list("kept", ["#F2F7FB", "#A9CBE3", "#3E8FC2", "#0B4F7D", "#06263F"])


def _read_colours() -> Colormap:
    """Light to dark orange; the lightest still shows on white."""
    return LinearSegmentedColormap.from_list("read", ["#FBE3B8", "#F2B04A", "#DD7215", "#9C3A0A", "#4E1704"])
