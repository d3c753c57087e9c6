"""What a job's control group says of its memory: how much is left, and whether the kernel has killed for want of it.

A child that is killed says nothing; its group counts it.

A job's group is a line of /proc/self/cgroup, and a directory where /proc/self/mountinfo says that its hierarchy is
mounted. Version 1 counts in `memory.oom_control`, version 2 in `memory.events`; both as a line `oom_kill 3`.
"""

import contextlib
import re
from pathlib import Path

_TOLD = re.compile(
    r"^slurmstepd.*(exceeded memory limit|exceeded job memory limit|oom.?kill)", re.IGNORECASE | re.MULTILINE
)
_TAIL_BYTES = 65_536


def oom_kills(proc: Path = Path("/proc/self")) -> int | None:
    """How many processes of this process's group were killed for want of memory; None where nobody counts."""
    try:
        counter = _counter((proc / "cgroup").read_text(), (proc / "mountinfo").read_text())
        lines = counter.read_text().splitlines() if counter else []
    except (OSError, ValueError):
        return None
    counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    return int(counts[0]) if counts and counts[0].isdigit() else None


def bytes_left(proc: Path = Path("/proc/self")) -> int | None:
    """Bytes of memory that this process's group and those above it may still take; None where there is no limit."""
    try:
        counter = _counter((proc / "cgroup").read_text(), (proc / "mountinfo").read_text())
    except (OSError, ValueError):
        return None
    old = counter is not None and counter.name == "memory.oom_control"
    limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    left = []
    for group in counter.parents if counter else ():
        with contextlib.suppress(OSError, ValueError):  # no group any more, or one without a limit
            left.append(int((group / limit).read_text()) - int((group / used).read_text()))
    return min(left, default=None)


def told_by_slurm(log: Path) -> bool:
    """Whether Slurm's part of a job's log says that it was killed for its memory.

    Where Slurm itself watches (OverMemoryKill) it kills worker and all, and the job's state does not say why.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return _TOLD.search(file.read(_TAIL_BYTES).decode("utf-8", errors="replace")) is not None
    except OSError:
        return False


def _counter(groups: str, mounts: str) -> Path | None:
    """The file that counts. Where both versions are mounted, memory belongs to version 1 if that lists it."""
    found: dict[str, str] = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    for controller, kind, name in (("memory", "cgroup", "memory.oom_control"), ("", "cgroup2", "memory.events")):
        if controller in found:
            folder = _folder(found[controller], mounts, kind, controller)
            return folder / name if folder else None
    return None


def _folder(group: str, mounts: str, kind: str, controller: str) -> Path | None:
    """The group's directory: a container may see only a part of the hierarchy."""
    for line in mounts.splitlines():
        fields, _, source = line.partition(" - ")
        root, mounted_at = (_plain(field) for field in fields.split()[3:5])
        type_, _, options = source.split(maxsplit=2)
        if type_ != kind or (controller and controller not in options.split(",")):
            continue
        if root == "/" or group == root or group.startswith(f"{root}/"):
            return Path(mounted_at) / group.removeprefix(root).lstrip("/")
    return None


def _plain(field: str) -> str:
    """A path of mountinfo, in which blanks are octal."""
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
