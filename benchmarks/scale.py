"""A whole search at scale: 13 + 3 GPUs of two kinds, hundreds of experiments, one controller killed on the way.

Everything is real but the training: Slurm (the sandbox of docs/sandbox.md), git, submitit, the controller, the
factorial agent, workers. The stand-in trainer is a process that takes 18 to 22 s, a fifteenth of a real one, so
whatever the tool costs weighs fifteen times as much as it would. Its score is a surface with interactions, and luck.

    python benchmarks/scale.py                     # 57 waves of 13, their best on 3 other GPUs: 922 trials
    python benchmarks/scale.py --waves 30 --schedule rounds --images docs/images
"""

import argparse
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from on_sandbox import Calls, repository, sandbox, watched

from autoresearch_hpc.history import History, Trial
from autoresearch_hpc.journal import read
from autoresearch_hpc.layout import RunLayout

SLOTS = {"h100": 13, "h200": 3}

SCRIPT = """\
import math, os, random, time
MATRIX_LR = 0.04
EMBEDDING_LR = 0.6
BATCH = 2**18
WIDTH = 512
WARMUP = 0.05
WINDOW = "SSSL"
luck = random.Random(int(os.environ["AUTORESEARCH_SEED"]))
time.sleep(luck.uniform({low}, {high}))
rate, embedding = math.log2(MATRIX_LR / 0.04), math.log2(EMBEDDING_LR / 0.6)
batch, width = math.log2(BATCH / 2**18), (WIDTH - 512) / 256
loss = 1 + 0.02 * (rate - 1.4 - 0.5 * (batch + 1)) ** 2 + 0.01 * (batch + 1) ** 2 + 0.004 * (embedding + 0.4) ** 2
loss += 0.012 * (width - 1.2) ** 2 + 0.004 * rate * width
print("loss:", loss + luck.gauss(0, 0.002))
"""

PLAN = """\
# @package _global_
defaults:
  - override /task: command
  - override /agent: factorial
plan: {{name: scale, k: 13, max_rounds: {rounds}, baseline: joined, validate: {{top: 1, seeds: 3}}}}
agent: {{design: {{resolution: 4}}}}
schedule: {schedule}
decide: {{incumbent_trials: 3, noise_sd: 0.002}}
space:
  knobs:
    MATRIX_LR: {{type: float, low: 0.01, high: 0.16, log: true}}
    EMBEDDING_LR: {{type: float, low: 0.15, high: 2.4, log: true}}
    BATCH: {{type: pow2, low: 65536, high: 1048576}}
    WIDTH: {{type: int, low: 256, high: 1024}}
    WARMUP: {{type: float, low: 0.0, high: 0.1}}
    WINDOW: {{choices: [SSSL, L]}}
task:
  script: fit.py
  editable: [fit.py]
  command: {python} -S fit.py
  train_s: 60
  grace_s: 10
  startup_limit_s: 10
  metric: {{name: loss, regex: 'loss: (\\S+)'}}
cluster:
  kind: slurm
  gpus: null
  backlog: {backlog}
  poll_s: 0.25
  tiers:
    h100: {{gres: gpu:h100:1, max_parallel: 13, price_per_gpu_hour: 2.0}}
    h200: {{gres: gpu:h200:1, max_parallel: 3, price_per_gpu_hour: 3.0}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A trial at work on its GPU, in seconds since the first one began."""

    trial: Trial
    begin: float
    end: float

    @property
    def tier(self) -> str:
        return self.trial.tier


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A search at scale on the Slurm of this machine.")
    parser.add_argument("--waves", type=int, default=57)
    parser.add_argument("--schedule", choices=("async", "rounds"), default="async")
    parser.add_argument("--seconds", type=float, nargs=2, default=(18.0, 22.0), help="what a training takes")
    parser.add_argument("--no-kill", action="store_true", help="let the first controller live")
    parser.add_argument("--images", type=Path, help="a folder for scale.png")
    parser.add_argument("--keep", type=Path, help="a folder for the run's files")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="scale-") as folder, sandbox(Path(folder) / "slurm") as environment:
        run = Run(Path(folder) / "repository", environment, options)
        run.play()
        figures = list(run.figures())
        width = max(len(name) for name, _ in figures)
        for name, value in figures:
            print(f"{name:<{width}}  {value}")
        if options.images:
            run.picture(options.images / "scale.png")
        if options.keep:
            shutil.copytree(run.layout.root, options.keep, dirs_exist_ok=True)
    return 0


