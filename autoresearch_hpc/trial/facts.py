"""What a worker finds on its node: GPUs, Slurm's variables, the cause of a failure."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from autoresearch_hpc.errors import STORAGE_ERRORS
from autoresearch_hpc.files import write_all
from autoresearch_hpc.quoting import quoted, quoted_line
from autoresearch_hpc.records import Failure, Gpu, SlurmJob, Status
from autoresearch_hpc.trial.memory import oom_kills as memory_kills

# What `nvidia-smi -L` prints of a GPU, and below it of each slice:
_DEVICE = re.compile(
    r"^GPU (\d+): (.*) \(UUID: (GPU-\S+)\)|^ +MIG (\S+) +Device +\d+: \(UUID: (MIG-\S+)\)",
    re.MULTILINE,
)
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit))(?:: ?(.*))?$", re.MULTILINE)
_OUT_OF_MEMORY = re.compile(
    r"MemoryError|out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)
# Of the shared filesystem: full, over quota, failing, gone. torch's and numpy's writers do not hand on the reason.
_STORAGE = re.compile(
    r"\[Errno (28|122|5|116)\]|PytorchStreamWriter failed writing|inline_container\.cc.*unexpected pos|"
    r"iostream error|\d+ requested and \d+ written"
)
_TAIL_BYTES = 16_384
_PROBE_BYTES = 16_384
_KILLED = re.compile(r"killed by signal: Killed|SIGKILL")  # of a process that the child had started itself
_LIMIT_REACHED = "host memory: the job's memory limit was reached (its control group counts a kill)"
_HINTS = {
    signal.SIGKILL: ", perhaps for want of host memory",
    signal.SIGBUS: ", perhaps a mapped file that could not be read, or a full /dev/shm",
}


def gpu() -> Gpu:
    """The GPU of this trial as the driver names it: the first visible one, or slice of one (MIG)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not shutil.which("nvidia-smi"):
        return Gpu(count=0, visible=visible)
    listed, memory = _driver(["-L"], ["--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"])
    found = [_Device(m[1], m[2] or f"MIG {m[4]}", m[3] or m[5]) for m in _DEVICE.finditer(listed)]
    if visible is None:
        found = [device for device in found if device.number]
    else:
        wanted = [name.strip() for name in visible.split(",") if name.strip()]
        found = [d for name in wanted for d in found if d.number == name or _is_uuid_of(name, d.uuid)]
    if not found:
        return Gpu(count=0, visible=visible)
    first = found[0]
    whole = re.search(rf"^{re.escape(first.uuid)}, *(\d+)$", memory, re.MULTILINE)  # slices are not listed there
    memory_mb = float(whole[1]) if whole else None
    return Gpu(name=first.name, uuid=first.uuid, count=len(found), visible=visible, memory_mb=memory_mb)


def _driver(*questions: list[str]) -> list[str]:
    """What nvidia-smi answers to each; asked all at once, since each takes it a second on some nodes."""
    asked = [
        subprocess.Popen(["nvidia-smi", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for words in questions
    ]
    try:
        return [process.communicate(timeout=60)[0] for process in asked]
    finally:
        for process in asked:
            process.kill()
            process.wait()


class _Device(NamedTuple):
    number: str | None  # of a GPU; a slice has none
    name: str
    uuid: str


def _is_uuid_of(name: str, uuid: str) -> bool:
    return name.startswith(("GPU-", "MIG-")) and uuid.startswith(name)  # CUDA takes any beginning that is unique


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


def torch_version() -> str:
    """Of the torch that is installed here, by the name of its metadata.

    importlib.metadata, which is asked where there is no such name, brings forty modules of the email package.
    """
    for entry in sys.path:
        for found in Path(entry).glob("torch-*.dist-info"):
            return found.name.removeprefix("torch-").removesuffix(".dist-info")
    import importlib.metadata

    return importlib.metadata.version("torch")


def job_id() -> str | None:
    """This job as its controller calls it: `<array>_<index>`, or the job's id; None outside of Slurm."""
    job = slurm_job()
    if job is None:
        return None
    return f"{job.array_job_id}_{job.array_task_id}" if job.array_job_id else job.job_id


def attempt() -> int:
    """How often Slurm has requeued this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def log_tail(path: Path) -> str:
    """The last lines of a log as plain text, or nothing."""
    return quoted(_end(path))


def _end(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode("utf-8", errors="replace").replace("\0", "")
    except OSError:
        return ""


def failure(returncode: int, log: Path, oom_kills: int | None = None) -> tuple[Status, Failure]:
    """Why a child ended with this exit status: from its traceback, its signal or its status.

    `oom_kills` is what `memory.oom_kills` said when the trial began. A failure of the filesystem is LOST: the
    candidate is not to blame.
    """
    tail, number = log_tail(log), _signal(returncode)
    found = _EXCEPTION.findall(_end(log))
    counts = found if number else found[-1:]  # an abort may follow from an exception, and name another one
    memory = [(type_, message) for type_, message in counts if _OUT_OF_MEMORY.search(f"{type_}: {message}")]
    if memory:
        return Status.OOM, Failure(type=memory[-1][0], message=quoted_line(memory[-1][1]) or "host memory", tail=tail)
    if oom_kills is not None and (number is signal.SIGKILL or (found and _KILLED.search(found[-1][1]))):
        if (now := memory_kills()) is not None and now > oom_kills:
            return Status.OOM, Failure(type="SIGKILL", message=_LIMIT_REACHED, tail=tail)
    if number:
        hint = _HINTS.get(number, "")
        return Status.CRASHED, Failure(type=number.name, message=f"ended by signal {number.name}{hint}", tail=tail)
    if found:
        type_, message = found[-1]
        if is_storage(type_, message):
            return Status.LOST, storage_failure(type_, message, tail)
        return Status.CRASHED, Failure(type=type_, message=quoted_line(message), tail=tail)
    return Status.CRASHED, Failure(type="ExitStatus", message=f"exit status {returncode}", tail=tail)


def is_storage(type_: str, message: str) -> bool:
    """Whether an exception says that the filesystem had no room or failed."""
    return _STORAGE.search(f"{type_}: {message}") is not None


def storage_failure(type_: str, message: str, tail: str = "") -> Failure:
    """The failure by the name that all of its kind have, whichever library tells it."""
    said = message if type_ == "OSError" else f"{type_}: {message}"
    return Failure(type="OSError", message=quoted_line(said), tail=tail)


def broken_storage(folder: Path) -> OSError | None:
    """The error that writing below folder gives, if the filesystem is to blame."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        try:
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                write_all(fd, bytes(_PROBE_BYTES))
                os.fsync(fd)
            finally:
                os.close(fd)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return error if error.errno in STORAGE_ERRORS else None
    return None


def _signal(returncode: int) -> signal.Signals | None:
    """The signal that ended the child itself, or by a shell's account (128 + number) a process of it."""
    number = -returncode if returncode < 0 else returncode - 128
    return next((known for known in signal.Signals if known == number), None)
