"""The figures of a run, computed from its history alone, and their table.

One trial holds one GPU from its worker's start to its result, so GPU time is the sum of the trials' `total_s`; the
same sum without dropped trials is what the trials would have taken one after another, with no time in between.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.text import Text

from autoresearch_hpc.history import Entry, History, Round
from autoresearch_hpc.records import Direction, Status, Verdict, candidate_id
from autoresearch_hpc.report import formats
from autoresearch_hpc.report.columns import Columns
from autoresearch_hpc.report.settings import Settings
from autoresearch_hpc.report.tables import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSummary:
    """One line of the table of rounds."""

    index: int
    base: str  # the candidate the round started from, or a commit where no candidate has it
    num_candidates: int
    statuses: Mapping[Status, int]
    best: float | None
    best_candidate: str | None
    winner: str | None  # the candidate that became the incumbent
    title: str  # of the winner, or of the best that was not kept
    judged: bool

    @property
    def num_ok(self) -> int:
        return self.statuses.get(Status.OK, 0)

    @property
    def num_failed(self) -> int:
        return sum(self.statuses.values()) - self.num_ok

    @property
    def verdict(self) -> str:
        """keep, discard, crash (nothing succeeded), or running."""
        if not self.judged:
            return "running"
        return str(Verdict.KEEP if self.winner else Verdict.DISCARD if self.num_ok else Verdict.CRASH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did, cost and found. Times in seconds; None where nothing can be said yet."""

    tag: str
    metric: str
    direction: Direction
    rounds: tuple[RoundSummary, ...]
    num_experiments: int  # candidates with a result
    num_trials: int  # their executions, repeated ones included
    statuses: Mapping[Status, int]
    active_s: float  # controllers at work
    elapsed_s: float  # first to last event, interruptions included
    trial_s: float  # all trials, dropped ones included
    gpu_s: float  # of these, with a GPU
    sequential_s: float  # the trials that counted, one after another
    train_s: float
    cost_usd: float | None  # None where the cluster has no price
    baseline: float | None
    best: float | None
    best_candidate: str | None
    best_commit: str | None
    leading: float | None  # a value of the round that is not yet judged, better than the best
    leading_candidate: str | None

    @property
    def num_failed(self) -> int:
        return self.num_experiments - self.statuses.get(Status.OK, 0)

    @property
    def speed_up(self) -> float | None:
        return self.sequential_s / self.active_s if self.active_s > 0 and self.sequential_s > 0 else None

    @property
    def useful(self) -> float | None:
        """The fraction of the trials' time that was training."""
        return self.train_s / self.trial_s if self.trial_s > 0 else None

    @property
    def improvement(self) -> float | None:
        """By how much the best is better than the baseline; positive whatever the direction."""
        if self.best is None or self.baseline is None:
            return None
        return self.baseline - self.best if self.direction is Direction.min else self.best - self.baseline


def summarize(history: History, settings: Settings | None = None, now: datetime | None = None) -> Summary:
    """The figures so far. `now` is given while a controller is at work: its last event may be some time ago."""
    settings = settings or Settings()
    counted = [entry.result for entry in history.entries() if entry.result]
    ended = [trial for trial in history.trials() if trial.result]
    trial_s = sum(trial.held_s for trial in ended)
    baseline = history.find("baseline")
    best = history.incumbent
    leading = _leading(history)
    return Summary(
        tag=history.tag,
        metric=history.metric,
        direction=history.direction,
        rounds=tuple(_round(history, round_) for round_ in history.rounds),
        num_experiments=len(counted),
        num_trials=len(ended),
        statuses=Counter(result.status for result in counted),
        active_s=_active_s(history, now),
        elapsed_s=_between(history.started_at, now.isoformat() if now else history.last_at),
        trial_s=trial_s,
        gpu_s=sum(t.gpu_s if t.gpu_s is not None else t.held_s * t.result.gpu.count for t in ended if t.result),
        sequential_s=sum(result.phases.total_s or 0.0 for result in counted),
        train_s=sum(result.phases.train_s or 0.0 for result in counted),
        cost_usd=trial_s / 3600 * settings.price_per_gpu_hour if settings.price_per_gpu_hour else None,
        baseline=baseline.value if baseline else None,
        best=best.value if best else None,
        best_candidate=best.candidate if best else None,
        best_commit=best.commit if best else None,
        leading=leading.value if leading else None,
        leading_candidate=leading.id if leading else None,
    )


def table(summary: Summary) -> Columns:
    """The table of rounds, for a terminal of 80 columns or more."""
    head = ("round", "base", "K", "ok/failed", f"best {summary.metric}", "verdict", "title")
    rows = [[Text(cell) for cell in _cells(row)] for row in summary.rounds]
    winners = [index for index, row in enumerate(summary.rounds) if row.winner]
    return Columns(head=head, rows=rows, right={0, 2, 3, 4}, bold=winners)


