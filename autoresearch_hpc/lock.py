"""One controller a run: the kernel's lock where it works, and a lease that works everywhere.

    controller.flock    flock(2), held for the controller's life; shared filesystems may refuse it, or keep it to a node
    controller.lock     the lease: {host, pid, place, started, token, job, since}; touched every 10 s, gone at the end

A lease whose process runs on this node is good; one whose process is gone is not. Of another node's process only the
touches tell: none for 60 s, and none while we watch, and the lease is stale.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from autoresearch_hpc.errors import RunLockedError
from autoresearch_hpc.files import parse_json_object

_log = logging.getLogger(__name__)
_BEAT_S = 10.0
_STALE_S = 60.0
_WATCH_S = 15.0  # longer than a beat: however old a lease looks, clocks and caches of a shared filesystem may be wrong
_LOOK_S = 0.5
_LEAVING_S = 0.5  # for a controller that is just about to end
_NO_FLOCK = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL})
_REMEDY = "wait for it, or stop it first"


@dataclass(frozen=True, slots=True)
class Lease:
    """What a lease file says; without `who`, it is nobody's."""

    file: Path
    text: str = ""
    touched_ns: int = 0
    who: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        job = f", Slurm job {self.who['job']}" if self.who.get("job") else ""
        return f"pid {self.who['pid']} on {self.who['host']}{job}" if self.who else "unknown"

    @property
    def pid(self) -> int:
        return int(self.who["pid"])


class RunLock:
    """Held from construction until `release` or the process's end.

    Raises RunLockedError naming the holder's host and pid where another controller has it. Where that cannot be told
    at once it waits, about a minute at most.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._token = path, uuid.uuid4().hex
        self._text = json.dumps(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "place": _place(),
                "started": _started(os.getpid()),
                "token": self._token,
                "job": os.environ.get("SLURM_JOB_ID"),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        self._released, self._lost = threading.Event(), ""
        self._flock = path.with_suffix(".flock").open("a+", encoding="utf-8")
        try:
            self._has_flock = self._lock_file()
            self._take()
        except BaseException:
            self._flock.close()
            raise
        self._touched_at = time.monotonic()
        self._beat = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._beat.start()

    def _lock_file(self) -> bool:
        """Whether flock works here. Raises RunLockedError where another process has it."""
        deadline = time.monotonic() + _LEAVING_S
        while True:
            try:
                fcntl.flock(self._flock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self._flock.seek(0)
                    raise self._refused(_lease(self._path, self._flock)) from None
                time.sleep(_LEAVING_S / 20)
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
                _log.info("%s: no flock (%s): the lease alone says whose run it is", self._path, error.strerror)
                return False
        self._flock.truncate(0)
        self._flock.write(self._text)
        self._flock.flush()
        return True

    def _take(self) -> None:
        watched, until = Lease(self._path), 0.0
        while True:
            chain = _chain(self._path)
            newest = chain[-1]
            alive = _alive(newest)
            if alive or (alive is None and watched.who and newest != watched):  # it was touched, or there is a new one
                raise self._refused(newest)
            if alive is None and not watched.who:
                silent_s = self._silent_for_s(newest)
                watched, until = newest, time.monotonic() + max(_STALE_S - silent_s, _WATCH_S)
                _log.info(
                    "%s: watching for a sign of life of %s, %.0f s at most",
                    self._path,
                    newest,
                    until - time.monotonic(),
                )
            if alive is None and time.monotonic() < until:
                time.sleep(_LOOK_S)
            elif self._succeed(chain):
                if newest.who:
                    sign = "its process is gone" if alive is False else f"no sign of life for {_STALE_S:.0f} s"
                    _log.info("%s: taking over from %s: %s", self._path, newest, sign)
                return
            else:
                time.sleep(_LOOK_S / 10)

    def _succeed(self, chain: list[Lease]) -> bool:
        """Put our lease in place of the first of the chain, if we are the one successor of its last.

        A lease may have one successor, for ever: the process that makes the file named after it. Making a hard link
        fails where the name exists, on every server and also where O_EXCL does not hold. So of many that found the
        same lease stale one goes on; and one that slept since it looked finds another lease in place, or a new name.
        """
        path, turn = self._path, _turn(self._path, chain[-1])
        mine = path.with_name(f".{path.name}.{self._token}.tmp")
        try:
            with mine.open("w", encoding="utf-8") as file:
                file.write(self._text)
                file.flush()
                os.fsync(file.fileno())
            try:
                turn.hardlink_to(mine)
            except FileExistsError:
                if mine.stat().st_nlink < 2:  # else it was made, and the server's answer to that was lost
                    return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                if not self._has_flock:
                    raise RunLockedError(
                        f"neither flock nor hard links work in {path.parent}", "set runs_dir= to another filesystem"
                    ) from error
            if _read(path) != chain[0]:
                turn.unlink(missing_ok=True)
                return False
            mine.replace(path)
            for name in [n for n in os.listdir(path.parent) if n.startswith(f"{path.name}.")]:  # noqa: PTH208
                path.with_name(name).unlink(missing_ok=True)
            return True
        finally:
            mine.unlink(missing_ok=True)

    def _silent_for_s(self, lease: Lease) -> float:
        """Seconds since a lease was touched, by the file server's clock where it stamps files: never two nodes' own."""
        probe = self._path.with_name(f".{self._path.name}.{self._token}.now")
        try:
            probe.write_text("now", encoding="utf-8")
            return max(0.0, (probe.stat().st_mtime_ns - lease.touched_ns) / 1e9)
        finally:
            probe.unlink(missing_ok=True)

    def _refused(self, lease: Lease) -> RunLockedError:
        return RunLockedError(f"another controller works on {self._path.parent}: {lease}", _REMEDY)

    # holding it

    def verify(self) -> None:
        """Raises RunLockedError where another controller has taken over: this one was suspended for long."""
        if time.monotonic() - self._touched_at > 2 * _BEAT_S:  # whoever watches us by now shall give way
            self._touch()
        lease = _read(self._path)
        if lease.text != self._text:
            self._lost = f"this controller lost {self._path.parent} to another one: {lease}"
        self.raise_if_lost()

    def raise_if_lost(self) -> None:
        """What `verify` or a heartbeat has found; looks at no file."""
        if self._lost:
            raise RunLockedError(self._lost, "leave the run to that one")

    def _touch(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path)
        self._touched_at = time.monotonic()

    def _keep(self) -> None:
        while not self._released.wait(_BEAT_S):
            try:
                self.verify()
                self._touch()
            except RunLockedError as error:
                _log.error("%s", error)
                return
            except OSError as error:  # a server that is away for a moment
                _log.warning("%s: cannot be kept up (%s)", self._path, error)

    def release(self) -> None:
        if self._released.is_set():
            return
        self._released.set()
        self._beat.join(1)
        with self._flock, contextlib.suppress(OSError):
            if _read(self._path).text == self._text:
                self._path.unlink()
            if self._has_flock:
                self._flock.truncate(0)  # nobody shall take this process for the next holder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def holder(path: Path) -> Lease | None:
    """Who holds the lock, or None where nobody does. A reader's rights are enough, and nobody is disturbed."""
    lease = _chain(path)[-1]
    alive = _alive(lease)
    if alive is None:  # by two nodes' clocks: good enough for a look
        alive = time.time() - lease.touched_ns / 1e9 < _STALE_S
    return lease if alive else None


