"""Where the time of runs went, from their directories alone: wall time, GPU-seconds, phases, steps; a table, pictures.

The wall time of a run is the time in which its controller lived or one of its trials ran: what lies between an
interruption and the resume counts only as far as trials went on in it, and so does what a resumed controller waited
for trials that had been lost with their machine. It ends where the last round was closed.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from autoresearch_hpc.history import History, Trial
from autoresearch_hpc.journal import read
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.records import Status, TrialResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = ("startup", "compile", "train", "eval", "rest")
COLOURS = dict(zip(PHASES, ("#b3b7bd", "#e0a458", "#0b6e4f", "#4a7fb5", "#e3e5e8"), strict=True))
_STEP = re.compile(r" step_ms=([\d.]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """One training by its log: tokens a second over all of it, and its median step."""

    tokens_per_s: float
    median_ms: float


class Run:
    """One run's journal and results; `slots` is how many GPUs it had, `train_s` the training time of a trial."""

    def __init__(self, layout: RunLayout) -> None:
        config = OmegaConf.load(layout.config)
        self.slots, self.train_s = int(config.cluster.max_parallel), float(config.task.train_s)
        self.layout, self.name = layout, f"K={self.slots}, {self.train_s:g} s"
        self.name += ", async" if config.get("schedule") == "async" else ""
        self.history = History.replay(read(layout.journal))

    @property
    def complete(self) -> bool:
        return self.history.stopped is not None

    @cached_property
    def trials(self) -> list[Trial]:
        """Those that ended by themselves, in the order of their starts."""
        ended = [t for t in self.history.trials() if t.result and t.dropped is None]
        return sorted(ended, key=lambda trial: _result(trial).started_at)

    @property
    def num_dropped(self) -> int:
        """Trials that were cancelled or lost, and replaced."""
        return sum(trial.dropped is not None for trial in self.history.trials())

    @property
    def num_failed(self) -> int:
        return sum(_result(trial).status is not Status.OK for trial in self.trials)

    @cached_property
    def busy(self) -> list[tuple[float, float]]:
        """The spans that count as wall time, disjoint and in order: seconds since the epoch."""
        closed = [_when(round_.closed_at) for round_ in self.history.rounds if round_.closed_at]
        end = max(closed) if closed and self.complete else float("inf")
        first, *resumed = [(_when(begin), min(_when(last), end)) for begin, last in self.history.active]
        alive = [first, *((self._at_work_since(begin, last), last) for begin, last in resumed)]
        return union([*alive, *map(_span, self.trials)])

    def _at_work_since(self, begin: float, last: float) -> float:
        """When a controller that resumed at `begin` had given up what was lost while nobody looked."""
        lost = [t for t in self.history.trials() if t.result and t.result.status is Status.LOST and t.dropped]
        given_up = [_when(t.done_at) for t in lost if t.done_at and _when(t.submitted_at) < begin]
        return max((at for at in given_up if begin < at < last), default=begin)

    @property
    def wall_s(self) -> float:
        return sum(end - begin for begin, end in self.busy)

    def clock(self, at: float) -> float:
        """The wall time that had passed at a moment, in seconds."""
        return sum(max(0.0, min(at, end) - begin) for begin, end in self.busy)

    @property
    def gpu_s(self) -> float:
        """GPU-seconds by the trials' results: from a worker's start to its result."""
        return sum(_result(trial).phases.total_s or 0.0 for trial in self.trials)

    @property
    def charged_s(self) -> float | None:
        """GPU-seconds by the cluster's accounting; None where it does not tell of every trial."""
        charges = [trial.gpu_s for trial in self.trials]
        return None if None in charges else sum(c for c in charges if c is not None)

    @property
    def trained_s(self) -> float:
        return sum(phases(_result(trial))["train"] for trial in self.trials)

    def mean(self, phase: str) -> float | None:
        """Seconds of a phase in a trial; None where no trial has it."""
        values = [phases(_result(trial))[phase] for trial in self.trials]
        return statistics.fmean(values) if any(values) else None

    def steps(self, trial: Trial) -> Steps | None:
        result = _result(trial)
        return steps_of(self.layout.trial(trial.id).log, result.tokens) if result.status is Status.OK else None

    @cached_property
    def by_edit(self) -> dict[tuple[str, str], Trial]:
        """The first trial of each candidate, by its id and fingerprint: the same in two runs that trained the same."""
        found: dict[tuple[str, str], Trial] = {}
        for entry in self.history.entries():
            if entry.candidate and (trial := next((t for t in entry.trials if t in self.trials), None)):
                found[entry.id, entry.candidate.fingerprint] = trial
        return found

    def values(self) -> list[tuple[float, float]]:
        """Each trial's metric where it has one, at its end on the wall clock: seconds, value."""
        ends = [(self.clock(_span(trial)[1]), _result(trial).metric.value) for trial in self.trials]
        return sorted((at, value) for at, value in ends if value is not None)

    def curve(self) -> list[tuple[float, float]]:
        """The best metric so far over the wall time: seconds, value."""
        values = self.values()
        best = accumulate((value for _, value in values), min if self.history.direction == "min" else max)
        return [(at, value) for (at, _), value in zip(values, best, strict=True)]


