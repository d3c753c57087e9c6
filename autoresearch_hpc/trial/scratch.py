"""A trial's private directory on its node: home, temporary files, caches and checkpoint, gone when the trial ends.

    <tmp>/autoresearch_hpc-<uid>/trial-XXXX/    trainer/ scoring/ witness/, each with home/ tmp/ caches/ out/;
                                                `owner` is locked while in use

What a worker left that was killed outright is removed by the next one, as its lock is free then. The directory's name
is as long on every node, if its place allows: caches remember it, and are moved from trial to trial (`compiled`).
"""

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path

from autoresearch_hpc.leftovers import remove_tree, size_on_disk

_FOLDERS = ("home", "tmp", "caches", "out")
_LENGTH = 60  # of the root's path: longer ones, with what is below, are too long for sockets
_YOUNG_S = 60.0  # may have been made by a worker that has not locked it yet


class Scratch:
    """`with Scratch() as scratch` makes the directory and removes it."""

    def __init__(self) -> None:
        base = node_directory()
        _sweep(base)
        padding = "x" * (_LENGTH - len(str(base)) - len("/trial-12345678"))
        self.root = Path(tempfile.mkdtemp(prefix=f"trial-{padding}", dir=base))
        self._owner = os.open(self.root / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def place(self, name: str) -> Path:
        """A set of private folders of this name."""
        root = self.root / name
        for folder in _FOLDERS:
            (root / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        return root

    def num_bytes(self) -> int:
        """What the trial has written."""
        return size_on_disk(self.root)

    def remove(self) -> None:
        remove_tree(self.root)
        os.close(self._owner)


def node_directory(parent: Path | None = None) -> Path:
    """This user's directory on the node, for temporary files or below `parent`.

    Raises OSError where there is no parent, or somebody else has made it.
    """
    base = (parent or Path(tempfile.gettempdir())).resolve() / f"autoresearch_hpc-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    found = base.lstat()
    if base.is_symlink() or found.st_uid != os.getuid():
        raise PermissionError(f"{base} belongs to somebody else; choose a directory of your own (TMPDIR, task.stage)")
    return base


def _sweep(base: Path) -> None:
    for left in base.glob("trial-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime < _YOUNG_S:
                continue
            fd = os.open(left / "owner", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(left)
            finally:
                os.close(fd)
