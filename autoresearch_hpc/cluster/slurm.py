"""Trials as Slurm job arrays: submitit writes the batch script, sbatch takes it, and a watcher asks the queue.

The array's task reads its trial from `array.json` by its index. No pickles travel, so nothing has to be done after
`sbatch` has answered, and a controller that dies in that moment loses nothing.
"""

import logging
import math
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from autoresearch_hpc.cluster import questions
from autoresearch_hpc.cluster.commands import compressed, run, warn_once
from autoresearch_hpc.cluster.protocol import JobState, Submission, require_usable, worker_command
from autoresearch_hpc.cluster.queue import Watcher
from autoresearch_hpc.cluster.submit import ArrayExecutor, about_nodes, limit_s
from autoresearch_hpc.config import ClusterConfig
from autoresearch_hpc.errors import ClusterError, NoAnswerError, NoRoomError
from autoresearch_hpc.files import read_json, write_json_atomic

_log = logging.getLogger(__name__)

_WARNING_S = 60  # before Slurm's limit: the worker writes its result
_CANCEL_TRIES_S = 20.0
_CANCEL_CHUNK = 500  # tasks in one word of a command line
_MOST_TARGETS = 20  # words
_SACCT_PATIENCE_S = 60.0  # of a name that squeue does not know, while sacct fails


class SlurmCluster:
    """The `slurm` back end. Raises ClusterError where Slurm's commands are missing or its daemon does not answer."""

    name = "slurm"
    durable = True

    def __init__(self, config: ClusterConfig, pass_env: Sequence[str] = ()) -> None:
        if not shutil.which("sbatch"):
            raise ClusterError("sbatch is not on the PATH", "run on a login node, or use cluster=local")
        self._config, self._pass_env = config, pass_env
        self.num_threads = config.cpus
        self.max_array = _max_array()
        self._accounting = questions.Accounting(config.gpus or 1)
        self._watcher = Watcher(config.queue_poll_s, self._accounting)
        self._sacct_failing_since: dict[str, float] = {}

    @property
    def accounts(self) -> bool:
        return not self._accounting.off

    def check(self, wall_limit_s: float, folder: Path) -> None:
        require_usable(folder)
        with tempfile.TemporaryDirectory(prefix="autoresearch-check-") as empty:
            for tier in self._config.tier_names:
                executor = ArrayExecutor(empty, self._pass_env)
                executor.update_parameters(**self._parameters("autoresearch-check", 1, wall_limit_s, tier))
                try:
                    executor.test()
                except (NoRoomError, NoAnswerError) as error:
                    _log.warning("not known whether trials would be accepted: %s", error)

    def job_limit_s(self, wall_limit_s: float) -> float:
        given = [limit_s(self._config.on(tier).sbatch.get("time")) for tier in self._config.tier_names]
        return max(limit or 60.0 * self._minutes(wall_limit_s) for limit in given)

    def launch(self, submission: Submission) -> Mapping[str, str]:
        submission.array.root.mkdir(parents=True, exist_ok=True)
        write_json_atomic(submission.array.manifest, submission.manifest())
        try:
            array = self._submit(submission, submission.avoid)
        except (NoRoomError, NoAnswerError):
            raise
        except ClusterError as error:
            if not about_nodes(error):
                raise
            array = self._submit_anywhere(submission, error)
        jobs = {trial: f"{array}_{index}" for index, trial in enumerate(submission.trials)}
        self._watcher.submitted(jobs.values())
        return jobs

    def _submit_anywhere(self, submission: Submission, refusal: ClusterError) -> str:
        """Use the nodes to avoid again. Where there are none even so, some may come back: `check` has found them."""
        try:
            if submission.avoid:
                warn_once(f"there are no nodes but those to avoid ({', '.join(submission.avoid)}): they are used again")
                return self._submit(submission, ())
        except ClusterError as error:
            if not about_nodes(error):
                raise
            refusal = error
        if "nvalid node" in str(refusal):
            raise refusal
        raise NoAnswerError(f"no node takes the trials now: {refusal}") from refusal

    def _submit(self, submission: Submission, avoid: tuple[str, ...]) -> str:
        executor = ArrayExecutor(submission.array.root, self._pass_env)
        count = len(submission.trials)
        name, tier = submission.job_name, submission.tier
        executor.update_parameters(**self._parameters(name, count, submission.wall_limit_s, tier, avoid))
        python = self._config.python or shlex.quote(sys.executable)
        return executor.submit_tasks(worker_command(python, ["--array", str(submission.array.manifest)]), count)

    def _minutes(self, wall_limit_s: float) -> int:
        return self._config.time_min or math.ceil((wall_limit_s + _WARNING_S + 30) / 60) + 1

    def _parameters(
        self, job_name: str, count: int, wall_limit_s: float, tier: str, avoid: tuple[str, ...] = ()
    ) -> dict[str, object]:
        config = self._config.on(tier)
        further = dict(config.sbatch)
        excluded = [str(further.pop("exclude", None) or config.exclude or ""), *avoid]
        given = {
            "partition": config.partition,
            "account": config.account,
            "qos": config.qos,
            "constraint": config.constraint,
            "exclude": ",".join(dict.fromkeys(filter(None, excluded))) or None,
            "gres": config.gres,
            "gpus_per_node": config.gpus,
            "cpus_per_task": config.cpus,
            "mem": f"{math.ceil(config.mem_gb * 1024)}M" if config.mem_gb else None,
            "array_parallelism": config.max_parallel or count,
            "additional_parameters": further or None,
            "setup": config.setup or None,
        }
        return {
            "job_name": job_name,
            "time": self._minutes(wall_limit_s),
            "signal_delay_s": _WARNING_S,
            "stderr_to_stdout": True,
            "use_srun": config.use_srun,
            "wckey": None,
            **{key: value for key, value in given.items() if value is not None},
        }

    def adopt(self, submission: Submission) -> Mapping[str, str] | None:
        name = submission.job_name
        listed = questions.squeue_named(name)
        if listed is None:
            return None
        order = _order(submission)
        found = _found(order, listed)
        if len(found) < len(order):
            recorded = self._accounting.named(name)
            if recorded is None and not listed and not self._squeue_alone_decides(name):
                return None
            listed |= recorded or set()
            found = _found(order, listed)
            if listed and (recorded is None or any(questions.index_of(job) is None for job in listed)):
                # Nobody can list the others: forgotten by squeue, or cancelled. But the array was submitted whole.
                array = questions.arrays_of(listed)[0]
                found = {trial: found.get(trial, f"{array}_{index}") for trial, index in order.items()}
        return {trial: found[trial] for trial in submission.trials if trial in found}

    def _squeue_alone_decides(self, name: str) -> bool:
        """Whether there is no sacct, or none that works: then a worker's claim keeps a trial from running twice."""
        if self._accounting.off:
            return True
        since = self._sacct_failing_since.setdefault(name, time.monotonic())
        if time.monotonic() - since < _SACCT_PATIENCE_S:
            return False
        warn_once("sacct goes on failing: what squeue does not know counts as never submitted")
        return True

    def poll(self, jobs: Mapping[str, str]) -> Mapping[str, JobState]:
        states = self._watcher.states(set(jobs.values()))
        return {trial: states[job] for trial, job in jobs.items() if job in states}

    def charges(self, jobs: Mapping[str, str]) -> Mapping[str, float]:
        charges = self._watcher.charges(set(jobs.values()))
        return {trial: charges[job] for trial, job in jobs.items() if job in charges}

    def cancel(self, jobs: Mapping[str, str]) -> None:
        targets = _targets(jobs.values())
        deadline = time.monotonic() + _CANCEL_TRIES_S
        pause_s = 1.0
        while targets:
            answer = run(["scancel", *targets[:_MOST_TARGETS]])
            if answer.ok or re.search(r"Invalid job id|already complet", answer.err):
                del targets[:_MOST_TARGETS]
            elif answer.silent and time.monotonic() + pause_s < deadline:
                warn_once(f"scancel got no answer: {answer.reason}; trying again")
                time.sleep(pause_s)
                pause_s *= 2
            else:
                raise ClusterError(f"scancel failed: {answer.reason}", f"cancel by hand: scancel {targets[0]} …")
        self._watcher.hurry()