def union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same moments as disjoint spans, in order."""
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        elif end > begin:
            joined.append((begin, end))
    return joined


def phases(result: TrialResult) -> dict[str, float]:
    """Seconds of each phase; `rest` is what belongs to none."""
    known = {name: getattr(result.phases, f"{name}_s") or 0.0 for name in PHASES[:-1]}
    return {**known, "rest": max(0.0, (result.phases.total_s or 0.0) - sum(known.values()))}


def steps_of(log: Path, tokens: int | None) -> Steps | None:
    """What the training's log tells; the median leaves out the first and the last step, which are not whole ones."""
    times_ms = [float(text) for text in _STEP.findall(log.read_text(errors="replace"))] if log.exists() else []
    if not tokens or not times_ms:
        return None
    whole = times_ms[1:-1] or times_ms
    return Steps(tokens_per_s=1000 * tokens / sum(times_ms), median_ms=statistics.median(whole))


def _result(trial: Trial) -> TrialResult:
    assert trial.result
    return trial.result


def _span(trial: Trial) -> tuple[float, float]:
    return _when(_result(trial).started_at), _when(_result(trial).ended_at)


def _when(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


# ----------------------------------------------------------------------------------------------------------------------
# The table
# ----------------------------------------------------------------------------------------------------------------------


def table(runs: Sequence[Run]) -> str:
    """Markdown, a column a run; with the ratio of the second to the first where there are two."""
    two = len(runs) == 2
    heads = [run.name + ("" if run.complete else " (not complete)") for run in runs]
    lines = [["", *heads, *(["ratio"] if two else [])], ["---"] * (len(runs) + 1 + two)]
    for name, read_off, form in _ROWS:
        values = [read_off(run) for run in runs]
        cells = ["" if value is None else form.format(value) for value in values]
        lines.append([name, *cells, *([_ratio(values[1], values[0])] if two else [])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(part: float, whole: float | None) -> float | None:
    return part / whole if whole else None


def _mean_step(run: Run, field: str) -> float | None:
    found = [getattr(steps, field) for trial in run.trials if (steps := run.steps(trial))]
    return statistics.fmean(found) if found else None


_ROWS: tuple[tuple[str, Callable[[Run], float | None], str], ...] = (
    ("trials", lambda run: len(run.trials), "{:d}"),
    ("failed", lambda run: run.num_failed, "{:d}"),
    ("cancelled or lost, and run again", lambda run: run.num_dropped, "{:d}"),
    ("wall time, s", lambda run: run.wall_s, "{:.1f}"),
    ("GPU-seconds, worker's start to result", lambda run: run.gpu_s, "{:.1f}"),
    ("GPU-seconds by sacct", lambda run: run.charged_s, "{:.1f}"),
    ("GPUs busy with trials", lambda run: _share(run.gpu_s, run.slots * run.wall_s), "{:.1%}"),
    ("a trial's start-up, s", lambda run: run.mean("startup"), "{:.2f}"),
    ("compilation", lambda run: run.mean("compile"), "{:.2f}"),
    ("training", lambda run: run.mean("train"), "{:.2f}"),
    ("evaluation", lambda run: run.mean("eval"), "{:.2f}"),
    ("the rest", lambda run: run.mean("rest"), "{:.2f}"),
    ("training of the trials' time", lambda run: _share(run.trained_s, run.gpu_s), "{:.1%}"),
    ("training of the GPU-seconds by sacct", lambda run: _share(run.trained_s, run.charged_s), "{:.1%}"),
    ("M tokens/s", lambda run: _share(_mean_step(run, "tokens_per_s") or 0.0, 1e6) or None, "{:.3f}"),
    ("median step, ms", lambda run: _mean_step(run, "median_ms"), "{:.1f}"),
    ("best of all", lambda run: run.curve()[-1][1] if run.curve() else None, "{:.6f}"),
)


def _ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.3f}" if value is not None and base else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The same trainings in two runs: the second's speed by the first's, median and least of the pairs."""

    num_pairs: int
    tokens_per_s: tuple[float, float]
    median_step: tuple[float, float]


def pace(first: Run, second: Run) -> Pace | None:
    """How fast the first trained what both did, as shares of the second's speed; None where no log tells."""
    tokens, step = [], []
    for edit in first.by_edit.keys() & second.by_edit.keys():
        mine, other = first.steps(first.by_edit[edit]), second.steps(second.by_edit[edit])
        if mine and other:
            tokens.append(mine.tokens_per_s / other.tokens_per_s)
            step.append(other.median_ms / mine.median_ms)
    if not tokens:
        return None
    return Pace(
        num_pairs=len(tokens),
        tokens_per_s=(statistics.median(tokens), min(tokens)),
        median_step=(statistics.median(step), min(step)),
    )


def gpus_of(runs: Sequence[Run]) -> list[str]:
    """The kinds of GPU that trials ran on, as the driver names them."""
    return sorted({_result(trial).gpu.name or "no GPU" for run in runs for trial in run.trials})


def in_words(found: Pace, first: Run, second: Run) -> str:
    return (
        f"{found.num_pairs} trainings that both did, {first.name} by {second.name}: tokens/s "
        f"{found.tokens_per_s[0]:.1%} (median; least {found.tokens_per_s[1]:.1%}), speed of the median step "
        f"{found.median_step[0]:.1%} (least {found.median_step[1]:.1%})"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Pictures
# ----------------------------------------------------------------------------------------------------------------------


def draw_curves(runs: Sequence[Run], path: Path) -> None:
    """The best value so far over the wall time, and each trial's own as a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for run, colour in zip(runs, ("#0b6e4f", "#b23a48", "#4a7fb5"), strict=False):
        curve = run.curve()
        if curve:
            xs = [at / 60 for at, _ in curve]
            ys = [value for _, value in curve]
            axes.step([*xs, run.wall_s / 60], [*ys, ys[-1]], where="post", color=colour, label=run.name)
            axes.plot(xs, [value for _, value in run.values()], ".", color=colour, alpha=0.5)
    axes.set_xlabel("minutes of wall time")
    axes.set_ylabel(f"best {runs[0].history.metric} so far")
    if axes.lines:
        axes.legend(frameon=False)
    _plain(axes)
    figure.savefig(path)


def draw_phases(runs: Sequence[Run], path: Path) -> None:
    """What each GPU did, a lane a GPU; below, the GPU-seconds of each run by phase."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.4 + 0.32 * sum(run.slots for run in runs)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [*(0.6 + 0.32 * run.slots for run in runs), 0.6 + 0.4 * len(runs)]
    *lanes, totals = figure.subplots(len(runs) + 1, 1, height_ratios=heights)
    longest = max(run.wall_s for run in runs) / 60
    for axes, run in zip(lanes, runs, strict=True):
        _draw_lanes(axes, run)
        axes.set_xlim(0, longest)
    lanes[-1].set_xlabel("minutes of wall time")
    _draw_totals(totals, runs)
    figure.savefig(path)


def _draw_lanes(axes: "Axes", run: Run) -> None:
    gpus = sorted({_gpu_of(trial) for trial in run.trials})
    for trial in run.trials:
        for phase, begin, length in _bars(run, trial):
            lane = gpus.index(_gpu_of(trial))
            axes.barh(lane, length / 60, left=begin / 60, height=0.8, color=COLOURS[phase], edgecolor="none")
    axes.set_yticks(range(len(gpus)), [f"GPU {visible}" for _, visible in gpus], fontsize=8)
    axes.invert_yaxis()
    axes.set_title(run.name, loc="left", fontsize=9)
    _plain(axes)


def _draw_totals(axes: "Axes", runs: Sequence[Run]) -> None:
    for row, run in enumerate(runs):
        left = 0.0
        sums = {phase: sum(phases(_result(trial))[phase] for trial in run.trials) for phase in PHASES}
        for phase, seconds in sums.items():
            label = phase if row == 0 else None
            axes.barh(row, seconds, left=left, height=0.7, color=COLOURS[phase], label=label)
            left += seconds
        idle = max(0.0, run.slots * run.wall_s - left)
        axes.barh(row, idle, left=left, height=0.7, color="white", edgecolor="#b3b7bd", label=None if row else "idle")
    axes.set_yticks(range(len(runs)), [run.name for run in runs], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("GPU-seconds")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45), ncols=len(PHASES) + 1, fontsize=8, frameon=False)
    _plain(axes)


def _bars(run: Run, trial: Trial) -> Iterator[tuple[str, float, float]]:
    """Phase, begin and length of each part of a trial, in seconds of the run's wall time."""
    begin = run.clock(_span(trial)[0])
    for phase, length in phases(_result(trial)).items():
        yield phase, begin, length
        begin += length


def _gpu_of(trial: Trial) -> tuple[str, str]:
    result = _result(trial)
    return result.host, result.gpu.visible or "?"


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e3e5e8", linewidth=0.7)
    axes.set_axisbelow(True)
