"""The processes under a worker: started in sessions of their own, watched with deadlines, and all gone at the end."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoresearch_hpc.leftovers import die_with_parent
from autoresearch_hpc.sandbox import Barrier
from autoresearch_hpc.trial.logs import CappedLog

_TICK_S = 0.05
_SIGNAL_S = 0.5  # between the first and the last process of a job to get one signal, on a busy node
_CHUNK = 65_536  # bytes; also the longest line that is listened to
_MAX_PIPE = 1 << 20  # bytes that an unprivileged process may leave in a pipe
_REAP_S = 10.0  # for a process that the kernel holds back: then the result matters more


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
        barrier: Barrier | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """The pipe's number reaches the child as a command-line argument or as an environment variable."""

        def before_exec() -> None:
            die_with_parent()
            if barrier is not None:
                barrier.enter()

        read_fd, write_fd = os.pipe()
        arguments = [*command, fd_argument, str(write_fd)] if fd_argument else list(command)
        variables = {**env, fd_variable: str(write_fd)} if fd_variable else dict(env)
        self._log = CappedLog(log)
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=self._log.write_fd,
            stderr=subprocess.STDOUT,
            env=variables,
            cwd=cwd,
            pass_fds=[write_fd, *pass_fds],
            start_new_session=True,
            preexec_fn=before_exec,
        )
        self._log.start()
        os.close(write_fd)
        os.set_blocking(read_fd, False)
        self._fd = read_fd
        self._partial = b""
        self._events: deque[dict[str, Any]] = deque()

    def _read(self, tick_s: float) -> bool:
        """Take in what has arrived, waiting for at most a tick; False where nothing has. The child is not trusted."""
        if not select.select([self._fd], [], [], tick_s)[0]:
            return False
        try:
            chunk = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            time.sleep(tick_s)  # the pipe is closed: do not spin
            return False
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        self._partial = self._partial[: _CHUNK + 1]
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line) if len(line) <= _CHUNK else None
                if isinstance(event, dict):
                    self._events.append(event)
        return True

    def wait(
        self,
        until: Callable[[dict[str, Any]], bool],
        limit_s: float,
        stop: StopFlag,
        watch: Callable[[], None] = lambda: None,
    ) -> bool:
        """Feed events to `until` until it says so (True) or the child is gone or out of time (False).

        Events that came behind the one that ended a wait are the next wait's. Raises Stopped on a stopping signal, and
        whatever `watch` raises, which is called all the time.
        """
        found = self._wait(until, limit_s, stop, watch)
        if not found:
            self._log.settle()  # whoever asks why will read it
        return found

    def _wait(
        self, until: Callable[[dict[str, Any]], bool], limit_s: float, stop: StopFlag, watch: Callable[[], None]
    ) -> bool:
        deadline = time.monotonic() + limit_s
        last_words = _MAX_PIPE // _CHUNK
        while time.monotonic() < deadline:
            stop.check()
            watch()
            while self._events:
                if until(self._events.popleft()):
                    return True
            gone = self.process.poll() is not None  # asked before reading: its last words are not missed
            silent = not self._read(0.0 if gone else _TICK_S)
            last_words -= gone  # what it left behind may go on writing
            if gone and (silent or last_words < 0):
                self._await_signal(stop)
                return False
        return False

    def _await_signal(self, stop: StopFlag) -> None:
        """Slurm signals all of a job's processes, the worker maybe last: a child that failed may have been stopped."""
        deadline = time.monotonic() + _SIGNAL_S
        while self.process.returncode and time.monotonic() < deadline:
            stop.check()
            time.sleep(_TICK_S)

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
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_REAP_S)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._log.stop()
