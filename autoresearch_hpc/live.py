"""What a run looks like while it goes on: a table on a terminal, nothing but the log lines elsewhere.

The table is drawn in the controller's own thread, from `update`, so nothing changes while it is being read. While it
stands, log lines below WARNING stay off the screen (they are in controller.log) and the others appear above it.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Protocol, cast

from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

from autoresearch_hpc.history import Entry, History, Round
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.progress import State, Watch, state_of
from autoresearch_hpc.report import formats
from autoresearch_hpc.report.columns import Columns
from autoresearch_hpc.report.settings import Settings, settings_of
from autoresearch_hpc.report.summary import Figures, figures
from autoresearch_hpc.report.tables import one_line
from autoresearch_hpc.report.wording import kept_lines, standing

if TYPE_CHECKING:
    from autoresearch_hpc.config import Config

_REDRAW_S = 0.25
_LINES_AROUND = 12  # of the screen, around the rows of candidates
_MAX_KEPT_SHOWN = 3
_SHARED_PACE_S = 1.0  # between two looks at the directories of trials
_STYLES = {"OK": "green", "training": "cyan", "queued": "dim", "proposed": "dim", "committed": "dim"}
_FAILED = "red"


class View(Protocol):
    """Shows a run while it goes on."""

    def update(self, history: History, states: Mapping[str, str]) -> None:
        """Show this; `states` are the cluster's words (PENDING, RUNNING, ...) by trial id. Cheap: call it often."""

    def note(self, text: str) -> None:
        """Say one line to the person at the terminal."""

    def close(self) -> None:
        """Leave the terminal as it was. May be called twice."""


class PlainView:
    """No terminal: the controller's log lines say everything."""

    def update(self, history: History, states: Mapping[str, str]) -> None:
        pass

    def note(self, text: str) -> None:
        logging.getLogger(__name__).info("%s", text)

    def close(self) -> None:
        pass


class LiveView:
    """A table that redraws itself at the bottom of the terminal."""

    def __init__(
        self,
        layout: RunLayout,
        settings: Settings,
        console: Console | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        pace_s: float = 0.0,
    ) -> None:
        self._settings, self._monotonic = settings, monotonic
        self._watch = Watch(layout, pace_s, monotonic)
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._drawn_at = float("-inf")
        self._quieted: list[tuple[logging.StreamHandler[IO[str]], int, IO[str]]] = []

    def update(self, history: History, states: Mapping[str, str]) -> None:
        now = self._monotonic()
        if now - self._drawn_at < _REDRAW_S:
            return
        self._drawn_at = now
        if not self._live.is_started:
            self._quiet()
            self._live.start()
        room = max(4, self._console.height - _LINES_AROUND)
        self._live.update(screen(history, self._settings, self._watch, states, max_rows=room), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()
        for handler, level, stream in self._quieted:
            handler.setLevel(level)
            handler.setStream(stream)
        self._quieted.clear()

    def _quiet(self) -> None:
        proxy = cast("IO[str]", FileProxy(self._console, sys.stderr))
        for handler in logging.getLogger("autoresearch_hpc").handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stderr, sys.__stderr__):
                self._quieted.append((handler, handler.level, handler.stream))
                handler.setLevel(max(handler.level, logging.WARNING))
                handler.setStream(proxy)


