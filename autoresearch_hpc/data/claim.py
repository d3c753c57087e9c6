"""Who prepares a data set: a lock file for filesystems on which the kernel's locks may not work.

The file names the holder's host and process, and its holder touches it every few seconds. It is stale when that
process is gone, or, seen from another host, when nobody has touched it for long. The lock only saves work: should two
hold it after all, both write the same bytes under private names first, and the one that publishes last gives way.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

_log = logging.getLogger(__name__)
_TOUCH_S = 5.0
_STALE_S = 60.0
_LOOK_S = 0.2


class Claim:
    """Held inside the `with` block; entering waits for whoever holds it and says once who that is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._released = threading.Event()
        self._text = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "id": uuid.uuid4().hex}
        )

    def __enter__(self) -> Self:
        told = False
        while not self._take():
            holder = self._holder()
            if holder and _is_dead(holder):
                self._remove_stale(holder)
                continue
            if not told and holder:
                _log.info("%s is at it (%s): waiting", _who(holder), self._path)
                told = True
            if self._silent_for_s() > _STALE_S:
                self._remove_stale(holder)
            time.sleep(_LOOK_S)
        self._toucher = threading.Thread(target=self._touch, name="claim", daemon=True)
        self._toucher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._toucher.join()
        if self._holder() == self._text:
            self._path.unlink(missing_ok=True)

    def _take(self) -> bool:
        try:
            with self._path.open("x") as file:
                file.write(self._text)
        except FileExistsError:
            return False
        return True

    def _holder(self) -> str | None:
        """The lock's text, empty where it was just made; None where there is no lock."""
        try:
            return self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _remove_stale(self, seen: str | None) -> None:
        aside = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
        try:
            self._path.rename(aside)  # of several that try, one succeeds
        except FileNotFoundError:
            return
        if aside.read_text(encoding="utf-8") == seen:
            _log.info("%s left %s behind: taking over", _who(seen), self._path)
        elif not self._path.exists():
            aside.rename(self._path)  # somebody else was faster and holds it already
            return
        aside.unlink(missing_ok=True)

    def _silent_for_s(self) -> float:
        """Seconds since the holder's last sign of life, by the file server's clock."""
        probe = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
        try:
            touched = self._path.stat().st_mtime
            probe.touch()
            return probe.stat().st_mtime - touched
        except FileNotFoundError:
            return 0.0
        finally:
            probe.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._released.wait(_TOUCH_S):
            if self._holder() != self._text:
                return  # taken over after a long silence, of a suspended process for one
            with contextlib.suppress(OSError):  # a server that is away for a moment
                os.utime(self._path)


def _is_dead(holder: str) -> bool:
    """Whether the holder is certainly gone, which only its own host can say."""
    try:
        who = json.loads(holder)
        if who["host"] != socket.gethostname():
            return False
        return bool(_started(int(who["pid"])) != who["started"])
    except (ValueError, KeyError, TypeError):
        return False  # half written: time will tell


def _started(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None where it is gone or only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _who(holder: str | None) -> str:
    try:
        who = json.loads(holder or "")
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"
