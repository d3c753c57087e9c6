"""What a worker finds on its node: GPUs, Slurm's variables, a clean environment, the cause of a failure."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from autoresearch_hpc.records import Failure, Gpu, SlurmJob, Status

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|COOKIE|AUTH(?!ORESEARCH)", re.IGNORECASE)
_TAIL_LINES = 40
_TAIL_BYTES = 16_384


def gpu() -> Gpu:
    """The GPU of this trial as the driver names it: the first visible one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not shutil.which("nvidia-smi"):
        return Gpu(count=0, visible=visible)
    query = ["nvidia-smi", "--query-gpu=index,name,uuid", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if "," in line]
    if visible is not None:
        wanted = [name.strip() for name in visible.split(",") if name.strip()]
        rows = [row for name in wanted for row in rows if row[0] == name or row[2].startswith(name)]
    if not rows:
        return Gpu(count=0, visible=visible)
    return Gpu(name=rows[0][1], uuid=rows[0][2], count=len(rows), visible=visible)


def slurm_job() -> SlurmJob | None:
    """What Slurm says of this job, or None outside of Slurm."""
    env = os.environ
    if "SLURM_JOB_ID" not in env:
        return None
    task = env.get("SLURM_ARRAY_TASK_ID")
    return SlurmJob(
        job_id=env["SLURM_JOB_ID"],
        array_job_id=env.get("SLURM_ARRAY_JOB_ID"),
        array_task_id=int(task) if task is not None else None,
        partition=env.get("SLURM_JOB_PARTITION"),
        gres=env.get("SLURM_STEP_GPUS") or env.get("SLURM_JOB_GPUS"),
        nodelist=env.get("SLURM_JOB_NODELIST"),
    )


def attempt() -> int:
    """How often Slurm has requeued this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def child_environment(num_threads: int | None, extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without secrets, with caches on the node and a bound on threads."""
    env = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    cache = Path(tempfile.gettempdir()) / f"autoresearch_hpc-{os.getuid()}"
    env.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))  # these race on network filesystems
    env.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    if num_threads:
        env.update(OMP_NUM_THREADS=str(num_threads), MKL_NUM_THREADS=str(num_threads))
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    if "," in visible:  # a whole node was given: a trial is a single-GPU program
        env["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    env.update(extra)
    return env


def log_tail(path: Path) -> str:
    """The last lines of a log, or nothing."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def failure(returncode: int, log: Path) -> tuple[Status, Failure]:
    """Why a child ended with this exit status: from its traceback, its signal or its status."""
    tail = log_tail(log)
    found = re.findall(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)): ?(.*)$", tail, re.MULTILINE)
    if returncode < 0:
        name = signal.Signals(-returncode).name
        hint = ", perhaps for want of host memory" if name == "SIGKILL" else ""
        return Status.CRASHED, Failure(type=name, message=f"ended by signal {name}{hint}", tail=tail)
    if found:
        type_, message = found[-1]
        memory = type_.endswith(("OutOfMemoryError", "MemoryError")) or "out of memory" in message.lower()
        return (Status.OOM if memory else Status.CRASHED), Failure(type=type_, message=message[:500], tail=tail)
    return Status.CRASHED, Failure(type="ExitStatus", message=f"exit status {returncode}", tail=tail)
