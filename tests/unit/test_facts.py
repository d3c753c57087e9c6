"""What a worker finds on its node."""

import os
from pathlib import Path

import pytest

from autoresearch_hpc.records import Status
from autoresearch_hpc.trial import facts, memory

LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb2222-0000-0000-0000-000000000000)
  MIG 1g.18gb     Device  0: (UUID: MIG-cccc3333-0000-0000-0000-000000000000)
  MIG 3g.71gb     Device  1: (UUID: MIG-dddd4444-0000-0000-0000-000000000000)
"""
H100, H200, SLICE = "GPU-aaaa1111", "GPU-bbbb2222", "MIG-dddd4444"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node whose nvidia-smi lists two GPUs, the second one in slices."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && cat <<'X'\n{LISTING}X\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


@pytest.mark.parametrize(
    ("visible", "name", "uuid", "count"),
    [
        (None, "NVIDIA H100 80GB HBM3", H100, 2),
        ("0", "NVIDIA H100 80GB HBM3", H100, 1),
        ("1", "NVIDIA H200", H200, 1),
        (" 1, 0 ", "NVIDIA H200", H200, 2),
        (f"{H200}", "NVIDIA H200", H200, 1),
        (f"{SLICE}-0000-0000-0000-000000000000", "MIG 3g.71gb", SLICE, 1),
        ("", None, None, 0),
        ("7", None, None, 0),
        ("-1", None, None, 0),
        ("GPU-ffff", None, None, 0),
        ("NoDevFiles", None, None, 0),
    ],
)
def test_the_gpu_is_the_first_visible_one(
    driver: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, name: str | None, uuid: str | None, count: int
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu = facts.gpu()
    assert (gpu.name, gpu.count, gpu.visible) == (name, count, visible)
    assert (gpu.uuid or "").startswith(uuid or "")
    assert (gpu.uuid is None) is (uuid is None)


def test_a_driver_that_fails_has_no_gpus(driver: Path) -> None:
    driver.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate' && exit 9\n")
    assert facts.gpu().count == 0


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert (facts.gpu().count, facts.gpu().visible) == (0, "0")


def test_slurms_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    assert facts.slurm_job() is None
    assert facts.attempt() == 0
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    job = facts.slurm_job()
    assert job
    assert (job.job_id, job.array_job_id, job.array_task_id, job.gres) == ("42", None, None, None)
    for name, value in {
        "ARRAY_JOB_ID": "40", "ARRAY_TASK_ID": "0", "JOB_PARTITION": "main", "JOB_GPUS": "3", "RESTART_COUNT": "2",
        "JOB_NODELIST": "n0",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    job = facts.slurm_job()
    assert job
    assert (job.array_job_id, job.array_task_id, job.partition, job.gres) == ("40", 0, "main", "3")
    assert facts.attempt() == 2


CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.mark.parametrize(
    ("returncode", "log", "status", "type_", "message"),
    [
        (1, "Traceback\nKeyError: 'a'\n", Status.CRASHED, "KeyError", "'a'"),
        (1, "KeyError: 1\nDuring handling\nmy.mod.BadShapeError: 2\n", Status.CRASHED, "my.mod.BadShapeError", "2"),
        (1, "AssertionError\n", Status.CRASHED, "AssertionError", ""),
        (1, f"{CUDA}\n", Status.OOM, "torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (1, "RuntimeError: CUDA error: out of memory\n", Status.OOM, "RuntimeError", "CUDA error: out of memory"),
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory\n", Status.OOM, "RuntimeError", ""),
        (1, "numpy._core._exceptions._ArrayMemoryError: Unable to allocate\n", Status.OOM, "numpy", ""),
        (1, f"{CUDA}\n" + "cleaning up\n" * 200, Status.OOM, "torch.OutOfMemoryError", ""),
        (-6, f"{CUDA}\nException: in a destructor\n", Status.OOM, "torch.OutOfMemoryError", ""),
        (1, f"{CUDA}\ntrying a smaller batch\nValueError: too small\n", Status.CRASHED, "ValueError", "too small"),
        (-9, "", Status.CRASHED, "SIGKILL", "ended by signal SIGKILL, perhaps for want of host memory"),
        (137, "Killed\n", Status.CRASHED, "SIGKILL", "for want of host memory"),
        (139, "", Status.CRASHED, "SIGSEGV", "ended by signal SIGSEGV"),
        (-11, "ValueError: before\n", Status.CRASHED, "SIGSEGV", ""),
        (3, "an Error: not at the line's start is none\n Error: x\n", Status.CRASHED, "ExitStatus", "exit status 3"),
        (255, "", Status.CRASHED, "ExitStatus", "exit status 255"),
        (-50, "", Status.CRASHED, "ExitStatus", "exit status -50"),
    ],
)
def test_why_a_child_failed(
    tmp_path: Path, returncode: int, log: str, status: Status, type_: str, message: str
) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    found, failure = facts.failure(returncode, path)
    assert found is status
    assert failure.type.startswith(type_)
    assert message in failure.message


FULL = "OSError: [Errno 28] No space left on device: '/a/checkpoint.pt'"
TORCH = """RuntimeError: basic_ios::clear: iostream error

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 896 vs 790
"""


@pytest.mark.parametrize(
    ("log", "status"),
    [
        (FULL, Status.LOST),
        ("OSError: [Errno 122] Disk quota exceeded", Status.LOST),
        ("OSError: [Errno 5] Input/output error", Status.LOST),
        ("OSError: [Errno 116] Stale file handle: 'x'", Status.LOST),
        ("torch._inductor.exc.InductorError: OSError: [Errno 28] No space left on device", Status.LOST),
        (TORCH, Status.LOST),
        ("RuntimeError: PytorchStreamWriter failed writing file data/0: file write failed", Status.LOST),
        ("OSError: 1000000 requested and 1024 written", Status.LOST),
        (f"{FULL}\nValueError: later and another\n", Status.CRASHED),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'x'", Status.CRASHED),
        ("OSError: [Errno 24] Too many open files", Status.CRASHED),
        ("ValueError: Errno 28", Status.CRASHED),
    ],
)
def test_a_filesystem_that_fails_is_not_the_candidates_fault(tmp_path: Path, log: str, status: Status) -> None:
    path = tmp_path / "log"
    path.write_text(f"Traceback (most recent call last):\n{log}\n")
    found, failure = facts.failure(1, path)
    assert found is status
    assert failure.type == ("OSError" if status is Status.LOST else log.strip().splitlines()[-1].split(":")[0])


@pytest.mark.parametrize(
    ("returncode", "log", "kills", "status"),
    [
        (-9, "", 1, Status.OOM),
        (137, "Killed\n", 2, Status.OOM),
        (-9, "", 0, Status.CRASHED),
        (-11, "", 1, Status.CRASHED),
        (1, "ValueError: bad\n", 1, Status.CRASHED),
        (1, "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. \n", 1, Status.OOM),
        (1, "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. \n", 0, Status.CRASHED),
        (1, "subprocess.CalledProcessError: Command 'x' died with <Signals.SIGKILL: 9>.\n", 1, Status.OOM),
    ],
)
def test_a_kill_that_the_control_group_counts_is_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returncode: int, log: str, kills: int, status: Status
) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    monkeypatch.setattr(facts, "memory_kills", lambda: 3 + kills)
    found, failure = facts.failure(returncode, path, 3)
    assert found is status
    assert failure.message.startswith("host memory: ") == (status is Status.OOM)
    assert facts.failure(returncode, path, None)[0] is Status.CRASHED, "where nobody counts"


V1 = """\
12:memory:/slurm/uid_1000/job_7/step_batch
4:cpu,cpuacct:/slurm/uid_1000/job_7
0::/system.slice
"""
V2 = "0::/system.slice/slurmstepd.scope/job_7/step_batch/user/task_0\n"
MOUNTS = """\
25 30 0:23 / /sys rw,nosuid - sysfs sysfs rw
33 25 0:28 {root} {v2} rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
34 25 0:29 / {v1}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 25 0:30 {root} {v1}/memory rw - cgroup cgroup rw,memory
"""


@pytest.mark.parametrize(
    ("groups", "root", "file", "text", "expected"),
    [
        (V1, "/", "v1/memory/slurm/uid_1000/job_7/step_batch/memory.oom_control", "under_oom 0\noom_kill 4\n", 4),
        (V1, "/slurm/uid_1000/job_7", "v1/memory/step_batch/memory.oom_control", "oom_kill 4\n", 4),
        (V1, "/slurm/uid_1000/job_7/step_batch", "v1/memory/memory.oom_control", "oom_kill 0\n", 0),
        (V1, "/slurm/uid_1000/job_70", "v1/memory/memory.oom_control", "oom_kill 4\n", None),
        (V1, "/", "v1/memory/slurm/uid_1000/job_7/step_batch/memory.oom_control", "under_oom 0\n", None),
        (V2, "/", f"v2{V2[3:].strip()}/memory.events", "low 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n", 2),
        (V2, V2[3:].strip(), "v2/memory.events", "oom_kill 2\n", 2),
        (V2, "/elsewhere", "v2/memory.events", "oom_kill 2\n", None),
        (V2, "/", "v2/other", "oom_kill 2\n", None),
        ("", "/", "v2/memory.events", "oom_kill 2\n", None),
        ("nonsense\n", "/", "v2/memory.events", "oom_kill 2\n", None),
    ],
)
def test_where_kills_are_counted(
    tmp_path: Path, groups: str, root: str, file: str, text: str, expected: int | None
) -> None:
    base = tmp_path / "a b"
    (base / file).parent.mkdir(parents=True)
    (base / file).write_text(text)
    (base / "cgroup").write_text(groups)
    here = str(base).replace(" ", "\\040")
    (base / "mountinfo").write_text(MOUNTS.format(root=root, v1=f"{here}/v1", v2=f"{here}/v2"))
    assert memory.oom_kills(base) == expected


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("slurmstepd-n0: error: StepId=7.0 exceeded memory limit (434331648 > 104857600), being killed", True),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step tasks have been OOM", True),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch.", True),
        ("slurmstepd: error: *** JOB 7 ON n0 CANCELLED AT 2026-01-31T12:00:00 DUE TO TIME LIMIT ***", False),
        ("a candidate may print: slurmstepd: error: exceeded memory limit", False),
    ],
)
def test_what_slurm_says_of_memory(tmp_path: Path, line: str, told: bool) -> None:
    log = tmp_path / "7_0_0_log.out"
    assert not memory.told_by_slurm(log)
    log.write_text(f"before\n{line}\nsrun: error: n0: task 0: Killed\n")
    assert memory.told_by_slurm(log) is told


def test_nobody_counts_where_there_is_no_proc(tmp_path: Path) -> None:
    assert memory.oom_kills(tmp_path) is None


def test_a_failure_without_a_log(tmp_path: Path) -> None:
    status, failure = facts.failure(1, tmp_path / "none")
    assert (status, failure.type, failure.tail) == (Status.CRASHED, "ExitStatus", "")


def test_a_tail_is_bounded_and_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100_000 + b"\xff\xfe\0end")
    tail = facts.log_tail(path)
    assert len(tail) < 20_000
    assert tail.endswith("\ufffd\ufffdend")
    path.write_bytes(b"%d\n" * 100)
    assert len(facts.log_tail(path).splitlines()) == 40
