"""What one process of a check may take. Landlock and the rest of the barrier say what it may reach."""

import contextlib
import os
import resource
from pathlib import Path

MAX_THREADS = 4  # others work on a login node, too
MAX_MEMORY_BYTES = 16 << 30
MAX_FILE_BYTES = 8 << 30
MAX_DISK_BYTES = 8 << 30  # of all files together
MAX_PROCESSES = 512  # beside those that the user has already; root has no such limit


def num_threads() -> int:
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0))))


def enter(seconds: float) -> None:
    """Bounds for what one process may take, whatever it starts included."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # let it be the first to go
    cpu_s = int(seconds * num_threads()) + 1
    bounds = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_DATA: min(MAX_MEMORY_BYTES, _available_bytes() // 2),
        resource.RLIMIT_NPROC: _num_tasks() + MAX_PROCESSES,
    }
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return MAX_MEMORY_BYTES


def _num_tasks() -> int:
    """Threads that this user has, which the kernel counts against RLIMIT_NPROC."""
    count = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == os.getuid():
                count += len(list((entry / "task").iterdir()))
    return count
