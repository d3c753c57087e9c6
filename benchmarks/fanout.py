"""What a fan-out costs beside its training: ours, single sbatch calls with slow polling, and plain submitit.

16 trials a round on the 16 GPUs of the sandbox (docs/sandbox.md), each a process of 20 s. The three take turns, several
times in one run, so that what drifts drifts for all.

  ours      a search as users start it: git commits, one job array a round, journal, verdicts, tables
  sbatch    one sbatch call a trial, then a look at squeue every 15 to 20 s, as agents at a shell do
  submitit  AutoExecutor.map_array and job.result(), with its defaults

    python benchmarks/fanout.py
"""

import argparse
import itertools
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from on_sandbox import Calls, Watched, repository, sandbox, watched

from autoresearch_hpc.history import History
from autoresearch_hpc.journal import read
from autoresearch_hpc.layout import RunLayout

QUESTIONS = ("squeue", "sacct")

SCRIPT = """\
import time
RATE = 0.5
time.sleep({seconds})
print("loss:", (RATE - 0.3) ** 2)
"""

PLAN = """\
# @package _global_
defaults:
  - override /task: command
  - override /agent: random
  - override /decide: best
plan: {{name: fanout, k: 16, max_rounds: {rounds}}}
space:
  knobs:
    RATE: {{type: float, low: 0.0, high: 1.0}}
task:
  script: fit.py
  editable: [fit.py]
  command: {python} -S fit.py
  train_s: 120
  metric: {{name: loss, regex: 'loss: (\\S+)'}}
cluster: {{kind: slurm}}
"""

SBATCH = """\
import random, subprocess, sys, time
rounds, folder, job = int(sys.argv[1]), sys.argv[2], sys.argv[3]
for number in range(rounds):
    begun = time.time()
    ids = []
    for k in range(16):
        answer = subprocess.run(
            ["sbatch", "--parsable", "--gpus-per-node=1", f"--output={folder}/{number}-{k}.out", f"--wrap={job}"],
            capture_output=True, text=True, check=True)
        ids.append(answer.stdout.split(";")[0].strip())
    while subprocess.run(["squeue", "-h", "-j", ",".join(ids)], capture_output=True, text=True).stdout.strip():
        time.sleep(random.uniform(15, 20))
    values = [open(f"{folder}/{number}-{k}.out").read().split("loss:")[1] for k in range(16)]
    print("ROUND", time.time() - begun, flush=True)
"""

SUBMITIT = """\
import subprocess, sys, time, submitit

def trial(job):
    return subprocess.run(job, shell=True, capture_output=True, text=True, check=True).stdout

if __name__ == "__main__":
    rounds, folder, job = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    executor = submitit.AutoExecutor(folder=folder)
    executor.update_parameters(timeout_min=5, gpus_per_node=1, slurm_array_parallelism=16)
    for number in range(rounds):
        begun = time.time()
        values = [job.result() for job in executor.map_array(trial, [job] * 16)]
        print("ROUND", time.time() - begun, flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One contender's turn: seconds of each round, calls of Slurm's commands a minute, share of a core.

    What is known of ours alone: the trials' own seconds of each round, the longest; from the submission until the last
    worker begins; from the last result to the next array; queries a minute and share of a core while all trials run.
    """

    rounds: list[float]
    calls: float
    queries: float
    cpu: float
    longest: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    waiting: tuple[float, float] = (0.0, 0.0)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a fan-out costs, beside two other ways.")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each turn")
    parser.add_argument("--seconds", type=float, default=20.0, help="what a trial takes")
    options = parser.parse_args(words)
    found: dict[str, list[Measured]] = {"ours": [], "submitit": [], "sbatch": []}
    with tempfile.TemporaryDirectory(prefix="fanout-") as folder, sandbox(Path(folder) / "slurm") as environment:
        for turn in range(options.turns):
            for name, measured in found.items():
                place = Path(folder) / f"{name}-{turn}"
                place.mkdir()
                calls = Calls(place / "calls", environment)
                measured.append((_ours if name == "ours" else _other)(name, place, calls, options))
    print(f"{'':9} {'a round':>9} {'beside':>9} {'worst':>9} {'calls/min':>10} {'queries/min':>12} {'CPU':>7}")
    for name, turns in found.items():
        rounds = [seconds for turn in turns for seconds in turn.rounds]
        median = statistics.median(rounds)
        figures = [f"{median:8.2f}s", f"{median - options.seconds:8.2f}s", f"{max(rounds):8.2f}s"]
        figures += [f"{statistics.median(getattr(t, what) for t in turns):10.1f}" for what in ("calls", "queries")]
        print(f"{name:9} {' '.join(figures)} {statistics.median(t.cpu for t in turns):9.1%}")
    for what, each in {
        "the longest trial of a round, by its worker": [t.longest for t in found["ours"]],
        "array submitted to last worker begun": [t.starts for t in found["ours"]],
        "last result to next array": [t.gaps for t in found["ours"]],
    }.items():
        values = [value for turn in each for value in turn]
        print(f"ours, {what}: median {statistics.median(values):.2f} s, worst {max(values):.2f} s")
    queries, cpu = (statistics.median(turn.waiting[i] for turn in found["ours"]) for i in (0, 1))
    print(f"ours, while all trials of a round run: {queries:.1f} queries a minute, {cpu:.1%} of a core")
    return 0


