"""The process that has imported PyTorch once, and forks a child that is shut in for each check.

    python -m autoresearch_hpc.screening.supervisor FD ROOT MODE [PROTECTED ...]

It speaks JSON lines over the socket FD, one request at a time, and ends when the other side hangs up, whatever its
child is doing then. It runs no foreign code itself.

    -> {"script", "files", "meta", "limit_s", ...}        see `rehearsal`; the limit is for all stages before "dry"
    <- {"pid": n}                                         the child's process group
    <- {"said": [...], "ended": "...", "output": "..."}   what the child said, how it ended, the end of what it printed
"""

import torch  # isort: skip - first: the slow import is what this process is for

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from autoresearch_hpc.harness import Meta
from autoresearch_hpc.leftovers import adopt_orphans, die_with_parent, kill_descendants, remove_tree, size_on_disk
from autoresearch_hpc.sandbox import Barrier, software
from autoresearch_hpc.screening import limits, shapes
from autoresearch_hpc.screening.rehearsal import Rehearsal

MAX_SAID = 262_144  # bytes of the child's JSON lines
MAX_OUTPUT = 16_384  # bytes of its output that are kept
NICE = 10
_WRITABLE = ("out", "home", "tmp")
_TICK_S = 0.05
_LOOK_EVERY_S = 1.0
_CHUNK = 65_536
_DAY_S = 86_400.0


class Supervisor:
    """Answers requests until the other side hangs up."""

    def __init__(self, door: socket.socket, root: Path, mode: str, protected: list[Path]) -> None:
        self._door, self._root, self._mode, self._protected = door, root, mode, protected

    def run(self) -> None:
        with self._door.makefile("rb") as lines:
            for line in lines:
                place = Path(tempfile.mkdtemp(prefix="check-", dir=self._root))
                try:
                    answer = self._check(json.loads(line), place)
                finally:
                    kill_descendants()
                    remove_tree(place)
                self._tell(answer)

    def _tell(self, message: dict[str, Any]) -> None:
        self._door.sendall(json.dumps(message).encode() + b"\n")

    def _check(self, request: dict[str, Any], place: Path) -> dict[str, Any]:
        for folder in ("src", *_WRITABLE):
            (place / folder).mkdir()
        for name, text in request["files"].items():
            path = place / "src" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="replace")
        said, output = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        barrier = Barrier(
            readable=[*software(self._protected), place / "src"],
            writable=[place / name for name in _WRITABLE],
            mode=self._mode,
            max_file_bytes=limits.MAX_FILE_BYTES,
        )
        pid = os.fork()
        if pid == 0:
            _become_child(request, place, barrier, said[1], output[1])
        barrier.close()
        os.close(said[1])
        os.close(output[1])
        try:
            self._tell({"pid": pid})
            return self._watch(pid, place, said[0], output[0], request["limit_s"], request["max_dry_s"])
        finally:
            os.close(said[0])
            os.close(output[0])

    def _watch(
        self, pid: int, place: Path, said_fd: int, output_fd: int, limit_s: float, max_dry_s: float
    ) -> dict[str, Any]:
        """Read what the child says and prints until it ends, overruns, fills the disk, or nobody waits any more."""
        said, output, messages, num_said = b"", b"", list[dict[str, Any]](), 0
        fds = {said_fd, output_fd}
        now = time.monotonic()
        deadline, looked_at, ended = now + limit_s, now, ""
        while not ended:
            found, status = os.waitpid(pid, os.WNOHANG)
            gone = found != 0  # asked before reading: its last words are not missed
            for fd in select.select([*fds], [], [], 0.0 if gone else _TICK_S)[0]:
                chunk = os.read(fd, _CHUNK)
                if not chunk:
                    fds.remove(fd)
                elif fd == output_fd:
                    output = (output + chunk)[-MAX_OUTPUT:]
                elif num_said < MAX_SAID:
                    said, num_said = said + chunk, num_said + len(chunk)
            *lines, said = said.split(b"\n")
            for message in filter(None, map(_parsed, lines)):
                messages.append(message)
                if message.get("stage") == "dry":
                    deadline = time.monotonic() + min(_seconds(message.get("limit_s")), max_dry_s)
            now = time.monotonic()
            if gone:
                ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
            elif now > deadline:
                ended = "overrun"
            elif _hung_up(self._door):
                ended = "given up"
            elif now - looked_at > _LOOK_EVERY_S:
                looked_at = now
                ended = "disk" if size_on_disk(place) > limits.MAX_DISK_BYTES else ""
        return {"said": messages, "ended": ended, "output": output.decode(errors="replace")}


def _become_child(request: dict[str, Any], place: Path, barrier: Barrier, said_fd: int, output_fd: int) -> None:
    """Shut this process in and run the edit. Never returns."""
    status = 1
    try:
        die_with_parent()
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, number in ((null, 0), (output_fd, 1), (output_fd, 2)):
            os.dup2(fd, number)
        _close_all_but({0, 1, 2, said_fd, *barrier.fds})
        limits.enter(request["limit_s"] + request["max_dry_s"])
        os.environ.update(HOME=str(place / "home"), TMPDIR=str(place / "tmp"))
        tempfile.tempdir = None
        os.chdir(place / "src")
        sys.path.append(str(place / "src"))  # the edit's own files, behind everything installed
        barrier.enter()

        def say(message: dict[str, Any]) -> None:
            os.write(said_fd, json.dumps(message).encode() + b"\n")

        Rehearsal(request, place, say).run()
        status = 0
    except BaseException:  # noqa: BLE001 - nothing of this process may return into its parent's code
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(status)


def _close_all_but(kept: set[int]) -> None:
    last = -1
    for fd in [*sorted(kept), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]:
        if fd > last + 1:  # of an empty range that begins at 0 Python closes everything
            os.closerange(last + 1, fd)
        last = fd


def _parsed(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(line)
        return message if isinstance(message, dict) else None
    return None


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < _DAY_S else 0.0


def _hung_up(door: socket.socket) -> bool:
    try:
        return door.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def _warm_up() -> None:
    """Use what a check uses, so that all of it is imported before the first fork. No real tensor is computed with:
    a child could not use threads that this process has started."""
    layer = "import torch\nclass Net(torch.nn.Module):\n"
    layer += "    def __init__(self):\n        super().__init__()\n        self.table = torch.nn.Embedding(8, 8)\n"
    layer += "    def forward(self, idx):\n        x = self.table(idx)\n"
    layer += "        q = x.view(idx.size(0), -1, 1, 8).transpose(1, 2)\n"
    layer += "        y = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)\n"
    layer += "        return y.transpose(1, 2).flatten(2) @ self.table.weight.T\n"
    module = ModuleType("warm_up")
    exec(layer + "def build_model(meta):\n    return Net()\n", module.__dict__)
    shapes.measure(module, Meta(vocab_size=8, seq_len=8, bos_id=0), 1)


def main() -> None:
    fd, root, mode, *protected = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks decides
    os.nice(NICE)
    adopt_orphans()
    torch.set_num_threads(1)
    door = socket.socket(fileno=int(fd))
    _warm_up()
    door.sendall(b'{"ready": true}\n')
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody waits for the answer any more
            Supervisor(door, Path(root), mode, [Path(path) for path in protected]).run()
    finally:
        shutil.rmtree(root, ignore_errors=True)  # should nobody be left to do so


if __name__ == "__main__":
    main()
