"""The Triton kernels of the loss and of the MLP, and the functions that launch them. Importing this needs Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def _shortfall(logits, cap):
    """s for which a logit z is capped to cap * tanh(z / cap) = cap - 2 * cap * s."""
    return 1 / (1 + tl.exp(logits.to(tl.float32) * (2 / cap)))


@triton.jit
def _cross_entropy_kernel(logits, targets, losses, num_columns, cap, scale, BLOCK: tl.constexpr):
    """One row: its loss, and its gradient in its own place. The cap bounds the exponents, so no maximum is needed."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < num_columns
    places = logits + row * num_columns + columns
    target = tl.load(targets + row)
    target_s = _shortfall(tl.load(logits + row * num_columns + target), cap)
    s = _shortfall(tl.load(places, mask=inside, other=0.0), cap)
    exponential = tl.where(inside, tl.exp(s * (-2 * cap)), 0.0)
    total = tl.sum(exponential)
    tl.store(losses + row, tl.log(total) + 2 * cap * target_s)
    gradient = (exponential * (1 / total) - tl.where(columns == target, 1.0, 0.0)) * (4 * scale) * (s - s * s)
    tl.store(places, gradient.to(logits.dtype.element_ty), mask=inside)


def cross_entropy_rows(logits: Tensor, targets: Tensor, losses: Tensor, cap: float, scale: float) -> None:
    """Write the loss of each row of logits (N, V) to losses, and over the row its gradient times scale."""
    rows, columns = logits.shape
    block = triton.next_power_of_2(columns)
    _cross_entropy_kernel[(rows,)](logits, targets, losses, columns, cap, scale, BLOCK=block, num_warps=16)


@triton.jit
def _activated(total, hidden, row, column, BACKWARD: tl.constexpr):
    """relu(total)², or total times the derivative of what became `hidden` = relu(u)²: 2 relu(u)."""
    if BACKWARD:
        return total * (2 * tl.sqrt(hidden.load([row, column]).to(tl.float32)))
    positive = tl.maximum(total, 0)
    return positive * positive


@triton.jit
def _matmul_kernel(
    a, b, out, hidden,
    M, N, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    NUM_PROGRAMS: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Tiles of a @ b.T, activated, then written in two halves: that leaves room for more loads ahead."""
    num_n = tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BLOCK_M) * num_n, NUM_PROGRAMS, flatten=True):
        row = tile // num_n * BLOCK_M
        column = tile % num_n * BLOCK_N
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            total = tl.dot(a.load([row, k]), b.load([column, k]).T, total)
        left, right = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        out.store([row, column], _activated(left, hidden, row, column, BACKWARD).to(out.dtype))
        column += BLOCK_N // 2
        out.store([row, column], _activated(right, hidden, row, column, BACKWARD).to(out.dtype))


def _launch(a: Tensor, b: Tensor, hidden: Tensor | None, num_stages: int) -> Tensor:
    """The kernel for a (M, K) and b (N, K), one program a multiprocessor."""
    (M, K), N = a.shape, len(b)
    block_m, block_n, block_k = 128, 256, 64
    out = a.new_empty(M, N)
    tiles = triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
    programs = min(tiles, torch.cuda.get_device_properties(a.device).multi_processor_count if a.is_cuda else 2)
    tensors = [(a, [block_m, block_k]), (b, [block_n, block_k])]
    tensors += [(out, [block_m, block_n // 2]), (out if hidden is None else hidden, [block_m, block_n // 2])]
    _matmul_kernel[(programs,)](
        *(TensorDescriptor.from_tensor(tensor, shape) for tensor, shape in tensors), M, N, K,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        NUM_PROGRAMS=programs, BACKWARD=hidden is not None, num_warps=8, num_stages=num_stages,
    )  # fmt: skip
    return out


def matmul_relu_squared(x: Tensor, weight: Tensor) -> Tensor:
    """relu(x @ weight.T)² for x (M, K), weight (N, K)."""
    return _launch(x, weight, None, num_stages=4)


def matmul_relu_squared_backward(dy: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    """dy @ weight for dy (M, K), weight (K, N), times 2 relu(u) where hidden (M, N) is relu(u)²."""
    return _launch(dy, weight.T.contiguous(), hidden, num_stages=3)