def _ours(name: str, place: Path, calls: Calls, options: argparse.Namespace) -> Measured:
    files = {"fit.py": SCRIPT.format(seconds=options.seconds)}
    files["conf/round/fanout.yaml"] = PLAN.format(rounds=options.rounds, python=sys.executable)
    root = repository(place / "repository", files)
    argv = [sys.executable, "-m", "autoresearch_hpc", "+round=fanout", "tag=fanout"]
    done = watched(argv, root, calls.environment, place / "log")
    assert done.code == 0, (place / "log").read_text()[-2000:]
    history = History.replay(read(RunLayout(root / "runs" / "fanout").journal))
    ends = [_when(round_.closed_at) for round_ in history.rounds]
    submitted = [_when(round_.submitted_at) for round_ in history.rounds]
    results = [[trial.result for trial in round_.trials if trial.result] for round_ in history.rounds]
    begun = [[_when(result.started_at) for result in each] for each in results]
    written = [[_when(result.ended_at) for result in each] for each in results]
    waits = [(max(begin), min(end)) for begin, end in zip(begun, written, strict=True)]
    asked = [at for name, at in calls.times() if name in QUESTIONS]
    queries = sum(begin <= at <= end for begin, end in waits for at in asked)
    return replace(
        _measured([end - begin for begin, end in itertools.pairwise(ends)], calls, done),
        longest=[max(result.phases.total_s or 0.0 for result in each) for each in results],
        starts=[max(begin) - at for begin, at in zip(begun, submitted, strict=True)],
        gaps=[after - max(last) for last, after in zip(written, submitted[1:], strict=False)],
        waiting=(queries / (sum(end - begin for begin, end in waits) / 60), done.share(waits)),
    )


def _other(name: str, place: Path, calls: Calls, options: argparse.Namespace) -> Measured:
    script = place / f"by_{name}.py"
    script.write_text(SBATCH if name == "sbatch" else SUBMITIT)
    (place / "fit.py").write_text(SCRIPT.format(seconds=options.seconds))
    job = shlex.join([sys.executable, "-S", str(place / "fit.py")])
    argv = [sys.executable, str(script), str(options.rounds), str(place), job]
    done = watched(argv, place, calls.environment, place / "log")
    text = (place / "log").read_text()
    assert done.code == 0, text[-2000:]
    rounds = [float(line.split()[1]) for line in text.splitlines() if line.startswith("ROUND")]
    return _measured(rounds, calls, done)


def _measured(rounds: list[float], calls: Calls, done: Watched) -> Measured:
    counts, minutes = calls.counts(), done.alive_s / 60
    asked = sum(counts.get(name, 0) for name in QUESTIONS)
    return Measured(
        rounds=rounds, calls=sum(counts.values()) / minutes, queries=asked / minutes, cpu=done.cpu_s / done.alive_s
    )


def _when(text: str | None) -> float:
    assert text
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    sys.exit(main())
