"""Processes of a sandbox cluster: start, find, stop. Reads /proc, because a dead child of PID 1 may stay a zombie.

A process is ours when its PID file says so, when it holds one of our log files open, or when it descends from such a
process. Nothing is ever killed by its name alone.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from settings import SandboxError, Settings

_PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "slurmstepd", "mariadbd", "munged")


def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def answer(settings: Settings, *argv: str, timeout_s: float = 15) -> str:
    """What a command says on its standard output; nothing when it fails."""
    environment = settings.daemon_environment()
    try:
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=timeout_s)
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def finish(settings: Settings, name: str, argv: list[str], text: str) -> None:
    """Feed text to a command that has to succeed."""
    with settings.path(f"log/{name}.out").open("wb") as log:
        environment = settings.daemon_environment()
        done = subprocess.run(argv, env=environment, input=text.encode(), stdout=log, stderr=log, timeout=120)
    if done.returncode != 0:
        raise SandboxError(f"{name} failed with status {done.returncode} (see {log.name})")


def start(settings: Settings, commands: Mapping[str, tuple[list[str], int | None]]) -> None:
    """Run the daemons that are not running, together, until each has its process id on file and its port open."""
    missing = [name for name in commands if not pid_of(settings, name)]
    launched = {name: launch(settings, name, commands[name][0]) for name in missing}
    for name, process in launched.items():
        port = commands[name][1]

        def ready_or_failed(name=name, process=process, port=port) -> bool:
            return bool(process.poll()) or (pid_of(settings, name) is not None and (port is None or _is_open(port)))

        if not wait_for(ready_or_failed, 30) or process.poll():
            logs = [settings.path(f"log/{name}.{suffix}") for suffix in ("log", "out")]
            log = next((log for log in logs if log.exists() and log.stat().st_size), logs[1])
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise SandboxError(f"{name} did not start: {' '.join(last) or 'it said nothing'} (see {log})")


def launch(settings: Settings, name: str, argv: list[str]) -> subprocess.Popen[bytes]:
    settings.path(f"run/{name}.pid").unlink(missing_ok=True)
    environment = settings.daemon_environment()
    with settings.path(f"log/{name}.out").open("ab") as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        place = {"cwd": settings.state, "env": environment, "umask": 0o022, "start_new_session": True}
        try:
            return subprocess.Popen(argv, **streams, **place)
        except FileNotFoundError:
            raise SandboxError(f"{argv[0]} is not installed: run `make slurm-packages`") from None


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _stat(pid: int) -> tuple[str, str, int] | None:
    """Program, state letter and parent of a process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    program, _, rest = text[text.index("(") + 1 :].rpartition(")")
    return program, rest.split()[0], int(rest.split()[1])


def is_running(pid: int) -> bool:
    found = _stat(pid)
    return found is not None and found[1] not in "ZX"


def pid_of(settings: Settings, name: str) -> int | None:
    """The process id of a daemon (`slurmctld`, `slurmd-n2`, ...) if it is running."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid = int(settings.path(f"run/{name}.pid").read_text())
        found = _stat(pid)  # after a reboot the number may be another program's
        if found and found[0].startswith(name.split("-")[0]) and found[1] not in "ZX":
            return pid
    return None


def guard_of(settings: Settings) -> int | None:
    """The process that waits to stop this cluster (see `down --after`), if there is one."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(settings.path("run/guard.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if settings.state in words and "--after" in words and is_running(pid):
            return pid
    return None


def stop(settings: Settings, names: Iterable[str], *, force: bool = False) -> None:
    """Ask daemons to end, all at once; kill what is still there after 10 s, or at once with force."""
    pids = [pid for name in names if (pid := pid_of(settings, name))]
    if not force:
        _signal(pids, signal.SIGTERM)
    if force or not wait_for(lambda: not any(map(is_running, pids)), 10):
        kill(pids)


def kill(pids: Iterable[int]) -> None:
    pids = list(pids)
    _signal(pids, signal.SIGKILL)
    wait_for(lambda: not any(map(is_running, pids)), 5)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_leftovers(settings: Settings, node: str = "") -> None:
    """Kill all that belongs to the cluster, or to one node; again, as long as a job starts processes meanwhile."""
    for _ in range(10):
        if not (pids := _leftovers(settings, node)):
            return
        kill(pids)


def _leftovers(settings: Settings, node: str) -> list[int]:
    """Slurm's processes with a log of this cluster (or this node) open, then the jobs' processes.

    Slurm's come first: a slurmstepd that dies before its job cannot report it. A job's process is one below a
    slurmstepd, or one whose environment names this cluster and a node of it.
    """
    log = str(settings.path("log")) + "/" + (f"slurmd-{node}.log" if node else "")
    conf, mark = f"SLURM_CONF={settings.path('etc/slurm.conf')}", f"SLURMD_NODENAME={node}"
    slurm, jobs, parents = [], [], {}
    for pid in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        found = _stat(pid)
        if found is None or found[1] in "ZX" or pid == os.getpid():
            continue
        parents[pid] = found[2]
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            if found[0].startswith(_PROGRAMS):
                if any(str(file.readlink()).startswith(log) for file in Path(f"/proc/{pid}/fd").iterdir()):
                    slurm.append(pid)
                continue
            entries = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
            if conf in entries and any(e == mark or (not node and e.startswith(mark)) for e in entries):
                jobs.append(pid)
    below = {*slurm, *jobs}
    while below:  # a job may have started children without its environment
        below = {pid for pid, parent in parents.items() if parent in below and pid not in (*slurm, *jobs)}
        jobs += below
    return slurm + jobs
