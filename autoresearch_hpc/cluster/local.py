"""Trials on this machine, through submitit's local controller: at most `max_parallel` at once, one GPU each.

Each tier has slots of its own. Where there are GPUs, they are the ones whose name has the tier's gres in it.

Waiting trials are kept here and started by `poll`. Running ones outlive the controller; `adopt` finds them by the
claims that their workers left.
"""

import contextlib
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_hpc.cluster.protocol import (
    JobState,
    Submission,
    job_environment,
    require_usable,
    worker_command,
)
from autoresearch_hpc.config import ClusterConfig
from autoresearch_hpc.errors import require
from autoresearch_hpc.files import read_json, write_json_atomic
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import Status

_PENDING = JobState(
    "PENDING", ended=False, reason="as many trials as cluster.max_parallel or the GPUs allow are running"
)
_RUNNING = JobState("RUNNING", ended=False, node=socket.gethostname())
_ENDED = JobState("COMPLETED", ended=True, node=socket.gethostname())
_CANCELLED = JobState("CANCELLED", ended=True, status=Status.CANCELLED)
_MARGIN_S = 120.0


@dataclass(slots=True)
class _Pool:
    """A tier's slots."""

    num_slots: int
    gpus: list[str]  # as CUDA_VISIBLE_DEVICES names them; none: trials run on the CPU
    free_gpus: list[str]
    num_running: int = 0

    @property
    def free(self) -> bool:
        return self.num_running < self.num_slots and bool(self.free_gpus or not self.gpus)


@dataclass(slots=True)
class _Running:
    spec: Path
    pool: _Pool
    gpu: str | None  # as CUDA_VISIBLE_DEVICES names it
    pid: int  # of submitit's parent process, or of an adopted worker; 0: on another host
    process: "subprocess.Popen[bytes] | None" = None

    def alive(self) -> bool:
        if self.process:
            return self.process.poll() is None
        return _is_worker(self.pid, self.spec)


