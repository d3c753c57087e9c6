"""progress.png: the running best over the experiments, in the order of their ids.

A candidate is one point, the mean of its trials, with the mean's standard error as a bar where the noise is known.
Kept candidates are labelled with their titles where there is room, the others are grey; failures stand at the edge
where bad values are, and so do values too far off to be worth the space, as open triangles. Where candidates are
screened on another kind of GPU than the one that decides, the values of those that went no further are small and pale.
Drawn without pyplot, so nothing global changes and no display is needed.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoresearch_hpc.files import write_bytes_atomic
from autoresearch_hpc.history import History
from autoresearch_hpc.records import Direction, Verdict
from autoresearch_hpc.report.formats import count
from autoresearch_hpc.report.labels import place_labels
from autoresearch_hpc.report.tables import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KEPT, _DISCARDED, _FAILED, _TEXT, _FAINT = "#0b6e4f", "#b3b7bd", "#b23a48", "#22262b", "#e3e5e8"
_SCREENED = "#8fb8de"
_MAX_ROUND_MARKS = 20
_MANY = 150  # points: beyond, they are smaller, and only kept ones have bars


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    x: int  # the experiment's number, from 1
    round: int
    value: float | None
    error: float  # the value's standard error; 0 where it is unknown
    kept: bool
    title: str
    decided: bool = True  # on the kind of GPU that decides


def write_progress_png(history: History, path: Path, dpi: int = 160) -> None:
    """Draw the run so far. A run without a result gives a picture that says so."""
    content = io.BytesIO()
    progress_figure(history, dpi).savefig(content, format="png", metadata={"Software": None})
    write_bytes_atomic(path, content.getvalue())


def progress_figure(history: History, dpi: int = 160) -> "Figure":
    """The picture as a matplotlib figure of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = list(_points(history))
    figure = Figure(figsize=(10, 5.2), dpi=dpi, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _frame(axes, history, points)
    values = [p.value for p in points if p.value is not None]
    if not values:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no result yet", transform=axes.transAxes, ha="center", color=_TEXT)
        return figure
    low, high = _limits(points, history.direction)
    axes.set_ylim(low, high)
    axes.set_xlim(0.4, max(points[-1].x * 1.01 + 0.6, 3.0))
    _rounds(axes, points)
    _marks(axes, points, history.direction)
    figure.legend(loc="outside lower center", ncols=6, fontsize=8.5, labelcolor=_TEXT, frameon=False)
    figure.draw_without_rendering()  # fixes the layout, so that labels can be measured
    _labels(axes, points, history.direction)
    return figure


def _points(history: History) -> Iterator[_Point]:
    x = 0
    for round_ in history.rounds:
        for entry in round_.entries.values():
            if entry.result:
                x += 1
                title = drawable(one_line(entry.proposal.title)) or entry.id
                kept = entry.verdict is Verdict.KEEP and entry.value is not None
                error = history.standard_error(entry) or 0.0
                yield _Point(
                    x=x,
                    round=round_.index,
                    value=entry.value,
                    error=error if entry.decided else 0.0,
                    kept=kept,
                    title=title,
                    decided=entry.decided,
                )


def _limits(points: Sequence[_Point], direction: Direction) -> tuple[float, float]:
    """The values shown: all kept ones, and others that are not much worse than the worst kept."""
    values = [p.value for p in points if p.value is not None]
    kept = [p.value for p in points if p.value is not None and p.kept] or values
    span = max(kept) - min(kept)
    if span == 0.0:
        span = max(values) - min(values) or abs(values[0]) * 0.01 or 1.0
    reach = 0.6 * span
    near = [v for v in values if min(kept) - reach <= v <= max(kept) + reach]
    near += [v for p in points if p.kept and p.value is not None for v in (p.value - p.error, p.value + p.error)]
    low, high = min(near), max(near)
    # room for labels on the good side, for failures and far-off values on the other
    good, bad = 0.16 * (high - low or span), 0.12 * (high - low or span)
    return (low - good, high + bad) if direction is Direction.min else (low - bad, high + good)


def _frame(axes: "Axes", history: History, points: Sequence[_Point]) -> None:
    from matplotlib.ticker import MaxNLocator

    kept = sum(p.kept for p in points)
    failed = sum(p.value is None for p in points)
    ended = sum(trial.result is not None for trial in history.trials())
    trials = f" of {count(ended, 'trial')}" if ended > len(points) else ""
    experiments = f"{count(len(points), 'experiment')}{trials}"
    title = f"{drawable(one_line(history.tag))}: {experiments}, {kept} kept, {failed} failed"
    axes.set_title(title, loc="left", fontsize=11, color=_TEXT, parse_math=False, pad=20)
    better = "lower" if history.direction is Direction.min else "higher"
    axes.set_xlabel("experiment", fontsize=10, color=_TEXT)
    axes.set_ylabel(f"{drawable(history.metric)} ({better} is better)", fontsize=10, color=_TEXT, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa0a6")
    axes.tick_params(colors=_TEXT, labelsize=9, color="#9aa0a6")
    axes.grid(axis="y", color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    axes.ticklabel_format(axis="y", useOffset=False)


def _rounds(axes: "Axes", points: Sequence[_Point]) -> None:
    """Faint lines where rounds begin, with the rounds' numbers; of many rounds, every so many."""
    indices = sorted({p.round for p in points})
    every = -(-len(indices) // _MAX_ROUND_MARKS)
    for index in indices[::every]:
        xs = [p.x for p in points if p.round == index]
        if index != indices[0]:
            axes.axvline(xs[0] - 0.5, color=_FAINT, linewidth=0.9, zorder=0)
        _above(axes, (xs[0] + xs[-1]) / 2, str(index), "data", "center")
    _above(axes, 1.005, "round", "axes fraction", "left")


def _above(axes: "Axes", x: float, text: str, coordinates: str, align: str) -> None:
    axes.annotate(text, (x, 1.0), xycoords=(coordinates, "axes fraction"), xytext=(0, 6), textcoords="offset points",
                  ha=align, fontsize=7.5, color="#8a9097")  # fmt: skip


def _marks(axes: "Axes", points: Sequence[_Point], direction: Direction) -> None:
    low, high = axes.get_ylim()
    edge, marker = (high, "^") if direction is Direction.min else (low, "v")
    valued = [(p.x, p.value, p.kept) for p in points if p.value is not None]
    kept = [(x, y) for x, y, keep in valued if keep]
    inside = [(p.x, p.value, p.decided) for p in points if p.value is not None and not p.kept]
    discarded = [(x, y) for x, y, decided in inside if decided and low <= y <= high]
    screened = [(x, min(max(y, low), high)) for x, y, decided in inside if not decided]  # at the edge they lie beyond
    far = [x for x, y, decided in inside if decided and not low <= y <= high]
    failed = [p.x for p in points if p.value is None]
    size = 34 if len(points) <= _MANY else 14
    if kept:
        xs, ys = [x for x, _ in kept], [y for _, y in kept]
        axes.step([*xs, points[-1].x], [*ys, ys[-1]], where="post", color=_KEPT, linewidth=1.8, label="running best",
                  zorder=2)  # fmt: skip
        axes.scatter(xs, ys, s=size * 1.7, color=_KEPT, edgecolors="white", linewidths=1.0, label="kept", zorder=5)
    if discarded:
        axes.scatter([x for x, _ in discarded], [y for _, y in discarded], s=size, color=_DISCARDED, linewidths=0,
                     label="discarded", zorder=3)  # fmt: skip
    if screened:
        axes.scatter([x for x, _ in screened], [y for _, y in screened], s=size * 0.4, color=_SCREENED, linewidths=0,
                     clip_on=False, label="screened only, on another GPU", zorder=2.5)  # fmt: skip
    _errors(axes, [p for p in points if p.value is not None and low <= p.value <= high])
    if far:
        axes.scatter(far, [edge] * len(far), s=size, marker=marker, facecolors="white", edgecolors=_DISCARDED,
                     clip_on=False, label="discarded, off the scale", zorder=3)  # fmt: skip
    if failed:
        axes.scatter(failed, [0.0] * len(failed), s=size, marker="x", color=_FAILED, linewidths=1.4, label="failed",
                     transform=axes.get_xaxis_transform(), clip_on=False, zorder=4)  # fmt: skip


def _errors(axes: "Axes", points: Sequence[_Point]) -> None:
    """Bars of one standard error to either side, in the colours of their points."""
    label: str | None = "standard error"
    for kept, colour in ((True, _KEPT), (False, _DISCARDED)):
        some = [(p.x, p.value, p.error) for p in points if p.kept is kept and p.error]
        if some and (kept or len(points) <= _MANY):
            xs, ys, errors = zip(*some, strict=True)
            axes.errorbar(xs, ys, yerr=errors, fmt="none", ecolor=colour, elinewidth=1.0, capsize=2, zorder=2.5,
                          label=label)  # fmt: skip
            label = None


def _labels(axes: "Axes", points: Sequence[_Point], direction: Direction) -> None:
    import numpy as np

    kept = [(p.x, p.value, p.title) for p in points if p.kept and p.value is not None]
    if not kept:
        return
    corners = [(x, y) for x, y, _ in kept]
    line = [corners[0]]
    for x, y in [*corners[1:], (points[-1].x, corners[-1][1])]:
        line += [(x, line[-1][1]), (x, y)]
    low, high = axes.get_ylim()
    ends = [(p.x, p.value + e) for p in points if p.value is not None for e in {-p.error, 0.0, p.error}]
    shown = [(x, min(max(y, low), high)) for x, y in ends]
    place_labels(axes, kept, np.array(shown, float), np.array(line, float), direction is Direction.min)


def drawable(text: str) -> str:
    """Text without characters that the font lacks."""
    glyphs = _font().get_charmap()
    return "".join(c if ord(c) in glyphs else "?" for c in text)


def _font() -> Any:
    from matplotlib import font_manager

    return font_manager.get_font(font_manager.findfont("DejaVu Sans"))
