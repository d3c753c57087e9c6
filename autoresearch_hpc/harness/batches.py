"""Batches of the training split: a seeded order over memory-mapped rows, and their way to the device.

The order is a shuffle of blocks of neighbouring rows, some dozens of blocks at a time, whose rows are then shuffled
among each other: reads stay large and sequential, which is what parallel filesystems are good at, and neighbours
in the corpus still end up in different batches. Every row comes once an epoch; the next epoch is shuffled anew.
"""

import queue
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

BLOCK_BYTES = 2**18
BLOCKS_AT_ONCE = 32  # 8 MB in memory
NUM_BUFFERS = 4  # pinned buffers between the reading thread and the GPU

Rows = npt.NDArray[np.uint16]


def shuffled_rows(files: Sequence[Rows], seed: int) -> Iterator[Rows]:
    """Chunks of rows `(n, seq_len + 1)` for ever; the same seed gives the same rows in the same order."""
    block_rows = max(1, BLOCK_BYTES // files[0][:1].nbytes)
    blocks = [(file, start) for file in files for start in range(0, len(file), block_rows)]
    epoch = 0
    while True:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(blocks))
        for first in range(0, len(order), BLOCKS_AT_ONCE):
            group = [blocks[i] for i in order[first : first + BLOCKS_AT_ONCE]]
            rows = np.concatenate([file[start : start + block_rows] for file, start in group])
            yield rows[random.permutation(len(rows))]
        epoch += 1


def batches(files: Sequence[Rows], num_rows: int, seed: int) -> Iterator[Rows]:
    """The same rows cut into batches of num_rows, across the borders of chunks and epochs."""
    chunks = shuffled_rows(files, seed)
    pending: list[Rows] = []
    while True:
        while sum(map(len, pending)) < num_rows:
            pending.append(next(chunks))
        rows = np.concatenate(pending) if len(pending) > 1 else pending[0]
        yield rows[:num_rows]
        pending = [rows[num_rows:]]


def split_targets(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `(B, T + 1)` as inputs and the tokens that follow them, both int64 `(B, T)`."""
    return rows[:, :-1].to(torch.int64).contiguous(), rows[:, 1:].to(torch.int64).contiguous()


class CpuFeed:
    """Batches on the CPU, made when asked for: the cores belong to the training."""

    def __init__(self, source: Iterator[Rows]) -> None:
        self._source = source

    def __iter__(self) -> "CpuFeed":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        return split_targets(torch.from_numpy(next(self._source).astype(np.int64)))

    def close(self) -> None:
        pass


class GpuFeed:
    """Batches on a GPU: a thread fills pinned buffers ahead of the training, copies do not block it."""

    def __init__(self, source: Iterator[Rows], num_rows: int, row_len: int, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._stopped = False
        self._failure: BaseException | None = None
        self._full: queue.Queue[torch.Tensor | None] = queue.Queue()
        self._free: queue.Queue[tuple[torch.Tensor, torch.cuda.Event] | None] = queue.Queue()
        for _ in range(NUM_BUFFERS):
            buffer = torch.empty((num_rows, row_len), dtype=torch.int32, pin_memory=True)
            self._free.put((buffer, torch.cuda.Event()))  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._fill, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> "GpuFeed":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        buffer = self._full.get()
        if buffer is None:
            raise RuntimeError("reading the training data failed") from self._failure
        rows = buffer.to(self._device, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._free.put((buffer, copied))
        return split_targets(rows)

    def close(self) -> None:
        """Stop the thread before the interpreter takes its memory away."""
        self._stopped = True
        self._free.put(None)
        self._thread.join(timeout=5)

    def _fill(self) -> None:
        try:
            while (slot := self._free.get()) is not None and not self._stopped:
                buffer, copied = slot
                copied.synchronize()  # the GPU may still be reading what was here
                buffer.numpy()[...] = next(self._source)
                self._full.put(buffer)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the training thread must hear of it
            self._failure = error
            self._full.put(None)
