"""What every back end promises, on both of them; then what is Slurm's own."""

import dataclasses
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from client import Sandbox, booted

from autoresearch_hpc.cluster import Cluster, Submission
from autoresearch_hpc.cluster.local import LocalCluster
from autoresearch_hpc.cluster.slurm import SlurmCluster
from autoresearch_hpc.config import ClusterConfig
from autoresearch_hpc.errors import ClusterError
from autoresearch_hpc.files import read_json, write_json_atomic
from autoresearch_hpc.layout import RunLayout, TrialPaths
from autoresearch_hpc.records import CommandSpec, Direction, Metric, Status, TrialResult, TrialSpec, from_json, to_json

HOSTILE = "it's a \"run\" 5% %j \\ é$HOME"


class Bench:
    """A run's directory, submissions of small trials, and waits."""

    def __init__(self, root: Path, kind: type[Any]) -> None:
        self.layout = RunLayout(root / HOSTILE)
        self.kind = kind
        self._places: list[tuple[Cluster, dict[str, str]]] = []

    def place(self, **settings: Any) -> Cluster:
        """A back end; every call makes a new object, as a new controller would."""
        return self.kind(ClusterConfig(**{"queue_poll_s": 0.5, "max_parallel": 4, **settings}))

    def submission(self, job_name: str, commands: list[str]) -> Submission:
        trials = {}
        for index, command in enumerate(commands):
            trial = f"r01-c{index:02d}-t0"
            paths = self.layout.trial(trial)
            paths.root.mkdir(parents=True)
            src = paths.root / "src"
            src.mkdir()
            spec = TrialSpec(
                run=job_name,
                round=1,
                candidate=trial[:-3],
                trial=trial,
                commit="0" * 40,
                seed=index,
                tier="default",
                kind="command",
                src=str(src),
                trial_dir=str(paths.root),
                metric=Metric(name="loss", value=None, direction=Direction.min),
                device="auto",
                train_s=30,
                startup_limit_s=10,
                grace_s=5,
                eval_limit_s=5,
                command=CommandSpec(command=command, metric_regex=r"loss: (\S+)"),
            )
            write_json_atomic(paths.spec, to_json(spec))
            trials[trial] = paths.spec
        array = self.layout.array(1, job_name)
        array.root.mkdir(parents=True)
        return Submission(job_name=job_name, trials=trials, array=array, wall_limit_s=60)

    def launch(self, place: Cluster, submission: Submission) -> Mapping[str, str]:
        jobs = place.launch(submission)
        self._places.append((place, dict(jobs)))
        return jobs

    def results(self, submission: Submission) -> dict[str, TrialResult]:
        found = {}
        for trial, spec in submission.trials.items():
            path = TrialPaths(spec.parent).result
            if path.exists():
                found[trial] = from_json(TrialResult, read_json(path))
        return found

    def clear(self) -> None:
        for place, jobs in self._places:
            place.cancel(jobs)
        for place, jobs in self._places:
            wait(lambda place=place, jobs=jobs: all(s.ended for s in place.poll(jobs).values()), "the end")


def wait(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} not seen within {timeout_s} s"
        time.sleep(0.1)


def words(place: Cluster, jobs: Mapping[str, str]) -> Counter[str]:
    return Counter(state.word for state in place.poll(jobs).values())


@pytest.fixture(params=[SlurmCluster, LocalCluster])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, request.param)
    yield bench
    bench.clear()


@pytest.fixture
def on_slurm(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, SlurmCluster)
    yield bench
    bench.clear()


# both back ends


def test_every_trial_has_a_job_and_leaves_its_result(bench: Bench) -> None:
    place = bench.place()
    place.check(60)
    submission = bench.submission("contract-results", ["echo loss: 0.5", "echo loss: 0.25", "exit 3"])
    jobs = bench.launch(place, submission)
    assert list(jobs) == list(submission.trials)
    assert len(set(jobs.values())) == 3

    wait(lambda: len(bench.results(submission)) == 3, "three results")
    results = bench.results(submission)
    assert [r.metric.value for r in results.values()] == [0.5, 0.25, None]
    assert [r.status for r in results.values()] == [Status.OK, Status.OK, Status.CRASHED]
    assert [r.seed for r in results.values()] == [0, 1, 2]
    wait(lambda: words(place, jobs) == {"COMPLETED": 3}, "the jobs' end")
    assert all(state.ended for state in place.poll(jobs).values())


def test_parallel_trials_are_bounded_and_states_are_told(bench: Bench) -> None:
    place = bench.place(max_parallel=2)
    submission = bench.submission("contract-bounds", ["sleep 1.5; echo loss: 1"] * 4)
    jobs = bench.launch(place, submission)
    seen: list[Counter[str]] = []

    def all_ended() -> bool:
        seen.append(words(place, jobs))
        return seen[-1] == {"COMPLETED": 4}

    wait(all_ended, "four ended jobs")
    assert {"PENDING": 2, "RUNNING": 2} in seen
    assert max(counts["RUNNING"] for counts in seen) == 2
    spans = sorted((r.started_at, r.ended_at) for r in bench.results(submission).values())
    assert len(spans) == 4
    assert spans[2][0] > spans[0][1], "the third started only after the first had ended"


