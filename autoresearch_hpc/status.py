"""`python -m autoresearch_hpc.status [RUN]`: how a run is doing, from its files alone.

Works from any shell that sees the runs directory, asks neither the cluster nor the controller, and needs no import
that takes long.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from autoresearch_hpc import lock, report
from autoresearch_hpc.errors import AutoresearchError, ConfigError
from autoresearch_hpc.exits import run
from autoresearch_hpc.history import History
from autoresearch_hpc.journal import stream
from autoresearch_hpc.layout import RunLayout, all_runs, find_run
from autoresearch_hpc.live import screen
from autoresearch_hpc.progress import Watch
from autoresearch_hpc.report import formats
from autoresearch_hpc.report.columns import Columns
from autoresearch_hpc.report.settings import Settings, read_settings
from autoresearch_hpc.report.summary import summarize
from autoresearch_hpc.report.wording import render


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m autoresearch_hpc.status", description="How a run is doing: its round, its trials, its best."
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="a tag or a run's directory; default the newest run")
    parser.add_argument("--all", action="store_true", help="one line for each run")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    options = parser.parse_args(arguments)

    def show() -> None:
        console = Console(highlight=False)
        if options.all:
            console.print(overview(options.runs_dir))
        else:
            console.print(status(find_run(options.run, options.runs_dir)))

    return run(show)


def status(layout: RunLayout, now: datetime | None = None) -> RenderableType:
    """One run: whether a controller is at work, then its current round or, once it is over, its summary."""
    history = _history(layout)
    settings = read_settings(layout.config)
    holder = controller(layout)
    parts: list[RenderableType] = [Text(f"{history.tag or layout.root.name}: {state(history, holder)}", style="bold")]
    if history.stopped is not None and holder is None:
        return Group(*parts, Text(), render(summarize(history, settings), report.places(layout)))
    if history.rounds:
        now = (now or datetime.now(UTC)) if holder else _at(history.last_at)
        body = screen(history, settings, Watch(layout), {}, now, tagged=False)
        parts += [Text(), body]
    if holder is None:
        parts += [Text(), Text(f"resume: the command it was started with, and tag={history.tag}", overflow="fold")]
    return Group(*parts)


def overview(runs_dir: Path) -> Columns:
    """Every run in one table, the newest first. Raises ConfigError where there is none."""
    runs = all_runs(runs_dir)
    if not runs:
        raise ConfigError(f"no run in {runs_dir}", "start one: python -m autoresearch_hpc +round=quickstart")
    head = ("run", "started (UTC)", "round", "trials", "best", "state")
    return Columns(head=head, rows=[_line(layout) for layout in runs], right={2, 3, 4})


def state(history: History, holder: str | None) -> str:
    """running, ended, interrupted or stopped, with the reason."""
    if holder is not None:
        return f"running, controller {holder}"
    if history.stopped is not None:
        return f"ended: {history.stopped}"
    if history.interrupted is not None:
        return f"interrupted by {history.interrupted}"
    return "stopped, no controller is at work"


def controller(layout: RunLayout) -> str | None:
    """Who works on the run, or None."""
    try:
        holder = lock.holder(layout.lock)
    except OSError as error:
        return f"unknown: cannot open {layout.lock.name}: {error.strerror}"
    return str(holder) if holder else None


def _line(layout: RunLayout) -> list[Text]:
    try:
        history = _history(layout)
    except AutoresearchError as error:
        return [Text(cell) for cell in (layout.root.name, "", "", "", "", str(error))]
    settings = read_settings(layout.config)
    summary = summarize(history, settings)
    index = history.rounds[-1].index if history.rounds else 0
    cells = (
        layout.root.name,
        (history.started_at or "")[:16].replace("T", " "),
        f"{index}{_of(settings)}",
        str(summary.num_trials),
        formats.value(summary.best, "none"),
        state(history, controller(layout)),
    )
    return [Text(cell) for cell in cells]


def _of(settings: Settings) -> str:
    return "" if settings.num_rounds is None else f"/{settings.num_rounds}"


def _history(layout: RunLayout) -> History:
    try:
        return History.replay(stream(layout.journal))
    except OSError as error:
        raise ConfigError(f"cannot read {layout.journal}: {error.strerror}", "ask its owner for access") from error


def _at(text: str | None) -> datetime:
    return datetime.fromisoformat(text) if text else datetime.now(UTC)


if __name__ == "__main__":
    sys.exit(main())
