"""What people read of a run: tables, the progress picture, the HTML report, the closing summary.

Everything here is made from the journal and the run's files, can be made again at any time, and changes nothing
that a controller relies on.
"""

import sys
from pathlib import Path
from typing import IO

from autoresearch_hpc.history import History
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.report.settings import Settings, read_settings
from autoresearch_hpc.report.tables import Tables

__all__ = ["Tables", "places", "print_summary", "write_all"]


def write_all(history: History, layout: RunLayout, settings: Settings | None = None) -> None:
    """The tables, progress.png, effects.png where effects are known, and report.html.

    `settings` default to those in the run's config.yaml.
    """
    from autoresearch_hpc.report.effect_plots import write_effects_png
    from autoresearch_hpc.report.html import write_report_html
    from autoresearch_hpc.report.plots import write_progress_png

    Tables().write(history, layout)
    write_progress_png(history, layout.progress_png)
    if history.effects:
        write_effects_png(history.effects, history.metric, history.direction, layout.effects_png)
    write_report_html(history, layout, settings or read_settings(layout.config))


def print_summary(
    history: History,
    layout: RunLayout,
    reason: str | None = None,
    settings: Settings | None = None,
    file: IO[str] | None = None,
) -> None:
    """Print the table of rounds, the figures, where everything lies and why the run ended."""
    from rich.console import Console

    from autoresearch_hpc.report.summary import summarize
    from autoresearch_hpc.report.wording import render

    summary = summarize(history, settings or read_settings(layout.config))
    where = places(layout) | {"branch": f"autoresearch/{history.tag}"} | ({"ended": reason} if reason else {})
    Console(file=file or sys.stdout, highlight=False).print(render(summary, where))


def places(layout: RunLayout) -> dict[str, str]:
    """Where a run's files are, by what they are; only those that are there. Relative to where we are, if below it."""
    files = {
        "results": layout.results_tsv,
        "candidates": layout.candidates_csv,
        "effects": layout.effects_csv,
        "trials": layout.trials_csv,
        "progress": layout.progress_png,
        "report": layout.report_html,
    }
    return {name: _near(path) for name, path in files.items() if path.exists()}


def _near(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