def _chain(path: Path) -> list[Lease]:
    """The lease in place and, where processes were killed while they took over, who was to succeed whom."""
    leases = [_read(path)]
    while (successor := _read(_turn(path, leases[-1]))).text:
        leases.append(successor)
    return leases


def _turn(path: Path, lease: Lease) -> Path:
    name = hashlib.sha256(f"{lease.file.name}\n{lease.text}".encode()).hexdigest()[:16]
    return path.with_name(f"{path.name}.{name}")


def _read(path: Path) -> Lease:
    """A lease, nobody's where there is none. Opening the file is what makes a client of NFS ask its server again."""
    while True:
        try:
            with path.open(encoding="utf-8") as file:
                return _lease(path, file)
        except FileNotFoundError:
            return Lease(path)
        except OSError as error:
            if error.errno != errno.ESTALE:  # replaced while we read it
                raise


def _lease(path: Path, file: TextIO) -> Lease:
    text, touched_ns = file.read(), os.fstat(file.fileno()).st_mtime_ns
    try:
        who = parse_json_object(text)
    except ValueError:
        who = {}
    return Lease(path, text, touched_ns, who if {"host", "pid", "place", "started", "token"} <= who.keys() else {})


def _alive(lease: Lease) -> bool | None:
    """Whether the lease's process is there; None where that cannot be told from here."""
    if not lease.who:
        return False
    if lease.who["place"] != _place():
        return None
    started = _started(lease.pid)
    if started is not None:
        return bool(started == lease.who["started"])
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process, which /proc may hide
        return None
    return False  # a zombie


def _place() -> str:
    """Where a process id means something: a boot of a kernel, and a container on it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115


def _started(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None where it is gone, hidden, or waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
