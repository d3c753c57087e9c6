"""What a trial leaves in /dev/shm: memory that nobody frees, and a place where a later trial would find something."""

import contextlib
import os
import shutil
from pathlib import Path

_FOLDER = Path("/dev/shm")


def ours_in_shared_memory() -> frozenset[tuple[str, int]]:
    """This user's entries, with their inodes."""
    found = set()
    with contextlib.suppress(OSError), os.scandir(_FOLDER) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                stat = entry.stat(follow_symlinks=False)
                if stat.st_uid == os.getuid():
                    found.add((entry.name, stat.st_ino))
    return frozenset(found)


def remove_left(before: frozenset[tuple[str, int]]) -> int:
    """Remove this user's entries that are new since `before` and that no living process holds. Returns their number.

    A trial on the same node may be at work with some of the new ones; those are held.
    """
    new = {name for name, _ in ours_in_shared_memory() - before}
    held = _held() if new else set()
    removed = 0
    for name in new:
        path = _FOLDER / name
        if path.is_dir() and not path.is_symlink():
            below = f"{path}/"
            if not any(other.startswith(below) for other in held):
                shutil.rmtree(path, ignore_errors=True)
                removed += 1
        elif str(path) not in held:
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def _held() -> set[str]:
    """Paths in /dev/shm which this user's processes have open or mapped."""
    found: set[str] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            maps = (process / "maps").read_text(errors="replace").splitlines()
            found.update(line[line.index("/dev/shm/") :] for line in maps if " /dev/shm/" in line)
            for fd in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(fd.readlink())
                    if target.startswith("/dev/shm/"):
                        found.add(target)
    return found