def test_submission_is_found_again_by_its_name_alone(bench: Bench) -> None:
    place = bench.place()
    submission = bench.submission("contract-adopt", ["sleep 3; echo loss: 1", "sleep 3; echo loss: 2"])
    jobs = bench.launch(place, submission)
    wait(lambda: words(place, jobs) == {"RUNNING": 2}, "two running jobs")
    for spec in submission.trials.values():
        wait(TrialPaths(spec.parent).claim(0).exists, "the claim")

    successor = bench.place()
    found = successor.adopt(submission)
    assert found == jobs
    assert words(successor, found) == {"RUNNING": 2}
    some = dataclasses.replace(submission, trials=dict(list(submission.trials.items())[1:]))
    assert bench.place().adopt(some) == {t: j for t, j in jobs.items() if t in some.trials}
    wait(lambda: words(successor, found) == {"COMPLETED": 2}, "the end, as the successor sees it")
    assert [r.metric.value for r in bench.results(submission).values()] == [1.0, 2.0]
    assert bench.place().adopt(submission) == jobs, "a submission that has ended is found too"


def test_unknown_name_is_not_found(bench: Bench) -> None:
    submission = bench.submission("contract-never-submitted", ["true"])
    assert bench.place().adopt(submission) == {}


def test_cancel_ends_running_and_waiting_trials_and_no_others(bench: Bench) -> None:
    place = bench.place(max_parallel=2)
    submission = bench.submission("contract-cancel", ["sleep 2; echo loss: 1", "sleep 60", "sleep 60"])
    jobs = bench.launch(place, submission)
    wait(lambda: words(place, jobs) == {"RUNNING": 2, "PENDING": 1}, "two running, one waiting")
    first, *others = submission.trials
    wait(TrialPaths(submission.trials[others[0]].parent).claim(0).exists, "the claim")
    place.cancel({trial: jobs[trial] for trial in others})
    wait(lambda: all(s.ended for s in place.poll(jobs).values()), "the end", 15)
    wait(lambda: len(bench.results(submission)) == 2, "the results of those that had begun")
    results = bench.results(submission)
    assert results[first].status is Status.OK
    assert results[others[0]].status is Status.CANCELLED
    place.cancel(jobs)  # of what has ended: nothing to do, and no error


def test_variables_of_an_enclosing_job_reach_neither_submission_nor_trial(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    enclosing = {
        "SLURM_JOB_ID": "424242",
        "SLURM_JOBID": "424242",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_RESTART_COUNT": "5",
        "SLURM_CPUS_PER_TASK": "63",
        "SLURM_NTASKS": "9",
        "SLURM_ENCLOSING": "yes",
        "SBATCH_PARTITION": "nowhere",
        "SBATCH_TIMELIMIT": "1",
        "SQUEUE_FORMAT": "%A",
        "SQUEUE_STATES": "FAILED",
        "SACCT_FORMAT": "Account",
    }
    for name, value in enclosing.items():
        monkeypatch.setenv(name, value)
    place = bench.place()
    place.check(60)
    submission = bench.submission("contract-environment", ["env > seen.txt; echo loss: 1"])
    jobs = bench.launch(place, submission)
    wait(lambda: words(place, jobs) == {"COMPLETED": 1}, "the end")
    (result,) = bench.results(submission).values()
    assert (result.status, result.attempt) == (Status.OK, 0)
    assert (result.slurm is not None) == (bench.kind is SlurmCluster)
    assert result.slurm is None or result.slurm.job_id != "424242"
    trial_dir = next(iter(submission.trials.values())).parent
    seen = dict(line.split("=", 1) for line in (trial_dir / "work" / "seen.txt").read_text().splitlines() if "=" in line)
    assert [name for name, value in enclosing.items() if seen.get(name) == value] == []


# Slurm's own

GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-15%4
#SBATCH --begin=now
#SBATCH --constraint=fast
#SBATCH --cpus-per-task=3
#SBATCH --exclude=n1
#SBATCH --exclusive
#SBATCH --gres=gpu:h100:1
#SBATCH --job-name=golden
#SBATCH --mem=1536M
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output='FOLDER/it'"'"'s 5%%/%A_%a_0_log.out'
#SBATCH --partition=main
#SBATCH --qos=low
#SBATCH --signal=USR2@60
#SBATCH --time=12

# setup
module load cuda
export A='b c'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output 'FOLDER/it'"'"'s 5%%/%A_%a_%t_log.out' apptainer exec 'my image.sif' python -P -u -m autoresearch_hpc.trial.worker --array 'FOLDER/it'"'"'s 5%/array.json'
"""
