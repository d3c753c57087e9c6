"""The report's section on what each knob does."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from autoresearch_hpc.estimates import Effects
from autoresearch_hpc.report import formats, markup
from autoresearch_hpc.report.tables import ends

__all__ = ["section"]

_LEGEND = (
    "How the metric changes when a knob goes from its low to its high setting, with a 95 % interval: a linear model of "
    "all results by least squares. A:B is an interaction, half of what B changes in the effect of A. A^2 is curvature: "
    "how far the mean of low and high lies above the middle. p is the chance of so large an effect if there were none; "
    "of twenty such effects one has p below 0.05. Aliases are effects that these results cannot tell from this one."
)


def section(effects: Effects, path: Path) -> Iterator[str]:
    """The picture and the table; significant effects stand out."""
    yield "<h2>Effects</h2>"
    yield f"<p>{escape(_LEGEND)}</p>"
    yield f"<p>{escape(effects.words)}.</p>"
    yield from markup.picture(path, "effects by size, and what depends on what")
    head = ["effect", "low", "high", "change", "95 % interval", "p", "aliases"]
    number = {3, 4, 5}
    rows = []
    for effect in effects.by_size:
        margin = "unknown"
        if effect.margin is not None:
            margin = f"{effect.estimate - effect.margin:+.6f} to {effect.estimate + effect.margin:+.6f}"
        cells = [effect.name, *ends(effects, effect), f"{effect.estimate:+.6f}", margin, formats.odds(effect.p)]
        rows.append(markup.row([*cells, ", ".join(effect.aliases)], number, css="keep" if effect.significant else ""))
    yield markup.table(head, rows, number)
    if effects.not_estimated:
        yield f"<p>Not estimated, for too few results: {escape(', '.join(effects.not_estimated))}.</p>"
