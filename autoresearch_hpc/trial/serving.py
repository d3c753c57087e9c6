"""The evaluator's end of a server: forks it, shuts it in, hands inputs over and takes logits."""

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autoresearch_hpc.files import parse_json_object
from autoresearch_hpc.harness import Meta
from autoresearch_hpc.leftovers import die_with_parent
from autoresearch_hpc.quoting import quoted_line
from autoresearch_hpc.records import TrialSpec
from autoresearch_hpc.sandbox import Barrier, software
from autoresearch_hpc.trial import cuda_memory
from autoresearch_hpc.trial.integrity import protected
from autoresearch_hpc.trial.memory import oom_kills
from autoresearch_hpc.trial.server import DTYPES, MAX_MESSAGE, NOT_SHARED, Server, Shape, map_memory, settle_in

_log = logging.getLogger(__name__)
_FAILURES = ("INVALID", "OOM", "CRASHED")
_SEALS = fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ServerFailed(Exception):
    """The server gives no logits; `answer` is what goes to the worker."""

    def __init__(self, status: str, type_: str, message: str) -> None:
        super().__init__(message)
        self.answer: dict[str, object] = {
            "status": status,
            "type": quoted_line(type_, 100),
            "message": quoted_line(message),
        }


class ModelServer:
    """One server. Raises ServerFailed where it cannot do what is asked."""

    coarse = False  # whether its logits were of a type with few digits

    def __init__(self, spec: TrialSpec, place: Path | None, strangers: Sequence["ModelServer"] = ()) -> None:
        """Fork it; of the sockets of `strangers` it gets none."""
        self._spec = spec
        self._oom_kills = oom_kills()
        self._door, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        barrier = _barrier(spec, place) if place else None
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid: int | None = os.fork()
        if self._pid == 0:
            status = 1
            try:
                die_with_parent()
                _close_all_but(other.fileno(), barrier)
                settle_in(place)
                if barrier is not None:
                    barrier.enter()
                Server(other).run(on_gpu=spec.device != "cpu" and Path("/dev/nvidiactl").exists())
                status = 0
            except BaseException:  # noqa: BLE001 - nothing of this process may return into the parent's code
                traceback.print_exc()
            finally:
                os._exit(status)
        other.close()
        if barrier is not None:
            barrier.close()

    def open(self, meta: Meta, device: torch.device, checkpoint: Path) -> None:
        """Have it build the model and load the checkpoint; `opened` waits until it has."""
        self._checkpoint = checkpoint
        self._expected: deque[str] = deque()  # answers that are still to come
        self._message: dict[str, Any] = {
            "do": "open",
            "script": str(Path(self._spec.src) / self._spec.script),
            "meta": asdict(meta),
            "device": device.type,
            "num_threads": self._spec.num_threads,
        }
        self._send_open()

    def share(self, shape: Shape, *, on_gpu: bool) -> None:
        """Give it memory for inputs and logits. What takes time here goes on beside the building of the model."""
        self._shape, self.slots = shape, shape.slots
        self._on_gpu: torch.Tensor | None = None
        handle = b""
        if on_gpu:
            try:
                self._on_gpu, handle = cuda_memory.allocated(shape.slots * shape.logit_bytes)
            except OSError as error:
                _log.warning("%s; logits go through host memory, which takes longer", error)
        memory_fd = os.memfd_create("logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory_fd, shape.host_bytes(logits=self._on_gpu is None))
        fcntl.fcntl(memory_fd, *_SEALS)  # else it could be cut off under our hands
        self._memory = map_memory(os.dup(memory_fd))
        try:
            self._send("SHARED", {"do": "share", "shape": asdict(shape), "handle": handle.hex()}, [memory_fd])
        finally:
            os.close(memory_fd)

    @property
    def on_gpu(self) -> bool:
        """Whether logits stay in the GPU's memory."""
        return self._on_gpu is not None

    @property
    def gone(self) -> bool:
        """Whether it was found to have ended."""
        return self._pid is None

    def opened(self) -> None:
        """Wait until the model and the memory are there."""
        self._receive()
        answer = self._receive(NOT_SHARED)
        if answer["status"] == NOT_SHARED:
            _log.warning("%s; logits go through host memory, which takes longer", quoted_line(str(answer)))
            self.share(self._shape, on_gpu=False)
            self._receive()

    def forget(self) -> None:
        """Have it drop the model, and wait. What was asked before is not answered."""
        self._send("CLOSED", {"do": "close"})
        while len(self._expected) > 1:
            self._expected.popleft()
            self._door.recv(MAX_MESSAGE)
        self._receive()

    def open_again(self) -> None:
        """Load the model once more, and wait. What was asked before is forgotten."""
        self.forget()
        self._send_open()
        self._receive()

    def _send_open(self) -> None:
        try:
            fd = os.open(self._checkpoint, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a description of its own
        except FileNotFoundError:
            raise ServerFailed("INVALID", "InvalidCandidate", "no checkpoint was saved") from None
        try:
            self._send("READY", self._message, [fd])
        finally:
            os.close(fd)

    def ask(self, slot: int, inputs: npt.NDArray[np.uint16]) -> None:
        """Have it compute the logits of inputs `(n, T)`; `logits` waits for them."""
        self._shape.inputs(self._memory, slot, len(inputs)).copy_(torch.from_numpy(inputs.astype(np.int32)))
        self._send("DONE", {"do": "logits", "slot": slot, "rows": len(inputs)})

    def logits(self, slot: int, rows: int) -> torch.Tensor:
        """The logits `(rows, T, V)` in the slot, in memory which the server may still write to."""
        name = self._receive().get("dtype")
        dtype = DTYPES.get(name) if isinstance(name, str) else None
        if dtype is None:
            raise ServerFailed("INVALID", "BadAnswer", f"logits of type {str(name)[:50]}")
        self.coarse |= dtype is not torch.float32
        if self._on_gpu is not None:
            return self._shape.logits(self._on_gpu, 0, slot, rows, dtype)
        return self._shape.logits(self._memory, self._shape.host_bytes(logits=False), slot, rows, dtype)

    def kill(self) -> None:
        """End it, without waiting for its memory to be freed."""
        self._door.close()
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, and wait."""
        self.kill()
        if self._pid is not None:
            os.waitpid(self._pid, 0)
            self._pid = None

    def _send(self, expected: str, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message that is to be answered with the status `expected`."""
        try:
            socket.send_fds(self._door, [json.dumps(message).encode()], fds)
        except OSError:
            raise self._gone() from None
        self._expected.append(expected)

    def _receive(self, or_else: str = "") -> dict[str, Any]:
        """The next answer. Raises ServerFailed where it is neither what is expected nor `or_else`."""
        wanted = {self._expected.popleft(), or_else}
        try:
            text = self._door.recv(MAX_MESSAGE)
        except OSError:
            text = b""
        if not text:
            raise self._gone()
        try:
            answer = parse_json_object(text.decode())
        except ValueError:
            answer = {}
        if answer.get("status") in wanted:
            return answer
        if answer.get("status") in _FAILURES:
            type_, message = (str(answer.get(key, "unknown")) for key in ("type", "message"))
            raise ServerFailed(str(answer["status"]), type_, message)
        raise ServerFailed("INVALID", "BadAnswer", f"the model's process said {text[:100]!r}")

    def _gone(self) -> ServerFailed:
        """Why the server is no more."""
        if self._pid is None:
            return ServerFailed("CRASHED", "ServerGone", "the model's process is gone")
        code = _reaped(self._pid)
        self._pid = None
        if code >= 0:
            return ServerFailed("CRASHED", "ExitStatus", f"the model's process ended with status {code}")
        name = signal.Signals(-code).name
        now = oom_kills()
        if code == -signal.SIGKILL and now is not None and self._oom_kills is not None and now > self._oom_kills:
            return ServerFailed("OOM", name, "host memory: the job's memory limit was reached in the evaluation")
        return ServerFailed("CRASHED", name, f"the model's process was ended by {name}")


def _reaped(pid: int) -> int:
    """The exit status of a server that has hung up; one that lives on after a second is ended."""
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _barrier(spec: TrialSpec, place: Path) -> Barrier:
    """The candidate's files and software to read, its own directory to write."""
    # CUDA finds the memory of another process through an abstract socket of its.
    alone = spec.device == "cpu"
    readable = [*software(protected(spec)), Path(spec.src)]
    return Barrier(readable=readable, writable=[place], mode=spec.sandbox, no_abstract_sockets=alone)


def _close_all_but(door: int, barrier: Barrier | None) -> None:
    """Leave the new process its socket, its log, and nothing of its parent's."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    kept = {0, 1, 2, door, *barrier.fds} if barrier else {0, 1, 2, door}
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if fd not in kept:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(fd)
