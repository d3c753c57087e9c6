"""One controller a run: an advisory lock that the kernel drops with its holder, and who that is, for people."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from autoresearch_hpc.errors import RunLockedError

_PROBE_S = 0.5  # far longer than a `holder` keeps its shared lock


class RunLock:
    """Held from construction until `release` or the process's end.

    Raises RunLockedError naming the holder's host and pid where another controller has it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+")
        deadline = time.monotonic() + _PROBE_S
        while not _lock(self._file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                who = _text(self._file)
                self._file.close()
                raise RunLockedError(
                    f"another controller works on {path.parent}: {who}", "wait for it, or stop it first"
                )
            time.sleep(_PROBE_S / 20)
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        self._file.flush()

    def release(self) -> None:
        if not self._file.closed:
            self._file.truncate(0)  # nobody shall take this process for the next holder
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def holder(path: Path) -> str | None:
    """Who holds the lock, as text, or None where nobody does. A reader's rights are enough, and nobody is disturbed."""
    try:
        file = path.open()
    except FileNotFoundError:
        return None
    with file:
        return None if _lock(file, fcntl.LOCK_SH) else _text(file)


def _lock(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _text(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"
