"""A run's directory, submissions of small real trials, and waits: what the tests of back ends share."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoresearch_hpc.cluster import Cluster, Submission
from autoresearch_hpc.config import ClusterConfig
from autoresearch_hpc.files import read_json, write_json_atomic
from autoresearch_hpc.layout import RunLayout, TrialPaths
from autoresearch_hpc.records import CommandSpec, Direction, Metric, TrialResult, TrialSpec, from_json, to_json

HOSTILE = 'it\'s a "run" 5% %x é$HOME'


class Bench:
    """A run's directory on one kind of back end. What was launched through it is cancelled in the end."""

    def __init__(self, root: Path, kind: type[Any]) -> None:
        self.layout = RunLayout(root / HOSTILE)
        self.kind = kind
        self._places: list[tuple[Cluster, dict[str, str]]] = []

    def place(self, *, pass_env: Sequence[str] = (), **settings: Any) -> Cluster:
        """A back end; every call makes a new object, as a new controller would."""
        return self.kind(ClusterConfig(**{"queue_poll_s": 0.5, "max_parallel": 4, **settings}), pass_env)

    def submission(self, job_name: str, commands: list[str], *, avoid: tuple[str, ...] = ()) -> Submission:
        trials = {}
        for index, command in enumerate(commands):
            trial = f"r01-c{index:02d}-t0"
            paths = self.layout.trial(trial)
            paths.root.mkdir(parents=True, exist_ok=True)
            src = paths.root / "src"
            src.mkdir(exist_ok=True)
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
        return Submission(job_name=job_name, trials=trials, array=array, wall_limit_s=60, avoid=avoid)

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
            wait(lambda place=place, jobs=jobs: ended(place, jobs), "the end")


def wait(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} not seen within {timeout_s} s"
        time.sleep(0.1)


def ended(place: Cluster, jobs: Mapping[str, str]) -> bool:
    states = place.poll(jobs)
    return len(states) == len(jobs) and all(state.ended for state in states.values())


def words(place: Cluster, jobs: Mapping[str, str]) -> Counter[str]:
    return Counter(state.word for state in place.poll(jobs).values())
