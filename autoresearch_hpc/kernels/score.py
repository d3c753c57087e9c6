"""The Triton kernel of the score: cross-entropies, each logit read once. Importing this needs Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _nats_kernel(logits, targets, nats, stride, num_columns, BLOCK: tl.constexpr):
    """One row, from registers: its owner may change it in memory meanwhile, hence the volatile load."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    places = logits + row * stride + columns
    x = tl.load(places, mask=columns < num_columns, other=-float("inf"), volatile=True).to(tl.float32)
    target = tl.load(targets + row)
    top = tl.max(x)
    own = tl.sum(tl.where(columns == target, x, 0.0))
    tl.store(nats + row, tl.log(tl.sum(tl.exp(x - top))) + top - own)


def row_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy in nats of each row of logits (N, V), of a floating type, for targets (N): (N,) float32."""
    rows, columns = logits.shape
    nats = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = triton.next_power_of_2(columns)
    _nats_kernel[(rows,)](logits, targets, nats, logits.stride(0), columns, BLOCK=block, num_warps=16)
    return nats
