"""The processes under a worker: started in sessions of their own, watched with deadlines, and all gone at the end."""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_TICK_S = 0.05


class Stopped(Exception):
    """The worker was told to stop, by a signal: the reason is its text."""


class StopFlag:
    """Remembers the first stopping signal; waiting loops ask it, so that no signal interrupts a write."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.timed_out = False
        for number in _STOP_SIGNALS:
            signal.signal(number, self._set)

    def _set(self, number: int, _: object) -> None:
        if self.reason is None:
            self.reason, self.timed_out = _STOP_SIGNALS[signal.Signals(number)], number == signal.SIGUSR2

    def check(self) -> None:
        """Raises Stopped once a stopping signal has come."""
        if self.reason:
            raise Stopped(self.reason)


_STOP_SIGNALS = {
    signal.SIGTERM: "cancelled or preempted (SIGTERM)",
    signal.SIGUSR1: "told to stop (SIGUSR1)",
    signal.SIGUSR2: "the job's time limit is near (SIGUSR2)",
}


class Child:
    """One process with a pipe for JSON lines from it, and optionally one to its standard input."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path,
        fd_argument: str | None = None,
        fd_variable: str | None = None,
        stdin: bool = False,
    ) -> None:
        """The pipe's number reaches the child as a command-line argument or as an environment variable."""
        read_fd, write_fd = os.pipe()
        arguments = [*command, fd_argument, str(write_fd)] if fd_argument else list(command)
        variables = {**env, fd_variable: str(write_fd)} if fd_variable else dict(env)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=cwd,
                pass_fds=[write_fd],
                start_new_session=True,
            )
        os.close(write_fd)
        os.set_blocking(read_fd, False)
        self._fd = read_fd
        self._buffer = b""

    def events(self) -> list[dict[str, Any]]:
        """The complete JSON objects that have arrived since the last call; waits for at most one tick."""
        if select.select([self._fd], [], [], _TICK_S)[0]:
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(self._fd, 65536)
                self._buffer += chunk
                if not chunk:
                    time.sleep(_TICK_S)  # the pipe is closed: do not spin
        *lines, self._buffer = self._buffer.split(b"\n")
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the child is not trusted
                event = json.loads(line)
                if isinstance(event, dict):
                    found.append(event)
        return found

    def wait(self, until: Callable[[dict[str, Any]], bool], limit_s: float, stop: StopFlag) -> bool:
        """Feed events to `until` until it says so (True) or the child is gone or out of time (False).

        Raises Stopped on a stopping signal.
        """
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            stop.check()
            gone = self.process.poll() is not None  # asked before reading: its last words are not missed
            for event in self.events():
                if until(event):
                    return True
            if gone:
                return False
        return False

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def tell(self, line: str) -> None:
        """Write one line to the child's standard input; a child that is gone hears nothing."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        """End the child and its process group, and reap it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.wait()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def adopt_orphans() -> None:
    """Make processes that lose their parent children of this one, so that `kill_descendants` finds them."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants() -> int:
    """SIGKILL everything below this process and reap it. Returns how many processes were left."""
    killed = 0
    for _ in range(100):
        pids = _descendants(os.getpid())
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)
    return killed


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # the second field is a name in parentheses, which may hold anything
                state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z" or int(ppid) == root:
                    children.setdefault(int(ppid), []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found
