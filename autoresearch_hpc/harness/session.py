"""The session: everything a training script is given, and all that it hands back.

    session = Session.open()              meta, device, seed; random generators are seeded
    session.warmup_batch(rows)            random tokens, to compile and allocate before the clock
    session.start()                       the clock runs; only now are there real batches
    for x, y in session.batches(rows)     while not session.expired
    session.save(model, ...)              the checkpoint that is evaluated; the clock stops here
    session.summary(depth=...)            the block of figures on stdout

A worker describes the session in a JSON file named by AUTORESEARCH_SESSION, and hands over the open files of the
training split when the clock has started: before that there is nothing to train on. Without a worker the script runs
alone, with the data set under ./data, and evaluates itself at the end through the same trusted evaluator.
"""

import gc
import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autoresearch_hpc.dataset import Dataset, Meta, map_rows
from autoresearch_hpc.errors import AutoresearchError, ConfigError
from autoresearch_hpc.files import read_json
from autoresearch_hpc.harness import standalone
from autoresearch_hpc.harness.batches import CpuFeed, GpuFeed, Rows, batches, split_targets
from autoresearch_hpc.harness.checkpoint import save_checkpoint
from autoresearch_hpc.harness.events import Events

SESSION_VARIABLE = "AUTORESEARCH_SESSION"
DATA_FD_VARIABLE = "AUTORESEARCH_DATA_FD"
MAX_FDS = 64  # of one message
SCHEMA = 1
PEAK_FLOPS = 989.5e12  # dense bf16 on an H100 or H200 SXM; MFU counts against it on every GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """session.json: what the worker asks of the training script.

    A worker names no data: it gives `meta`, the rows of each training file, and later the files themselves through
    the socket AUTORESEARCH_DATA_FD. A session that runs alone has a `data_dir`. `caches_filled` appears when the
    caches hold what compilers made in an earlier trial.
    """

    data_dir: str | None = None
    meta: dict[str, int] | None = None
    train_rows: list[int] | None = None
    seed: int
    train_s: float
    device: str
    checkpoint: str
    num_threads: int | None = None
    caches_filled: str | None = None
    schema: int = SCHEMA


class Session:
    """One training run. Its clock starts once; batches exist only while it runs."""

    def __init__(self, spec: SessionSpec, events: Events, *, alone: bool = False) -> None:
        self._opened = time.monotonic()
        self._spec = spec
        self._events = events
        self._alone = alone
        self._files: list[Rows] = []
        if spec.meta is not None:
            self.meta = Meta(**spec.meta)
        else:
            self.meta = Dataset(Path(spec.data_dir or "")).meta
        self.device = choose_device(spec.device)
        self.seed = spec.seed
        if spec.num_threads:
            torch.set_num_threads(spec.num_threads)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        elif alone:
            print(standalone.CPU_NOTE, file=sys.stderr)
        random.seed(spec.seed)
        np.random.seed(spec.seed % 2**32)
        torch.manual_seed(spec.seed)
        gc.disable()  # until the clock starts: it takes a fifth of the time of imports and compilers
        self._warmup_random: np.random.Generator | None = None
        self._started: float | None = None
        self._stopped: float | None = None
        self._feeds: list[CpuFeed | GpuFeed] = []
        self._saved: dict[str, int | float | None] = {}

    @classmethod
    def open(cls) -> "Session":
        """The session of this process. Raises AutoresearchError where data, device or description are missing."""
        path = os.environ.get(SESSION_VARIABLE)
        if path is None:
            return cls(SessionSpec(**standalone.describe()), Events.from_environment(), alone=True)
        try:
            spec = SessionSpec(**read_json(Path(path)))
        except (OSError, ValueError, TypeError) as error:
            raise AutoresearchError(f"unreadable {SESSION_VARIABLE}={path}: {error}") from error
        if spec.schema != SCHEMA:
            raise AutoresearchError(f"{path} has schema {spec.schema}, this version reads {SCHEMA}")
        return cls(spec, Events.from_environment())

    def warmup_batch(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random tokens shaped like a batch: inputs and targets, int64 `(rows, seq_len)`. Only before `start`."""
        if self._started is not None:
            raise RuntimeError("warm-up batches end where the clock starts")
        if self._warmup_random is None:
            self._warmup_random = np.random.default_rng(self.seed)
            while self._spec.caches_filled and not Path(self._spec.caches_filled).exists():
                time.sleep(0.005)
            self._events.emit("warmup")
        tokens = self._warmup_random.integers(self.meta.vocab_size, size=(rows, self.meta.seq_len + 1))
        return split_targets(torch.from_numpy(tokens).to(self.device))

    def start(self) -> None:
        """Start the clock, once."""
        if self._started is not None:
            raise RuntimeError("the clock runs already")
        gc.collect(0)  # beside the GPU's last work
        gc.freeze()
        gc.enable()
        self._synchronize()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._events.emit("clock")
        self._files = self._training_files()
        self._started = time.monotonic()

    def batches(self, rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Training batches without end: inputs and targets, int64 `(rows, seq_len)` on the device.

        The same seed gives the same batches. Raises RuntimeError before the clock has started.
        """
        if self._started is None:
            raise RuntimeError("no batches before the clock has started; call session.start()")
        source = batches(self._files, rows, self.seed)
        feed: CpuFeed | GpuFeed
        if self.device.type == "cuda":
            feed = GpuFeed(source, rows, self.meta.seq_len + 1, self.device)
        else:
            feed = CpuFeed(source)
        self._feeds.append(feed)
        return feed

    @property
    def elapsed_s(self) -> float:
        """Seconds on the clock: 0 before it starts, at rest once the model is saved."""
        if self._started is None:
            return 0.0
        return (time.monotonic() if self._stopped is None else self._stopped) - self._started

    @property
    def progress(self) -> float:
        """The share of the training time that is used, 0 to 1."""
        return min(self.elapsed_s / self._spec.train_s, 1.0)

    @property
    def expired(self) -> bool:
        return self.elapsed_s >= self._spec.train_s

    def save(self, model: torch.nn.Module, *, steps: int, tokens: int, flops_per_token: float | None = None) -> None:
        """Stop the clock and publish the checkpoint. `flops_per_token` counts forward and backward, for the MFU."""
        self._synchronize()
        if self._started is None:
            raise RuntimeError("nothing was trained: the clock never started")
        self._stopped = time.monotonic()
        self._events.emit("stopped")
        self._close_feeds()
        gpu = self.device.type == "cuda"
        mfu = None
        if gpu and flops_per_token is not None:
            mfu = flops_per_token * tokens / self.elapsed_s / PEAK_FLOPS
        self._saved = {
            "steps": int(steps),
            "tokens": int(tokens),
            "num_params": sum(p.numel() for p in model.parameters()),
            "peak_vram_mb": torch.cuda.max_memory_allocated() / 2**20 if gpu else None,
            "mfu": mfu,
        }
        save_checkpoint(model, Path(self._spec.checkpoint))
        self._events.emit("saved", **self._saved)

    def diverged(self, step: int) -> None:
        """Say that the loss is no longer finite; the script ends after this."""
        self._events.emit("diverged", step=int(step))
        self._close_feeds()

    def summary(self, **figures: int | float) -> None:
        """Print the block of figures, `figures` at its end: the last thing that a script does.

        A script run by hand is evaluated first. A trial is ended here: taking a GPU's memory and a compiler's processes
        down in an orderly way takes Python two seconds.
        """
        if not self._saved:
            raise RuntimeError("nothing to sum up: call session.save first")
        val_bpb = None
        if self._alone:
            val_bpb = standalone.evaluate(self._spec.data_dir or "", self._spec.checkpoint, self.device.type, self.seed)
        block = standalone.summary(
            val_bpb=val_bpb,
            training_s=self.elapsed_s,
            total_s=time.monotonic() - self._opened,
            saved=self._saved,
            figures=figures,
        )
        print(block, flush=True)
        self._events.emit("summary")

    def _training_files(self) -> list[Rows]:
        if self._spec.meta is None:
            return list(Dataset(Path(self._spec.data_dir or "")).rows("train"))
        fds: list[int] = []
        wanted = self._spec.train_rows or []
        with socket.socket(fileno=int(os.environ[DATA_FD_VARIABLE])) as door:
            while len(fds) < len(wanted):
                more = socket.recv_fds(door, 1, MAX_FDS)[1]
                if not more:
                    raise AutoresearchError("the worker gave no training data")
                fds += more
        return [map_rows(fd, rows, self.meta.seq_len) for fd, rows in zip(fds, wanted, strict=True)]

    def _close_feeds(self) -> None:
        for feed in self._feeds:
            feed.close()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cuda` or `cpu` stands for. Raises ConfigError for a GPU that is not there."""
    if name not in ("auto", "cuda", "cpu"):
        raise ConfigError(f"unknown device {name!r}", "use auto, cuda or cpu")
    found = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not found:
        raise AutoresearchError("no CUDA GPU is visible", "ask the cluster for one, or set task.device=auto")
    return torch.device("cuda" if found else "cpu")