class LocalCluster:
    """The `local` back end."""

    name = "local"
    durable = False  # what waits, waits in the controller
    max_array = 1_000_000
    accounts = False

    def __init__(self, config: ClusterConfig, pass_env: Sequence[str] = ()) -> None:
        self._pass_env = pass_env
        self._pools = _pools(config)
        slots, cores = sum(pool.num_slots for pool in self._pools.values()), len(os.sched_getaffinity(0))
        self.num_threads: int | None = config.cpus or max(1, cores // slots)
        self._python = config.python or shlex.quote(sys.executable)
        self._setup = list(config.setup)
        self._waiting: dict[str, tuple[Submission, Path]] = {}
        self._running: dict[str, _Running] = {}
        self._cancelled: set[str] = set()

    def check(self, wall_limit_s: float, folder: Path) -> None:
        require_usable(folder)

    def job_limit_s(self, wall_limit_s: float) -> float:
        return wall_limit_s + _MARGIN_S

    def launch(self, submission: Submission) -> Mapping[str, str]:
        write_json_atomic(submission.array.manifest, submission.manifest())
        for trial, spec in submission.trials.items():
            self._waiting[trial] = (submission, spec)
            self._cancelled.discard(trial)
        self._refill()
        return {trial: f"local:{trial}" for trial in submission.trials}

    def adopt(self, submission: Submission) -> Mapping[str, str]:
        found = {}
        for trial, spec in submission.trials.items():
            claim = _claim(spec)
            if claim is None:
                continue
            self._adopt(trial, self._pool(submission.tier), spec, claim)
            found[trial] = f"local:{trial}"
        return found

    def _adopt(self, trial: str, pool: _Pool, spec: Path, claim: Mapping[str, object]) -> None:
        gpu = str(claim.get("visible") or "") or None
        if gpu in pool.free_gpus:
            pool.free_gpus.remove(gpu)
        pool.num_running += trial not in self._running
        self._running[trial] = _Running(spec=spec, pool=pool, gpu=gpu, pid=_pid(claim))

    def _pool(self, tier: str) -> _Pool:
        return self._pools.get(tier) or next(iter(self._pools.values()))

    def poll(self, jobs: Mapping[str, str]) -> Mapping[str, JobState]:
        for trial, running in list(self._running.items()):
            if not running.alive():
                self._release(trial, running)
        self._refill()
        return {trial: self._state(trial) for trial in jobs}

    def _release(self, trial: str, running: _Running) -> None:
        """The process has ended, but it may have left at once because an earlier controller's worker has the trial."""
        del self._running[trial]
        pool = running.pool
        pool.num_running -= 1
        if running.gpu in pool.gpus and running.gpu not in pool.free_gpus:
            pool.free_gpus.append(running.gpu)
        claim = _claim(running.spec)
        if claim and _is_worker(_pid(claim), running.spec):
            self._adopt(trial, pool, running.spec, claim)

    def _state(self, trial: str) -> JobState:
        if trial in self._waiting:
            return _PENDING
        if trial in self._running:
            return _RUNNING
        return _CANCELLED if trial in self._cancelled else _ENDED

    def cancel(self, jobs: Mapping[str, str]) -> None:
        for trial in jobs:
            running = self._running.get(trial)
            if running or self._waiting.pop(trial, None):
                self._cancelled.add(trial)
            if running and running.alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(running.pid, signal.SIGTERM)  # submitit's parent hands it on to the worker

    def charges(self, jobs: Mapping[str, str]) -> Mapping[str, float]:
        return {}

    def _refill(self) -> None:
        for trial, (submission, spec) in list(self._waiting.items()):
            pool = self._pool(submission.tier)
            if pool.free:
                del self._waiting[trial]
                gpu = pool.free_gpus.pop(0) if pool.free_gpus else None
                process = self._start(submission, spec, gpu)
                pool.num_running += 1
                self._running[trial] = _Running(spec=spec, pool=pool, gpu=gpu, pid=process.pid, process=process)

    def _start(self, submission: Submission, spec: Path, gpu: str | None) -> "subprocess.Popen[bytes]":
        # The shell becomes the worker, so that a signal finds it; submitit's own way with setup lines loses signals.
        shell = "\n".join([*self._setup, f"exec {worker_command(self._python, ['--trial', str(spec)])}"])
        environment = job_environment(self._pass_env) | {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": shlex.join(["bash", "-c", shell]),
            "SUBMITIT_LOCAL_TIMEOUT_S": str(math.ceil(submission.wall_limit_s + _MARGIN_S)),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30",
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "CUDA_VISIBLE_DEVICES": gpu or "",
        }
        submission.array.root.mkdir(parents=True, exist_ok=True)
        # What is ignored here stays ignored there: Ctrl-C and a closed terminal reach only the controller.
        ignored = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
        try:
            # As submitit's executor does, which would also hand on our stdout: `| tee log` would wait for the trials.
            with (submission.array.root / "submitit.log").open("ab") as log:
                return subprocess.Popen(
                    [sys.executable, "-m", "submitit.local._local", str(submission.array.root)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
        finally:
            for number, handler in ignored.items():
                signal.signal(number, handler)


def _pools(config: ClusterConfig) -> dict[str, _Pool]:
    """The slots of each tier. Raises ConfigError where there are GPUs and none is of the tier's kind."""
    gpus, pools = visible_gpus(), {}
    names = _gpu_names() if config.tiers and gpus else {}
    for tier in config.tier_names:
        own = config.on(tier)
        mine = list(gpus)
        if config.tiers and gpus:
            kind = (own.gres or "").split(":")[1:2]
            mine = [gpu for gpu in gpus if not kind or kind[0].lower() in names.get(gpu, "").lower()]
            require(bool(mine), f"no GPU of this machine is left for the tier {tier}", "correct cluster.tiers")
        num_slots = own.max_parallel or len(mine) or max(1, len(os.sched_getaffinity(0)) // 2)
        mine = mine[:num_slots]
        gpus = [gpu for gpu in gpus if gpu not in mine]
        pools[tier] = _Pool(num_slots=num_slots, gpus=mine, free_gpus=list(mine))
    return pools


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: by index, or by UUID."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = (name.strip() for name in visible.split(","))
        return [name for name in names if name.isdigit() or name.startswith(("GPU-", "MIG-"))]
    return [str(index) for index in range(len(_list_gpus()))]


def _list_gpus() -> list[str]:
    """One line for each GPU: `GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-...)`."""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return []
    return [line for line in answer.stdout.splitlines() if line.startswith("GPU ")]


def _gpu_names() -> dict[str, str]:
    """What nvidia-smi says of each GPU, by its index and by its UUID."""
    lines = _list_gpus()
    by_uuid = {line.rpartition("UUID: ")[2].rstrip(")"): line for line in lines}
    return {**{str(index): line for index, line in enumerate(lines)}, **by_uuid}


def _claim(spec: Path) -> dict[str, object] | None:
    """What the trial's worker said when it took the trial; None where nobody has, or is just writing it."""
    try:
        return read_json(TrialPaths(spec.parent).claim(0))
    except (OSError, ValueError):
        return None


def _pid(claim: Mapping[str, object]) -> int:
    """The worker's process; 0 where it is, or was, another host's."""
    return int(str(claim["pid"])) if claim["host"] == socket.gethostname() else 0


def _is_worker(pid: int, spec: Path) -> bool:
    """Whether pid is the worker of this trial, and not another process that has its number by now."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"autoresearch_hpc.trial.worker" in words and os.fsencode(spec) in words