def lines(summary: Summary, where: Mapping[str, str] | None = None) -> list[str]:
    """What stands below the table. `where` maps a name to the place of a file: results.tsv, progress.png, ..."""
    return list(_lines(summary, where or {}))


def render_text(summary: Summary, where: Mapping[str, str] | None = None) -> str:
    """Table and lines as plain text, for logs."""
    console = Console(width=100, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table(summary))
    rows = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*rows, "", *lines(summary, where)])


def render(summary: Summary, where: Mapping[str, str] | None = None) -> RenderableType:
    """Table and lines for rich's console."""
    return Group(table(summary), Text(), Text("\n".join(lines(summary, where)), overflow="fold"))


def base_of(history: History, commit: str) -> str:
    """The candidate whose commit this is; "start" for the repository's own commit; else the commit, shortened."""
    known = next((e.id for e in history.entries() if e.candidate and e.candidate.commit == commit), None)
    return known or ("start" if commit == history.start_commit else commit[:7])


def _round(history: History, round_: Round) -> RoundSummary:
    entries = list(round_.entries.values())
    best = _best(entries, history.direction)
    winner = next((entry for entry in entries if entry.verdict is Verdict.KEEP), None)
    shown = winner or best
    return RoundSummary(
        index=round_.index,
        base=base_of(history, round_.base),
        num_candidates=len(entries),
        statuses=Counter(entry.result.status for entry in entries if entry.result),
        best=best.value if best else None,
        best_candidate=best.id if best else None,
        winner=winner.id if winner else None,
        title=one_line(shown.proposal.title) if shown else "",
        judged=round_.judged,
    )


def _best(entries: Iterable[Entry], direction: Direction) -> Entry | None:
    best: Entry | None = None
    for entry in entries:
        if entry.value is not None and (
            best is None or best.value is None or direction.better(entry.value, best.value)
        ):
            best = entry
    return best


def _leading(history: History) -> Entry | None:
    """The best of a round that is still going on, where it beats the incumbent."""
    if not history.rounds or history.rounds[-1].judged:
        return None
    entry = _best(history.rounds[-1].entries.values(), history.direction)
    if entry is None or entry.value is None:
        return None
    best = history.incumbent
    return entry if best is None or history.direction.better(entry.value, best.value) else None


def _cells(row: RoundSummary) -> tuple[str, ...]:
    return (
        str(row.index),
        row.base,
        str(row.num_candidates),
        f"{row.num_ok}/{row.num_failed}",
        formats.value(row.best, "-"),
        row.verdict,
        f"{row.winner or row.best_candidate}: {row.title}" if row.title else "",
    )


def _lines(summary: Summary, where: Mapping[str, str]) -> Iterator[str]:
    name = f"best {summary.metric}"
    if summary.best is not None and summary.best_candidate is not None:
        commit = f", commit {summary.best_commit[:7]}" if summary.best_commit else ""
        yield f"{name}  {formats.value(summary.best)}  {summary.best_candidate}{commit}"
        if summary.improvement is not None and summary.best_candidate != candidate_id(0, 0):
            share = f" ({summary.improvement / abs(summary.baseline):.2%})" if summary.baseline else ""
            better = f"better by {formats.difference(summary.improvement)}{share}"
            yield f"{'baseline':<{len(name)}}  {formats.value(summary.baseline)}  {better}"
    else:
        yield f"{name}  none yet"
    counts = f"{formats.count(summary.num_experiments, 'experiment')}, {summary.num_failed} failed"
    if summary.num_failed:
        words = (f"{n} {status}" for status, n in sorted(summary.statuses.items()) if status is not Status.OK)
        counts += f" ({', '.join(words)})"
    yield f"{counts}; {formats.count(summary.num_trials, 'trial')}"
    pause = summary.elapsed_s - summary.active_s
    paused = f" ({formats.duration(summary.elapsed_s)} with interruptions)" if pause > 1 else ""
    yield f"wall time: {formats.duration(summary.active_s)}{paused}"
    kind = "GPU time" if summary.gpu_s > 0 else "trial time (no GPU)"
    useful = f", {summary.useful:.0%} of it training" if summary.useful is not None else ""
    cost = f", {formats.usd(summary.cost_usd)}" if summary.cost_usd is not None else ""
    yield f"{kind}: {formats.hours(summary.gpu_s or summary.trial_s)}{useful}{cost}"
    if summary.speed_up is not None:
        yield (
            f"the same trials one after another: {formats.duration(summary.sequential_s)}; "
            f"speed-up {summary.speed_up:.1f}x"
        )
    width = max((len(name) for name in where), default=0)
    for name, place in where.items():
        yield f"{name:<{width}}  {place}"


def _active_s(history: History, now: datetime | None) -> float:
    spans = list(history.active)
    if spans and now:
        spans[-1] = (spans[-1][0], now.isoformat())
    return sum(_between(start, end) for start, end in spans)


def _between(start: str | None, end: str | None) -> float:
    if start is None or end is None:
        return 0.0
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
