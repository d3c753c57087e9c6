"""effects.png: effects by their size, with intervals, and how the strongest ones go together.

On the left a Pareto picture, bars of |effect| with their 95 % intervals, blue where an effect stands out from luck. On
the right the model's value over one knob for two settings of another, for the surest interactions; where none was
estimated, over the surest knobs alone. Drawn without pyplot, like progress.png.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoresearch_hpc.estimates import Effect, Effects, Term
from autoresearch_hpc.files import write_bytes_atomic
from autoresearch_hpc.records import Direction
from autoresearch_hpc.report.plots import drawable
from autoresearch_hpc.report.tables import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["effects_figure", "write_effects_png"]

_SURE, _UNSURE, _TEXT, _FAINT = "#1f5fa8", "#c3c7cc", "#22262b", "#e3e5e8"
_LOW, _HIGH = "#c26a1b", "#1f5fa8"
_MAX_BARS = 14
_MAX_PANELS = 3
_NUM_POINTS = 21


def write_effects_png(effects: Effects, metric: str, direction: Direction, path: Path, dpi: int = 160) -> None:
    """Draw a run's effects as they are known now."""
    content = io.BytesIO()
    effects_figure(effects, metric, direction, dpi).savefig(content, format="png", metadata={"Software": None})
    write_bytes_atomic(path, content.getvalue())


def effects_figure(effects: Effects, metric: str, direction: Direction, dpi: int = 160) -> "Figure":
    """The picture as a matplotlib figure of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.2), dpi=dpi, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    shown = _panels(effects)
    halves = figure.subfigures(1, 2, width_ratios=(1.2, 1.0), squeeze=False)[0]
    _pareto(halves[0].add_subplot(), effects, metric)
    better = "lower" if direction is Direction.min else "higher"
    panels = halves[1].subplots(max(len(shown), 1), 1, squeeze=False)[:, 0]
    for axes, names in zip(panels, shown, strict=False):
        _lines(
            axes, effects, names, f"{drawable(metric)} ({better} is better)" if len(shown) == 1 else drawable(metric)
        )
    return figure


def _panels(effects: Effects) -> list[tuple[str, ...]]:
    """Pairs of factors that depend on each other; where there are none, single factors."""
    for term in (Term.interaction, Term.main):
        found = [effect.factors for effect in effects.by_size if effect.term is term and effect.significant]
        if found:
            return found[:_MAX_PANELS]
    return [effect.factors for effect in effects.by_size if effect.term is Term.main][:_MAX_PANELS]


def _pareto(axes: "Axes", effects: Effects, metric: str) -> None:
    largest = sorted(effects.effects, key=lambda effect: -abs(effect.estimate))
    shown = largest[:_MAX_BARS][::-1]
    sizes = [abs(effect.estimate) for effect in shown]
    colours = [_SURE if effect.significant else _UNSURE for effect in shown]
    axes.barh(range(len(shown)), sizes, color=colours, height=0.62, zorder=2)
    known = [(y, size, e.margin) for y, (size, e) in enumerate(zip(sizes, shown, strict=True)) if e.margin is not None]
    if known:
        ys, xs, margins = zip(*known, strict=True)
        lower = [min(margin, size) for size, margin in zip(xs, margins, strict=True)]
        axes.errorbar(xs, ys, xerr=[lower, margins], fmt="none", ecolor=_TEXT, elinewidth=1.0, capsize=2.5, zorder=3)
    axes.set_yticks(range(len(shown)), [_name(effect) for effect in shown], fontsize=8, parse_math=False)
    more = f", {_MAX_BARS} largest of {len(largest)}" if len(largest) > _MAX_BARS else ""
    title = f"effects with 95 % intervals{more}"
    axes.set_title(title, loc="left", fontsize=9, color=_TEXT, parse_math=False)
    axes.set_xlabel(f"change of {drawable(metric)} from low to high; blue: p < 0.05", fontsize=9, color=_TEXT,
                    parse_math=False)  # fmt: skip
    axes.grid(axis="x", color=_FAINT, linewidth=0.7, zorder=0)
    _plain(axes)


def _lines(axes: "Axes", effects: Effects, names: Sequence[str], label: str) -> None:
    """The model's value over the first factor, for the low and the high setting of the second if there is one."""
    one, other = names[0], names[1] if len(names) > 1 else None
    xs = [-1 + 2 * i / (_NUM_POINTS - 1) for i in range(_NUM_POINTS)]
    factors = effects.of_factors
    settings = [(-1.0, _LOW), (1.0, _HIGH)] if other else [(0.0, _HIGH)]
    for level, colour in settings:
        coded = {other: level} if other else {}
        ys = [effects.predict({**coded, one: x}) for x in xs]
        axes.plot(xs, ys, color=colour, linewidth=1.8)
        if other:
            text = factors[other].low if level < 0 else factors[other].high
            axes.annotate(_short(text), (1.0, ys[-1]), xytext=(5, 0), textcoords="offset points", va="center",
                          fontsize=8, color=colour, parse_math=False, annotation_clip=False)  # fmt: skip
    axes.set_xlim(-1.05, 1.3 if other else 1.05)
    axes.set_xticks([-1, 1], [_short(factors[one].low), _short(factors[one].high)], parse_math=False)
    title = f"over {_short(one, 24)}" + (f", lines: {_short(other, 24)}" if other else "")
    axes.set_title(title, loc="left", fontsize=9, color=_TEXT, parse_math=False)
    axes.set_ylabel(label, fontsize=8, color=_TEXT, parse_math=False)
    axes.grid(axis="y", color=_FAINT, linewidth=0.7)
    axes.ticklabel_format(axis="y", useOffset=False)
    _plain(axes)


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa0a6")
    axes.tick_params(colors=_TEXT, labelsize=8, color="#9aa0a6")
    axes.set_axisbelow(True)


def _name(effect: Effect) -> str:
    sign = "+" if effect.estimate > 0 else "\N{MINUS SIGN}"
    several = effect.term is Term.curvature and len(effect.factors) > 1
    name = f"curvature of {len(effect.factors)} knobs" if several else _short(effect.name, 34)
    return f"{name}  {sign}"


def _short(text: str, most: int = 14) -> str:
    plain = drawable(one_line(text))
    return plain if len(plain) <= most else f"{plain[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
