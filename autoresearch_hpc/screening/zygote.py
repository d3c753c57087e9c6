"""The controller's end of the supervisor: starts it at the first check, starts it again where it died, ends it."""

import contextlib
import json
import logging
import os
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoresearch_hpc import environment
from autoresearch_hpc.leftovers import remove_tree
from autoresearch_hpc.quoting import quoted_line

START_S = 180.0  # PyTorch from a slow network filesystem
SPARE_S = 30.0  # beyond a check's own limits, to kill and to remove what it left
_END_S = 5.0
_CHUNK = 65_536
_MAX_ANSWER = 16 << 20

_log = logging.getLogger(__name__)


class Unanswered(Exception):
    """There is no supervisor, or it gave no answer."""


class Zygote:
    """Answers one request at a time; to be called from any thread."""

    def __init__(self, mode: str, pass_env: Sequence[str], protected: Sequence[Path]) -> None:
        self._mode, self._pass_env, self._protected = mode, pass_env, protected
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer to a request that may take so long. Raises Unanswered."""
        with self._lock:
            group: int | None = None
            try:
                self._start()
                self._door.settimeout(limit_s + SPARE_S)
                self._door.sendall(json.dumps(request).encode() + b"\n")
                deadline = time.monotonic() + limit_s + SPARE_S
                group = self._receive(deadline).get("pid")
                return self._receive(deadline)
            except (OSError, ValueError) as error:
                self._end()
                if group is not None:  # what the supervisor could not end any more
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(group, signal.SIGKILL)
                raise Unanswered(quoted_line(str(error))) from error

    def close(self) -> None:
        """End the supervisor and what it runs. A check that is under way has no answer."""
        self._closed = True
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._door.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for an answer, and ends the supervisor
        with self._lock:
            self._end()

    def _start(self) -> None:
        if self._closed:
            raise ValueError("the screening is over")
        if self._process is not None and self._process.poll() is None:
            return
        self._end()
        self._root = Path(tempfile.mkdtemp(prefix="autoresearch-screening-")).resolve()
        ours, theirs = socket.socketpair()
        self._partial = b""
        user_site = Path(__file__).is_relative_to(site.getusersitepackages())
        command = [
            *(sys.executable, "-P", *([] if user_site else ["-s"]), "-m", "autoresearch_hpc.screening.supervisor"),
            *(str(theirs.fileno()), str(self._root), self._mode, *map(str, self._protected)),
        ]
        with (self._root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=_environment(self._pass_env), cwd=self._root, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        theirs.close()
        self._door = ours
        self._receive(time.monotonic() + START_S)

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message. Raises OSError (TimeoutError) or ValueError where none comes."""
        while b"\n" not in self._partial:
            self._door.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = self._door.recv(_CHUNK)
            if not chunk or len(self._partial) > _MAX_ANSWER:
                raise ValueError(f"the supervisor ended: {self._last_words()}")
            self._partial += chunk
        line, _, self._partial = self._partial.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("an answer that is no object")
        return message

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._root / "log").read_text(encoding="utf-8", errors="replace").split("\n")
            return next((line for line in reversed(lines) if line.strip()), "without a word")
        return "without a word"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        self._door.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        remove_tree(self._root)


def _environment(pass_env: Sequence[str]) -> dict[str, str]:
    env = environment.for_trial(pass_env, private=True)
    search_path = [entry for entry in env.pop("PYTHONPATH", "").split(os.pathsep) if Path(entry).is_absolute()]
    if search_path:
        env["PYTHONPATH"] = os.pathsep.join(search_path)
    env = {name: value for name, value in env.items() if not name.startswith("AUTORESEARCH_")}
    env.update(PYTHONSAFEPATH="1", PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1")
    env.update(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")  # a check costs no GPU
    env.update(TORCHDYNAMO_DISABLE="1")  # compiled, the first step would not end in time
    env.setdefault("GOMP_SPINCOUNT", "1000")  # spinning threads starve each other once a core is shared
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env.pop(name, None)  # each check sets its own
    return env
