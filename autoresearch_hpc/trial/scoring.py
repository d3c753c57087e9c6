"""From logits to bits per byte: the rows, the targets, the cross-entropy in float32, the bytes. All of it is ours.

bits per byte = cross-entropy in nats / (ln 2 * UTF-8 bytes of the targets). Special tokens, which stand for no bytes,
count in neither sum.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

_log = logging.getLogger(__name__)

# Logits whose cross-entropy is computed at once: what keeps a GPU busy, and what stays in a CPU's cache.
CHUNK_BYTES = {"cuda": 512 << 20, "cpu": 2 << 20}
MAX_VOCABULARY = 32768  # of the kernel, which holds a row in registers


class Diverged(Exception):
    """The model's logits are not finite."""


def val_rows(files: Sequence[npt.NDArray[np.uint16]], eval_tokens: int) -> npt.NDArray[np.uint16]:
    """The first validation rows that hold eval_tokens targets, at least one row: `(rows, T + 1)`."""
    seq_len = files[0].shape[1] - 1
    left = max(1, math.ceil(eval_tokens / seq_len))
    taken = []
    for file in files:
        taken.append(file[:left])
        left -= len(taken[-1])
    return np.concatenate(taken)


def nats_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each target: logits `(B, T, V)`, targets `(B, T)` -> `(B, T)` float32.

    The logits may be changed by their owner meanwhile: each is read once, into memory of ours. So what they are
    normalised by and what is picked out of them belong together.
    """
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    if logits.is_cuda and logits.size(-1) <= MAX_VOCABULARY and (in_one_pass := _kernel()):
        return in_one_pass(flat, wanted).view(targets.shape)
    nats = torch.empty(len(wanted), dtype=torch.float32, device=targets.device)
    step = max(1, CHUNK_BYTES[targets.device.type] // (4 * logits.size(-1)))
    private = torch.empty((min(step, len(wanted)), logits.size(-1)), dtype=torch.float32, device=targets.device)
    for first in range(0, len(wanted), step):
        chunk = wanted[first : first + step]
        own = private[: len(chunk)].copy_(flat[first : first + step])
        nats[first : first + step] = torch.nn.functional.cross_entropy(own, chunk, reduction="none")
    return nats.view(targets.shape)


def prepare(vocab_size: int) -> None:
    """Do once what the first score on a GPU would wait for: its context, and the kernel's compilation."""
    nats_of(torch.zeros((1, 16, vocab_size), device="cuda"), torch.zeros((1, 16), dtype=torch.int64, device="cuda"))
    torch.cuda.synchronize()


@functools.cache
def _kernel() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """The cross-entropy in one pass; None where Triton cannot compile it: then PyTorch's, which takes five."""
    try:
        from autoresearch_hpc.kernels.score import row_nats

        row_nats(torch.zeros((1, 16), device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda"))
    except Exception as error:  # noqa: BLE001 - no Triton, no C compiler, a GPU that it does not know
        _log.warning("scores are computed without Triton: %s: %s", type(error).__name__, error)
        return None
    return row_nats


def bits_per_byte(nats: npt.NDArray[np.float32], num_bytes: npt.NDArray[np.int32]) -> dict[str, object]:
    """The score, given the cross-entropy and the bytes of each target. Raises Diverged where it is not finite."""
    counted = num_bytes > 0
    total, all_bytes = float(nats[counted].sum(dtype=np.float64)), int(num_bytes.sum(dtype=np.int64))
    if not math.isfinite(total):
        raise Diverged("logits that are not finite")
    if all_bytes == 0:
        raise ValueError("no bytes in the validation rows")
    return {
        "status": "OK",
        "value": total / (math.log(2) * all_bytes),
        "tokens": int(counted.sum()),
        "bytes": all_bytes,
    }
