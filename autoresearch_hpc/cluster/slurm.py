"""Trials as Slurm job arrays: submitit writes and submits the batch script; we ask the queue, all jobs in one question.

The array's task reads its trial from `array.json` by its index. No pickles travel, so nothing has to be done after
`sbatch` has answered, and a controller that dies in that moment loses nothing.
"""

import getpass
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from autoresearch_hpc.cluster.protocol import JobState, Submission, worker_command
from autoresearch_hpc.config import ClusterConfig
from autoresearch_hpc.errors import ClusterError
from autoresearch_hpc.files import read_json, write_json_atomic
from autoresearch_hpc.records import Status

_log = logging.getLogger(__name__)

_WARNING_S = 60  # before Slurm's limit: the worker writes its result
_COMMAND_LIMIT_S = 60
_FORGOTTEN_S = 60.0  # unknown to squeue and sacct for so long: the job is gone
_LIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"} | {
    "RESIZING",
    "SIGNALING",
    "SPECIAL_EXIT",
    "STAGE_OUT",
    "STOPPED",
    "RESV_DEL_HOLD",
}
_MEANING = {"CANCELLED": Status.CANCELLED, "TIMEOUT": Status.TIMEOUT, "OUT_OF_MEMORY": Status.OOM}


class SlurmCluster:
    """The `slurm` back end. Raises ClusterError where Slurm's commands are missing or its daemon does not answer."""

    name = "slurm"
    durable = True

    def __init__(self, config: ClusterConfig) -> None:
        if not shutil.which("sbatch"):
            raise ClusterError("sbatch is not on the PATH", "run on a login node, or use cluster=local")
        self._config = config
        self.num_threads = config.cpus
        self.max_array = _max_array()
        self._asked_at = -math.inf
        self._states: dict[str, JobState] = {}
        self._unknown_since: dict[str, float] = {}

    def check(self, wall_limit_s: float) -> None:
        with tempfile.TemporaryDirectory(prefix="autoresearch-check-") as folder:
            executor = _ArrayExecutor(folder)
            executor.update_parameters(**self._parameters("autoresearch-check", 1, wall_limit_s))
            script = Path(folder) / "check.sh"
            script.write_text(executor.script("true"))
            answer = _run([*_sbatch(), "--test-only", str(script)])
        if answer.returncode != 0:
            raise _refused(answer.stderr)

    def launch(self, submission: Submission) -> Mapping[str, str]:
        submission.array.root.mkdir(parents=True, exist_ok=True)
        write_json_atomic(submission.array.manifest, {"trials": [str(p) for p in submission.trials.values()]})
        executor = _ArrayExecutor(submission.array.root)
        parameters = self._parameters(submission.job_name, len(submission.trials), submission.wall_limit_s)
        executor.update_parameters(**parameters)
        python = self._config.python or shlex.quote(sys.executable)
        command = worker_command(python, ["--array", str(submission.array.manifest)])
        try:
            array = executor.submit_tasks(command, len(submission.trials))
        except (FailedJobError, FailedSubmissionError) as error:
            raise _refused(str(error)) from error
        self._asked_at = -math.inf
        return {trial: f"{array}_{index}" for index, trial in enumerate(submission.trials)}

    def _parameters(self, job_name: str, count: int, wall_limit_s: float) -> dict[str, object]:
        config = self._config
        minutes = config.time_min or math.ceil((wall_limit_s + _WARNING_S + 30) / 60) + 1
        given = {
            "partition": config.partition,
            "account": config.account,
            "qos": config.qos,
            "constraint": config.constraint,
            "exclude": config.exclude,
            "gres": config.gres,
            "gpus_per_node": config.gpus,
            "cpus_per_task": config.cpus,
            "mem": f"{math.ceil(config.mem_gb * 1024)}M" if config.mem_gb else None,
            "array_parallelism": config.max_parallel or count,
            "additional_parameters": config.sbatch or None,
            "setup": config.setup or None,
        }
        return {
            "job_name": job_name,
            "time": minutes,
            "signal_delay_s": _WARNING_S,
            "stderr_to_stdout": True,
            "use_srun": config.use_srun,
            "wckey": None,
            **{key: value for key, value in given.items() if value is not None},
        }

    def adopt(self, submission: Submission) -> Mapping[str, str]:
        arrays = _ask(
            ["squeue", "-h", "-t", "all", "-u", getpass.getuser(), f"--name={submission.job_name}", "-o", "%F"]
        )
        if not arrays:
            since = ["-S", "now-30days"]
            arrays = _ask(["sacct", "-n", "-P", "-X", *since, f"--name={submission.job_name}", "-o", "JobID"])
        ids = sorted({line.split("_")[0] for line in arrays or []}, key=int)
        if not ids:
            return {}
        order = [str(path) for path in read_json(submission.array.manifest)["trials"]]
        return {trial: f"{ids[0]}_{order.index(str(spec))}" for trial, spec in submission.trials.items()}

    def poll(self, jobs: Mapping[str, str]) -> Mapping[str, JobState]:
        if time.monotonic() - self._asked_at >= self._config.queue_poll_s:
            self._asked_at = time.monotonic()
            self._states |= self._query(set(jobs.values()))
        return {trial: self._states[job] for trial, job in jobs.items() if job in self._states}

    def _query(self, jobs: set[str]) -> dict[str, JobState]:
        arrays = ",".join(sorted({job.split("_")[0] for job in jobs}))
        if not arrays:
            return {}
        lines = _ask(["squeue", "-h", "-r", "-t", "all", "-j", arrays, "-o", "%F_%K|%T"])
        states = _read_states(lines or [])
        forgotten = jobs - set(states)
        if forgotten:
            arrays = ",".join(sorted({job.split("_")[0] for job in forgotten}))
            lines = _ask(["sacct", "-n", "-P", "-X", "-j", arrays, "-o", "JobID,State"])
            states = _read_states(lines or []) | states
        for job in jobs - set(states):
            since = self._unknown_since.setdefault(job, time.monotonic())
            if time.monotonic() - since > _FORGOTTEN_S:
                states[job] = JobState("UNKNOWN", ended=True)
        return states

    def cancel(self, jobs: Mapping[str, str]) -> None:
        if jobs:
            answer = _run(["scancel", *jobs.values()])
            if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
                raise ClusterError(f"scancel refused: {_last_line(answer.stderr)}", "cancel the jobs by hand")


