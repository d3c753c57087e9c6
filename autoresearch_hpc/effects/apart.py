"""Fits in a process of their own: statsmodels brings pandas, memory that a controller would never give back.

The process is started where a fit is foreseeable, and imports while trials run; from then on it waits for requests. It
has nothing but two pipes, and ends with the one that it reads from: with its controller, however that ends. One that
has died is replaced, once a request. A request without an answer is told in one line, and there is no model.
"""

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from autoresearch_hpc.effects.coding import comparable
from autoresearch_hpc.effects.model import Model
from autoresearch_hpc.gains import Noise
from autoresearch_hpc.quoting import quoted_line
from autoresearch_hpc.records import Outcome
from autoresearch_hpc.space import Space

__all__ = ["FitProcess"]

_START_S = 180.0  # the libraries from a slow network filesystem
_TICK_S = 0.1
# More are slower where others use the cores, too, and their sums would depend on the machine.
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")

_log = logging.getLogger(__name__)


class _Gone(Exception):
    """The process has ended, or could not be started."""


class FitProcess:
    """A `fit` that is done elsewhere; to be called from any thread.

    It may take `limit_s`. Meanwhile `check_stop` is called again and again, and may raise.
    """

    def __init__(self, check_stop: Callable[[], None] = lambda: None, limit_s: float = 120.0) -> None:
        self._check_stop, self._limit_s = check_stop, limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready_by = 0.0

    def __call__(self, outcomes: Sequence[Outcome], space: Space, noise: Noise | None = None) -> Model | None:
        """What `fit` returns; None where there is no answer, too."""
        request = comparable(outcomes, space), space.domains, noise
        with self._lock:
            try:
                try:
                    answer = self._answer(request)
                except _Gone:
                    answer = self._answer(request)
            except _Gone as error:
                answer = str(error)
        if isinstance(answer, str):
            _log.warning("the effects of knobs are not known this time: %s", quoted_line(answer))
            return None
        return answer

    def start(self) -> None:
        """Have the process ready when the first request comes."""
        with self._lock, contextlib.suppress(_Gone):  # told once it is needed
            self._running()

    def close(self) -> None:
        """End the process. A request would start another one."""
        with self._lock:
            self._end()

    def _answer(self, request: object) -> Model | str | None:
        """The model, or in words why there is none. Raises _Gone."""
        process = self._running()
        deadline = max(time.monotonic(), self._ready_by) + self._limit_s
        with ThreadPoolExecutor(1) as thread:  # pipes block; the end of the process ends that
            exchange = thread.submit(_exchange, process, request)
            try:
                while not wait([exchange], _TICK_S).done:
                    self._check_stop()
                    if time.monotonic() > deadline:
                        self._end()
                        return f"no answer within {self._limit_s:g} s"
            except BaseException:
                self._end()
                raise
        try:
            answer = exchange.result()
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise _Gone(f"the process that estimates them {_words(self._end())}") from error
        self._ready_by = 0.0
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        safe_path = ["-P"] if sys.flags.safe_path else []
        try:
            self._process = subprocess.Popen(
                [sys.executable, *safe_path, "-m", "autoresearch_hpc.effects"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
                start_new_session=True,  # whoever interrupts the controller does not mean this one
            )  # fmt: skip
        except OSError as error:
            raise _Gone(f"no process to estimate them: {error}") from error
        self._ready_by = time.monotonic() + _START_S
        return self._process

    def _end(self) -> int:
        """Its exit status; 0 where there was none."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe
            with contextlib.suppress(OSError):  # the rest of a request
                pipe.close()
        return status


def _exchange(process: subprocess.Popen[bytes], request: object) -> Model | str | None:
    assert process.stdin
    assert process.stdout
    pickle.dump(request, process.stdin, pickle.HIGHEST_PROTOCOL)
    process.stdin.flush()
    answer: Model | str | None = pickle.load(process.stdout)
    return answer


def _words(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