def open_view(config: "Config", layout: RunLayout, *, shared: bool) -> View:
    """A table where standard error is a terminal, else nothing. A shared filesystem is asked once a second at most."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return LiveView(layout, settings_of(config), pace_s=_SHARED_PACE_S if shared else _REDRAW_S)
    return PlainView()


def screen(
    history: History,
    settings: Settings,
    watch: Watch,
    states: Mapping[str, str],
    now: datetime | None = None,
    max_rows: int | None = None,
    tagged: bool = True,
) -> RenderableType:
    """The current round: what the run is, its candidates, the best so far and what was used of the budget."""
    now = now or datetime.now(UTC)
    summary = figures(history, settings, now)
    parts: list[RenderableType] = [Text(_heading(history, settings, tagged), style="bold" if tagged else "")]
    if history.rounds:
        parts.append(candidates(history, settings, watch, states, now, max_rows))
    parts += [Text(line) for line in best_lines(summary)]
    parts.append(Text(used_line(summary, settings)))
    return Group(*parts)


def candidates(
    history: History,
    settings: Settings,
    watch: Watch,
    states: Mapping[str, str],
    now: datetime,
    max_rows: int | None = None,
) -> Columns:
    """The candidates of the open rounds, else of the newest, and the incumbent where it is run again. Of earlier open
    rounds only those that still run. Of more than max_rows, those that still run and the newest results.
    """
    rounds = history.open_rounds or history.rounds[-1:]
    rows = [
        (round_, entry, state_of(entry, watch, states, now))
        for round_ in rounds
        for entry in _of_round(history, round_)
    ]
    rows = [row for row in rows if row[0] is rounds[-1] or _going_on(*row[:2])]
    shown, left_out = rows, 0
    if max_rows is not None and len(rows) > max_rows:
        order = sorted(range(len(rows)), key=lambda i: (not rows[i][2].running, rows[i][2].value is None, i))
        shown = [rows[i] for i in sorted(order[: max_rows - 1])]
        left_out = len(rows) - len(shown)
    cells = [_row(entry, state, round_, settings.wall_limit_s) for round_, entry, state in shown]
    if left_out:
        cells.append((Text(""), Text(f"and {left_out} more", style="dim"), *(Text("") for _ in range(4))))
    head = ("candidate", "state", "time/limit", "trials", history.metric, "title")
    return Columns(head=head, rows=cells, right={2, 3, 4})


def _of_round(history: History, round_: Round) -> list[Entry]:
    beside = dict.fromkeys(want.candidate for want in round_.needed if want.candidate not in round_.entries)
    return [*round_.entries.values(), *(history.entry(id_) for id_ in beside)]


def _going_on(round_: Round, entry: Entry) -> bool:
    done = sum(t.candidate == entry.id and t.result is not None and t.dropped is None for t in round_.trials)
    return done < round_.num_needed(entry.id)


def best_lines(summary: Figures) -> Iterator[str]:
    """The incumbent with what stands behind it, who is ahead of it, and the newest winners' gains."""
    if summary.best is not None and summary.best_candidate is not None:
        baseline = f", baseline {formats.value(summary.baseline)}" if summary.moved else ""
        behind = standing(summary.best_candidate, summary.best_trials, summary.noise)
        yield f"best so far: {formats.value(summary.best)} ({behind}){baseline}"
    elif summary.leading is None:
        yield f"best so far: no {summary.metric} yet"
    if summary.leading is not None and summary.leading_candidate is not None:
        behind = standing(summary.leading_candidate, summary.leading_trials, None)
        yield f"not yet judged: {formats.value(summary.leading)} ({behind})"
    for label, words in kept_lines(summary, _MAX_KEPT_SHOWN):
        yield f"{label}: {words}"


def used_line(summary: Figures, settings: Settings) -> str:
    """What was used of what may be used; without limits, what was used."""
    gpu_h, wall_h = summary.trial_s / 3600, summary.active_s / 3600
    limited = settings.max_trials is not None
    trials = formats.count(summary.num_trials, "trial")
    parts = [f"{summary.num_trials}{_of(settings.max_trials)} trials" if limited else trials]
    if settings.gpu_hours is not None or gpu_h >= 0.01:
        parts.append(f"{gpu_h:.2f}{_of(settings.gpu_hours)} {'GPU' if summary.gpu_s else 'trial'} hours")
    if settings.usd is not None or summary.cost_usd:
        limit = f" of {formats.usd(settings.usd)}" if settings.usd is not None else ""
        parts.append(f"{formats.usd(summary.cost_usd or 0.0)}{limit}")
    limit = f" of {settings.wall_hours:g} h" if settings.wall_hours is not None else ""
    parts.append(f"{f'{wall_h:.2f}' if limit else formats.duration(summary.active_s)}{limit} wall time")
    return f"used: {', '.join(parts)}"


def _heading(history: History, settings: Settings, tagged: bool) -> str:
    tag = f"{history.tag}: " if tagged else ""
    if not history.rounds:
        return f"{tag}the first round is being proposed"
    round_ = history.rounds[-1]
    of = f" of {settings.num_rounds}" if settings.num_rounds is not None else ""
    alone = round_.index == 0 and len(round_.entries) == 1
    kind = "baseline" if alone else f"round {round_.index}{of}"
    stage = f", {round_.stages[-1]}" if round_.stages and round_.stages[-1] != "array" else ""
    done = sum(trial.result is not None and trial.dropped is None for trial in round_.trials)
    wanted = sum(round_.needed.values()) or len(round_.entries)
    return f"{tag}{kind}{stage}, {done} of {formats.count(wanted, 'trial')} done"


def _row(entry: Entry, state: State, round_: Round, limit_s: float | None) -> tuple[Text, ...]:
    failed = state.word.isupper() and state.word != "OK"
    word = Text(state.word, style=_FAILED if failed else _STYLES.get(state.word, ""))
    time_ = formats.clock(state.elapsed_s)
    if state.running and limit_s is not None:
        time_ += f"/{formats.clock(limit_s)}"
    done = sum(t.candidate == entry.id and t.result is not None and t.dropped is None for t in round_.trials)
    trials = f"{done}/{round_.num_needed(entry.id) or 1}"
    title = one_line(entry.proposal.title) if entry.id in round_.entries else "the incumbent, again"
    return Text(entry.id), word, Text(time_), Text(trials), Text(formats.value(state.value)), Text(title)


def _of(limit: float | None) -> str:
    return "" if limit is None else f" of {limit:g}"
