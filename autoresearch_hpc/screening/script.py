"""An edited script as a module of this process: run as often as wanted, each time anew, on random tokens."""

import json
import os
import socket
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from autoresearch_hpc import knobs
from autoresearch_hpc.harness import Meta
from autoresearch_hpc.harness.events import EVENTS_FD_VARIABLE
from autoresearch_hpc.harness.session import DATA_FD_VARIABLE, SCHEMA, SESSION_VARIABLE
from autoresearch_hpc.records import Knobs

CLOCK_S = 0.01  # of training: over with the first step
_DATA_ROWS = 64


class EditedScript:
    """The script `name` below `src`, whose files are there; `out` can be written to."""

    def __init__(self, text: str, name: str, src: Path, out: Path, meta: Meta, num_threads: int) -> None:
        self._text, self.name, self.src, self.meta = text, name, src, meta
        self._out, self._threads = out, num_threads
        self.knobs = knobs.read(text, name)

    @property
    def checkpoint(self) -> Path:
        return self._out / "checkpoint.pt"

    def open_session(self, row: int) -> int:
        """Describe a session of random tokens, as a worker does. Returns the file that tells its events."""
        random = np.random.default_rng(0)
        data = self._out / "train.bin"
        tokens = random.integers(self.meta.vocab_size, size=(_DATA_ROWS, row + 1)).astype(np.uint16)
        tokens[:, 0] = self.meta.bos_id
        tokens.tofile(data)
        ours, theirs = socket.socketpair()
        fd = os.open(data, os.O_RDONLY)
        socket.send_fds(ours, [b"d"], [fd])  # taken from there once the clock starts
        os.close(fd)
        session = {
            "schema": SCHEMA,
            "seed": 0,
            "train_s": CLOCK_S,
            "device": "cpu",
            "checkpoint": str(self.checkpoint),
            "num_threads": self._threads,
            "meta": {"vocab_size": self.meta.vocab_size, "seq_len": row, "bos_id": self.meta.bos_id},
            "train_rows": [_DATA_ROWS],
        }
        (self._out / "session.json").write_text(json.dumps(session), encoding="utf-8")
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        os.environ[SESSION_VARIABLE] = str(self._out / "session.json")
        os.environ[DATA_FD_VARIABLE] = str(theirs.detach())
        os.environ[EVENTS_FD_VARIABLE] = str(write_fd)
        self._door = ours  # open as long as the session may ask
        return read_fd

    def load(self, settings: Knobs, name: str) -> ModuleType:
        """Run the script's text, with settings for its knobs, as a module of this name."""
        path = self.src / self.name
        text = knobs.rewrite(self._text, settings, self.name)
        for other, found in list(sys.modules.items()):  # modules of the edit start anew, too
            if str(getattr(found, "__file__", None) or "").startswith(f"{self.src}{os.sep}"):
                del sys.modules[other]
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module  # dataclasses and pickling look their module up
        sys.argv = [str(path)]
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
        return module
