"""One controller a run: an advisory lock that the kernel drops with its holder, and who that is, for people."""

import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from autoresearch_hpc.errors import RunLockedError


class RunLock:
    """Held from construction until `release` or the process's end.

    Raises RunLockedError naming the holder's host and pid where another controller has it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+")
        deadline = time.monotonic() + _PROBE_S
        while not _lock(self._file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                who = _read(self._file)
                self._file.close()
                raise RunLockedError(
                    f"another controller works on {path.parent}: {describe(who)}", "wait for it, or stop it first"
                )
            time.sleep(_PROBE_S / 10)
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        self._file.flush()

    def release(self) -> None:
        if not self._file.closed:
            self._file.truncate(0)  # so that nobody is ever taken for the next holder
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def holder(path: Path) -> str | None:
    """Who holds the lock, or None where nobody does. Needs no more than to read the file, and makes nobody wait."""
    try:
        file = path.open()
    except FileNotFoundError:
        return None
    with file:
        return None if _lock(file, fcntl.LOCK_SH) else _read(file)


def describe(held: Holder) -> str:
    """The holder in words."""
    return f"pid {held.pid} on {held.host}" if held.pid else "a process that has only just begun"


def _lock(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: TextIO) -> Holder:
    file.seek(0)
    try:
        who = json.loads(file.read())
        return Holder(host=str(who["host"]), pid=int(who["pid"]))
    except (ValueError, KeyError, TypeError):
        return Holder()
