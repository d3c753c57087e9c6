"""Mean cross-entropy of soft-capped logits, some rows at a time: the logits of a batch never exist all at once.

Loss and gradients are computed together in the forward pass, where each row of logits is read once and overwritten by
its own gradient. So this is for training: where no gradient is wanted it does three times the work.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch_hpc.kernels import hopper

CHUNK_ROWS = 65536
MAX_VOCABULARY = 32768  # a row lies in registers


def capped_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """Mean cross-entropy in nats of logits `cap * tanh(x @ weight.T / cap)` (N, V), for x (N, C) and targets (N)."""
    if hopper(x.device) and len(weight) <= MAX_VOCABULARY:
        return _loss_and_gradients(x.to(torch.bfloat16), weight, targets, cap)[0]
    logits = F.linear(x, weight.to(x.dtype)).float()
    return F.cross_entropy(cap * torch.tanh(logits / cap), targets)


@torch.library.custom_op("autoresearch_hpc::capped_cross_entropy", mutates_args=())
def _loss_and_gradients(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> tuple[Tensor, Tensor, Tensor]:
    from autoresearch_hpc.kernels.launches import cross_entropy_rows

    narrow = weight.to(x.dtype)
    losses = torch.empty(len(x), dtype=torch.float32, device=x.device)
    dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
    for first in range(0, len(x), CHUNK_ROWS):
        rows = slice(first, first + CHUNK_ROWS)
        logits = x[rows] @ narrow.T
        cross_entropy_rows(logits, targets[rows], losses[rows], cap, 1 / len(x))  # from here on they are gradients
        torch.mm(logits, narrow, out=dx[rows])
        dweight += torch.mm(logits.T, x[rows], out_dtype=torch.float32)
    return losses.mean(), dx, dweight


@_loss_and_gradients.register_fake
def _(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((), dtype=torch.float32), torch.empty_like(x), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], output[2])


def _scaled(ctx: Any, dloss: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None]:
    dx, dweight = ctx.saved_tensors
    return (dx * dloss).to(dx.dtype), dweight * dloss, None, None


_loss_and_gradients.register_autograd(_scaled, setup_context=_keep)
