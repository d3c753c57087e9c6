"""A child's output on its way to a log of bounded size: the end is kept, what came long before is dropped."""

import contextlib
import os
import select
import threading
import time
from pathlib import Path

MAX_LOG_BYTES = 16 << 20
_CHUNK = 65_536


class CappedLog:
    """Copies a pipe into a file, in a thread of its own: a child that prints never waits for the worker.

    A file that grows beyond `max_bytes` is cut to the last half of that, under a line which says how much is gone.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        self._max_bytes = max_bytes
        self._file = path.open("a+b", buffering=0)
        self._size = path.stat().st_size
        self._dropped = 0
        self._read_fd, self.write_fd = os.pipe()
        self._stopped = threading.Event()
        self._busy = threading.Lock()
        self._thread = threading.Thread(target=self._copy, name=f"log {path.name}", daemon=True)

    def start(self) -> None:
        """Begin to copy, once the child has the writing end."""
        os.close(self.write_fd)
        self._thread.start()

    def settle(self) -> None:
        """Wait until what has been printed so far is in the file, a second at most."""
        deadline = time.monotonic() + 1.0
        while self._thread.is_alive() and time.monotonic() < deadline:
            with self._busy:
                if not self._thread.is_alive() or not select.select([self._read_fd], [], [], 0.0)[0]:
                    return
            time.sleep(0.001)

    def stop(self) -> None:
        """Take in what the pipe still holds, and end."""
        self._stopped.set()
        self._thread.join(timeout=5)
        os.close(self._read_fd)
        self._file.close()

    def _copy(self) -> None:
        while True:
            ended = self._stopped.is_set()  # asked before reading: what was there is not missed
            if not select.select([self._read_fd], [], [], 0.0 if ended else 0.1)[0]:
                if ended:
                    break
                continue
            with self._busy:
                chunk = os.read(self._read_fd, _CHUNK)
                if not chunk or (ended and self._dropped):
                    break
                with contextlib.suppress(OSError, ValueError):  # a full disk is no reason to end a training
                    self._take(chunk)

    def _take(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._size += len(chunk)
        if self._size > self._max_bytes:
            keep = self._max_bytes // 2
            self._dropped += self._size - keep
            end = os.pread(self._file.fileno(), keep, self._size - keep)
            note = f"[{self._dropped} bytes of output were dropped here]\n".encode()
            self._file.truncate(0)
            self._file.write(note + end)
            self._size = len(note) + len(end)
