"""What foreign code leaves behind, processes and files: how all of it is found, ended and removed."""

import contextlib
import ctypes
import os
import shutil
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>

_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Make processes that lose their parent children of this one, so that `kill_descendants` finds them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    """Let the kernel end this process with its parent, should that be killed outright."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def kill_descendants(spare: int | None = None) -> int:
    """SIGKILL everything below this process and reap it. Returns how many processes were left.

    The child `spare` and what is below it are left alone.
    """
    killed: set[int] = set()
    for _ in range(100):
        if spare is None:  # else subprocess must find its status
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        pids = _descendants(os.getpid(), spare)
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter of a setuid program
                os.kill(pid, signal.SIGKILL)
        killed.update(pids)
        time.sleep(0.01)
    return len(killed)


def _descendants(root: int, spare: int | None) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # the second field is a name in parentheses, which may hold anything
                state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if entry.name != str(spare) and (state != "Z" or (int(ppid) == root and spare is None)):
                    children.setdefault(int(ppid), []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def remove_tree(root: Path) -> None:
    """Remove root and all below, directories without permissions included."""

    def insist(_: object, path: str, __: object) -> None:
        with contextlib.suppress(OSError):
            Path(path).parent.chmod(0o700)
            Path(path).chmod(0o700)
            if Path(path).is_dir() and not Path(path).is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                Path(path).unlink()

    shutil.rmtree(root, onerror=insist)
    shutil.rmtree(root, ignore_errors=True)


def size_on_disk(folder: Path) -> int:
    """Bytes that everything below folder takes."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    total += size_on_disk(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