class _ArrayExecutor(submitit.SlurmExecutor):
    """submitit's executor, submitting one command as an array of any size."""

    def submit_tasks(self, command: str, count: int) -> str:
        """Submit; the array's job id. Raises submitit's FailedJobError and FailedSubmissionError."""
        self.parameters["map_count"] = count
        return str(self._submit_command(command).job_id)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return [*_sbatch(), str(submission_file_path)]

    def script(self, command: str) -> str:
        """The batch script of a one-task array."""
        self.parameters["map_count"] = 1
        return str(self._make_submission_file_text(command, "check"))


def _sbatch() -> list[str]:
    """sbatch without the variables of an enclosing job, which would override the script's own options."""
    enclosing = [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]
    return ["env", *(f"--unset={name}" for name in enclosing), "sbatch"]


def _refused(answer: str) -> ClusterError:
    return ClusterError(f"sbatch refused: {_last_line(answer)}", "correct cluster.* or ask what your site allows")


def answers() -> bool:
    """Whether there is a Slurm here whose controller daemon answers."""
    return bool(shutil.which("sbatch")) and _run(["scontrol", "ping"]).returncode == 0


def _max_array() -> int:
    for line in _ask(["scontrol", "show", "config"]) or []:
        if line.startswith("MaxArraySize"):
            return max(1, int(line.split("=")[1]))
    raise ClusterError("Slurm's controller daemon does not answer", "try scontrol ping, or use cluster=local")


def _read_states(lines: Sequence[str]) -> dict[str, JobState]:
    states = {}
    for line in lines:
        job, _, word = line.partition("|")
        word = word.split(" ")[0]  # "CANCELLED by 1000"
        states[job] = JobState(word, ended=word not in _LIVE, status=_MEANING.get(word, Status.LOST))
    return states


def _ask(command: list[str]) -> list[str] | None:
    """The lines of a query's answer; None where it failed, which is logged."""
    answer = _run(command)
    if answer.returncode == 0:
        return answer.stdout.split("\n")[:-1]
    if "Invalid job id" not in answer.stderr:  # squeue's word for jobs that it has forgotten
        _log.warning("%s failed: %s", command[0], _last_line(answer.stderr))
    return None


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {_COMMAND_LIMIT_S} s")
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", "not installed")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
