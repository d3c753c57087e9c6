"""What asks a controller to stop: noted when it comes, obeyed where nothing is half done. And what does not: SIGHUP.

A controller whose terminal is gone goes on without it. Ctrl-C, SIGTERM and `.cancel`'s request file stop it.
"""

import contextlib
import errno
import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

from autoresearch_hpc.errors import InterruptedRun

_log = logging.getLogger(__name__)
_LOOK_S = 1.0


class StopRequest:
    """Inside its `with` block SIGINT and SIGTERM are noted; a second Ctrl-C interrupts at once.

    A second SIGTERM does not: Slurm sends it to a job's script and to its children, and the script hands it on.
    A file at `request` is as good as Ctrl-C. `fence` raises where the run has become another controller's.
    """

    def __init__(self, remedy: str, request: Path | None = None, fence: Callable[[], None] | None = None) -> None:
        self.signal: signal.Signals | None = None
        self._asked_by = ""
        self._remedy, self._request, self._fence = remedy, request, fence
        self._looked_at = float("-inf")
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: object) -> None:
        self.signal = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def reason(self) -> str:
        """The signal's name, or who asked; nothing where nobody has."""
        return self._asked_by or (self.signal.name if self.signal else "")

    def check(self) -> None:
        """Raises InterruptedRun once a signal or a request has come."""
        if self._fence:
            self._fence()
        if self.signal is None and self._request and time.monotonic() - self._looked_at >= _LOOK_S:
            self._looked_at = time.monotonic()
            self._look(self._request)
        if self.signal is not None:
            raise InterruptedRun(f"stopped by {self.reason}", self._remedy)

    def _look(self, request: Path) -> None:
        with contextlib.suppress(OSError):
            os.close(os.open(request.parent, os.O_RDONLY))  # else a client of NFS would not ask for new names at once
            request.stat()
            self._asked_by, self.signal = f"a cancel request from {_sender(request)}", signal.SIGINT
            request.unlink()


def _sender(request: Path) -> str:
    try:
        return str(json.loads(request.read_text(encoding="utf-8"))["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown host"


@contextlib.contextmanager
def outliving_the_terminal() -> Iterator[None]:
    """Inside the block the end of the terminal ends nothing: what would be written there is dropped from then on.

    The terminal's end shows as SIGHUP, or as EIO of a write where nobody sends a signal. A SIGHUP that is ignored
    already (nohup) stays ignored. Needs the main thread.
    """
    terminals = [number for number in (0, 1, 2) if os.isatty(number)]
    detached = threading.Event()

    def detach(*_: int | FrameType | None) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for number in terminals:
            os.dup2(null, number)
        os.close(null)
        if not detached.is_set():
            detached.set()
            # From a thread of its own: a signal may come in the middle of another log line.
            threading.Thread(target=_log.info, args=("the terminal is gone: going on without it",)).start()

    before = signal.getsignal(signal.SIGHUP)
    streams = sys.stdout, sys.stderr
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, detach)
    if 1 in terminals:
        sys.stdout = _Screen.stream(1, detach)
    if 2 in terminals:
        sys.stderr = _Screen.stream(2, detach)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
        for new in {sys.stdout, sys.stderr} - set(streams):
            new.flush()
        sys.stdout, sys.stderr = streams


class _Screen(io.FileIO):
    """A terminal that may go away."""

    def __init__(self, number: int, on_loss: Callable[[], None]) -> None:
        super().__init__(number, "w", closefd=False)
        self._on_loss = on_loss

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._on_loss()
            return len(memoryview(data).cast("B"))

    @classmethod
    def stream(cls, number: int, on_loss: Callable[[], None]) -> io.TextIOWrapper:
        errors = "backslashreplace" if number == 2 else None
        return io.TextIOWrapper(io.BufferedWriter(cls(number, on_loss)), errors=errors, line_buffering=True)