class Run:
    """One search: the repository, the controllers one after another, and what was measured."""

    def __init__(self, root: Path, environment: Mapping[str, str], options: argparse.Namespace) -> None:
        self._root, self._options = root, options
        self._calls = Calls(root.parent / "calls", environment)
        self._cpu_s, self._alive_s = 0.0, 0.0
        self.layout = RunLayout(root / "runs" / "scale")
        plan = {"schedule": options.schedule, "rounds": options.waves - 1, "python": sys.executable}
        plan["backlog"] = 6 if options.schedule == "async" else 0
        low, high = options.seconds
        files = {"conf/round/scale.yaml": PLAN.format(**plan), "fit.py": SCRIPT.format(low=low, high=high)}
        repository(root, files)

    def play(self) -> None:
        """The whole search; the first controller is killed when half of the candidates have been tried."""
        if not self._options.no_kill:
            killed = self._controller(until=self._options.waves // 2)
            assert killed == -signal.SIGKILL, f"the first controller ended by itself: {killed}"
            time.sleep(3)
        code = self._controller(until=None)
        assert code == 0, f"exit code {code}: {(self._root.parent / 'log').read_text()[-2000:]}"

    def _controller(self, until: int | None) -> int:
        def far_enough() -> bool:
            return until is not None and (self.layout.root / "rounds" / f"{until:02d}" / "arrays").exists()

        argv = [sys.executable, "-m", "autoresearch_hpc", "+round=scale", "tag=scale"]
        log, environment = self._root.parent / "log", self._calls.environment
        done = watched(argv, self._root, environment, log, far_enough)
        self._alive_s += done.alive_s
        self._cpu_s += done.cpu_s
        return done.code

    # what came of it

    def figures(self) -> Iterator[tuple[str, str]]:
        history = self._history
        spans = self._spans(history)
        total, num_gpus = max(span.end for span in spans), sum(SLOTS.values())
        last = max(s.begin for s in spans if s.tier == "h100")
        held = sum(span.end - span.begin for span in spans)
        trained = sum(_phases(span.trial).train_s or 0.0 for span in spans)
        busy = {tier: _busy(spans, tier, total) for tier in SLOTS}
        experiments = sum(bool(entry.result) for entry in history.entries())
        kept = [entry.id for entry in history.entries() if entry.verdict == "keep"]
        yield "waves, candidates, trials", f"{len(history.rounds)}, {experiments}, {len(spans)}"
        yield "a training takes", f"{statistics.mean(_phases(s.trial).train_s or 0 for s in spans):.2f} s"
        yield "wall time, first to last trial", f"{total / 60:.1f} min"
        yield "GPUs busy, whole run", f"{held / (num_gpus * total):.1%}"
        for tier, share in busy.items():
            yield f"  on {SLOTS[tier]} x {tier}", f"{share:.1%}"
        until = sum(min(s.end, last) - s.begin for s in spans if s.begin < last)
        yield "GPUs busy, until the last candidate", f"{until / (num_gpus * last):.1%}"
        yield "GPUs training, whole run", f"{trained / (num_gpus * total):.1%}"
        ideal = 3600 / statistics.mean(_phases(s.trial).train_s or 0 for s in spans)
        yield "trials per GPU-hour", f"{len(spans) / (num_gpus * total / 3600):.1f} of {ideal:.1f}"
        yield "controller's CPU", f"{self._cpu_s / self._alive_s:.1%} of a core, its Slurm commands included"
        yield (
            "calls a minute",
            ", ".join(f"{n / (self._alive_s / 60):.1f} {name}" for name, n in self._calls.counts().items()),
        )
        yield (
            "lost, run twice",
            f"{sum(t.result.status == 'LOST' for t in history.trials() if t.result)}, {self._twice()}",
        )
        yield "kept", f"{len(kept)}: {', '.join(kept)}"
        baseline, incumbent = history.entry("r00-c00"), history.incumbent
        assert incumbent
        yield (
            "on the H200s, baseline to best",
            f"{baseline.value:.4f} -> {history.entry(incumbent.candidate).value:.4f}",
        )

    @property
    def _history(self) -> History:
        return History.replay(read(self.layout.journal))

    def _spans(self, history: History) -> list[Span]:
        results = [(trial, trial.result) for trial in history.trials() if trial.result]
        zero = min(datetime.fromisoformat(result.started_at) for _, result in results)
        return [
            Span(
                trial=trial,
                begin=(datetime.fromisoformat(result.started_at) - zero).total_seconds(),
                end=(datetime.fromisoformat(result.ended_at) - zero).total_seconds(),
            )
            for trial, result in results
        ]

    def _twice(self) -> int:
        """Trials with more than one claim, and trial ids submitted in more than one array that was taken."""
        claims = Counter(path.parent for path in self.layout.root.glob("rounds/*/*/trials/*/claim-*.json"))
        return sum(count > 1 for count in claims.values())

    def picture(self, path: Path) -> None:
        """GPUs at work over time, by tier, and the validated score of the incumbent below."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        history = self._history
        spans = self._spans(history)
        figure = Figure(figsize=(10, 5.4), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        for tier, colour in (("h100", "#1f5fa8"), ("h200", "#c26a1b")):
            times, counts = _at_work([s for s in spans if s.tier == tier])
            upper.step(
                [t / 60 for t in times],
                counts,
                where="post",
                color=colour,
                linewidth=0.8,
                label=f"{tier}, of {SLOTS[tier]}",
            )
        killed = _killed_at(self.layout, spans, history)
        for at in killed:
            upper.axvline(at / 60, color="#b23a48", linestyle="--", linewidth=1.0, label="controller killed")
        upper.set_ylabel("GPUs with a trial")
        upper.set_ylim(0, 14)
        upper.legend(loc="lower right", ncols=3, fontsize=8, frameon=False)
        begin_of = {span.trial.id: span for span in spans}
        kept = [e for e in history.entries() if e.verdict == "keep"]
        xs = [
            max(begin_of[t.id].end for t in e.trials if t.tier == "h200" and t.round == e.candidate.round) / 60
            for e in kept
            if e.candidate
        ]
        ys = [e.value for e in kept if e.value is not None]
        lower.step([*xs, max(s.end for s in spans) / 60], [*ys, ys[-1]], where="post", color="#0b6e4f")
        lower.scatter(xs, ys, color="#0b6e4f", s=24)
        lower.set_ylabel("loss of the incumbent\n(on the h200 tier)")
        lower.set_xlabel("minutes")
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#e3e5e8", linewidth=0.7)
        figure.savefig(path)


def _phases(trial: Trial):
    assert trial.result
    return trial.result.phases


def _busy(spans: Sequence[Span], tier: str, total: float) -> float:
    return sum(span.end - span.begin for span in spans if span.tier == tier) / (SLOTS[tier] * total)


def _at_work(spans: Sequence[Span]) -> tuple[list[float], list[int]]:
    """When the number of trials at work changes, and what it is from then on."""
    changes = sorted([(span.begin, 1) for span in spans] + [(span.end, -1) for span in spans])
    times, counts, now = [0.0], [0], 0
    for at, change in changes:
        now += change
        times.append(at)
        counts.append(now)
    return times, counts


def _killed_at(layout: RunLayout, spans: Sequence[Span], history: History) -> list[float]:
    """When a controller was resumed, in seconds since the first trial began."""
    zero = min(datetime.fromisoformat(s.trial.result.started_at) for s in spans if s.trial.result)
    return [(datetime.fromisoformat(begin) - zero).total_seconds() for begin, _ in history.active[1:]]


if __name__ == "__main__":
    sys.exit(main())