def _targets(jobs: Iterable[str]) -> list[str]:
    """What scancel is told: `7_[0-4,6]`, some hundred tasks at most in each."""
    indices: dict[str, list[int]] = defaultdict(list)
    for job in jobs:
        if (index := questions.index_of(job)) is not None:
            indices[questions.array_of(job)].append(index)
    return [
        f"{array}_[{compressed(sorted(tasks)[first : first + _CANCEL_CHUNK])}]"
        for array, tasks in indices.items()
        for first in range(0, len(tasks), _CANCEL_CHUNK)
    ]


def _order(submission: Submission) -> dict[str, int]:
    """The trials' indices in the array, as the manifest that was written before it was submitted has them."""
    try:
        ids = list(read_json(submission.array.manifest)["ids"])
    except FileNotFoundError:  # not even begun
        ids = list(submission.trials)
    return {trial: index for index, trial in enumerate(ids) if trial in submission.trials}


def _found(order: Mapping[str, int], jobs: set[str]) -> dict[str, str]:
    """The job of each trial; the oldest one, should there be several arrays of the name."""
    first: dict[int, str] = {}
    for job in sorted(jobs, key=lambda job: int(questions.array_of(job))):
        if (index := questions.index_of(job)) is not None:
            first.setdefault(index, job)
    return {trial: first[index] for trial, index in order.items() if index in first}


def answers() -> bool:
    """Whether there is a Slurm here whose controller daemon answers."""
    return bool(shutil.which("sbatch")) and run(["scontrol", "ping"]).ok


def _max_array() -> int:
    """The most tasks of an array: MaxArraySize bounds the index, and a site may bound the number of tasks as well."""
    answer = run(["scontrol", "show", "config"])
    sizes = re.findall(r"^MaxArraySize\s*=\s*(\d+)", answer.out, re.MULTILINE)
    if not answer.ok or not sizes:
        raise ClusterError("Slurm's controller daemon does not answer", "try scontrol ping, or use cluster=local")
    sizes += re.findall(r"^SchedulerParameters\s*=.*\bmax_array_tasks=(\d+)", answer.out, re.MULTILINE)
    return max(1, min(map(int, sizes)))
