"""Trials as Slurm job arrays: submitit writes and submits the batch script; we ask the queue, all jobs in one question.

The array's task reads its trial from `array.json` by its index. No pickles travel, so nothing has to be done after
`sbatch` has answered, and a controller that dies in that moment loses nothing.
"""

import contextlib
import functools
import getpass
import io
import logging
import math
import os
import re
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
from submitit.slurm.slurm import _make_sbatch_string

from autoresearch_hpc.cluster.protocol import (
    JobState,
    Submission,
    enclosing_variables,
    require_usable,
    worker_command,
)
from autoresearch_hpc.config import ClusterConfig
from autoresearch_hpc.errors import ClusterError
from autoresearch_hpc.files import read_json, write_json_atomic
from autoresearch_hpc.records import Status

_log = logging.getLogger(__name__)

_WARNING_S = 60  # before Slurm's limit: the worker writes its result
_COMMAND_LIMIT_S = 60
_RETRY_S = (2.0, 10.0)  # before sbatch is tried again
_TRANSIENT = re.compile(r"timed out|unable to contact|connection refused|zero bytes|temporarily unable", re.IGNORECASE)
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

    def check(self, wall_limit_s: float, folder: Path) -> None:
        require_usable(folder)
        with tempfile.TemporaryDirectory(prefix="autoresearch-check-") as empty:
            executor = _ArrayExecutor(empty)
            executor.update_parameters(**self._parameters("autoresearch-check", 1, wall_limit_s))
            script = Path(empty) / "check.sh"
            script.write_text(executor.script("true"))
            answer = _run([*_sbatch(), "--test-only", str(script)])
        if answer.returncode != 0:
            raise _refused(answer.stderr)

    def launch(self, submission: Submission) -> Mapping[str, str]:
        submission.array.root.mkdir(parents=True, exist_ok=True)
        write_json_atomic(submission.array.manifest, submission.manifest())
        executor = _ArrayExecutor(submission.array.root)
        parameters = self._parameters(submission.job_name, len(submission.trials), submission.wall_limit_s)
        executor.update_parameters(**parameters)
        python = self._config.python or shlex.quote(sys.executable)
        command = worker_command(python, ["--array", str(submission.array.manifest)])
        self._asked_at = -math.inf
        for pause_s in (*_RETRY_S, None):
            try:
                array = executor.submit_tasks(command, len(submission.trials))
                return {trial: f"{array}_{index}" for index, trial in enumerate(submission.trials)}
            except (FailedJobError, FailedSubmissionError) as error:
                if pause_s is None or not _TRANSIENT.search(str(error)):
                    raise _refused(str(error)) from error
                _log.warning("sbatch failed: %s; looking whether it went through", _last_line(str(error)))
            time.sleep(pause_s)
            if found := self.adopt(submission):
                return found
        raise AssertionError("the last attempt returns or raises")

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
        if arrays is None:
            problem = f"squeue does not answer: unknown whether {submission.job_name} was submitted"
            raise ClusterError(problem, "start again when it does")
        if not arrays:
            since = ["-S", "now-30days"]
            arrays = _ask(["sacct", "-n", "-P", "-X", *since, f"--name={submission.job_name}", "-o", "JobID"])
        ids = sorted({id_ for line in arrays or [] if (id_ := line.split("_")[0]).isdigit()}, key=int)
        if not ids:
            return {}
        order = list(read_json(submission.array.manifest)["ids"])
        return {trial: f"{ids[0]}_{order.index(trial)}" for trial in submission.trials}

    def poll(self, jobs: Mapping[str, str]) -> Mapping[str, JobState]:
        if time.monotonic() - self._asked_at >= self._config.queue_poll_s:
            self._asked_at = time.monotonic()
            self._states |= self._query(set(jobs.values()))
        return {trial: self._states[job] for trial, job in jobs.items() if job in self._states}

    def _query(self, jobs: set[str]) -> dict[str, JobState]:
        arrays = ",".join(sorted({job.split("_")[0] for job in jobs}))
        if not arrays:
            return {}
        queue = _ask(["squeue", "-h", "-r", "-t", "all", "-j", arrays, "-o", "%F_%K|%T"])
        states = _read_states(queue or [])
        forgotten = jobs - set(states)
        if forgotten:
            arrays = ",".join(sorted({job.split("_")[0] for job in forgotten}))
            lines = _ask(["sacct", "-n", "-P", "-X", "-j", arrays, "-o", "JobID,State"])
            states = _read_states(lines or []) | states
        self._unknown_since = {job: since for job, since in self._unknown_since.items() if job not in states}
        for job in jobs - set(states) if queue is not None else ():  # silence is no news of a job
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
        with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats there what the exception says as well
            return str(self._submit_command(command).job_id)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        folder = str(self.folder).replace("%", "%%")  # in the names of log files Slurm fills in %x and the like
        return str(_make_sbatch_string(command=command, folder=folder, **self.parameters))

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return [*_sbatch(), str(submission_file_path)]

    def script(self, command: str) -> str:
        """The batch script of a one-task array."""
        self.parameters["map_count"] = 1
        return str(self._make_submission_file_text(command, "check"))


_PREFIX = re.compile(r"^(sbatch: )?(error: )?((allocation failure|Batch job submission failed): )?")


def _sbatch() -> list[str]:
    """sbatch without the variables of an enclosing job, which would override the script's own options."""
    return ["env", *(f"--unset={name}" for name in enclosing_variables()), "sbatch"]


def _refused(answer: str) -> ClusterError:
    """All that sbatch said, in one line: its general last line often hides which value was meant."""
    lines = [_PREFIX.sub("", line.strip()) for line in answer.splitlines()]
    said = ", ".join(dict.fromkeys(line for line in lines if line and not line.startswith("Try "))) or "no reason given"
    return ClusterError(f"sbatch refused: {said}", "correct cluster.* or ask what your site allows")


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
    """The lines of a query's answer; None where it failed, which is logged once."""
    answer = _run(command)
    if answer.returncode == 0:
        return answer.stdout.split("\n")[:-1]
    if "Invalid job id" in answer.stderr:  # squeue's word for jobs that it has forgotten
        return []
    _warn_once(f"{command[0]} failed: {_last_line(answer.stderr)}")
    return None


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    hidden = set(enclosing_variables())
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {_COMMAND_LIMIT_S} s")
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", "not installed")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
