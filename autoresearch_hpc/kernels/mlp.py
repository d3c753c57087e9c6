"""A ReLU² MLP whose activation and its derivative are the last step of matrix products, not passes over memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch_hpc.kernels import hopper


def relu_squared_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`relu(x @ up.T)² @ down.T` for x (..., C), up (W, C), down (C, W)."""
    fits = up.shape[1] == x.shape[-1] and down.shape == up.T.shape  # else PyTorch says what does not
    if fits and hopper(x.device) and len(up) % 8 == 0 and len(down) % 8 == 0:
        return _mlp(x.flatten(0, -2).to(torch.bfloat16), up, down)[0].view(x.shape)
    up, down = up.to(x.dtype), down.to(x.dtype)
    return F.linear(F.relu(F.linear(x, up)).square(), down)


@torch.library.custom_op("autoresearch_hpc::relu_squared_mlp", mutates_args=())
def _mlp(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and what lies between: relu(x @ up.T)²."""
    from autoresearch_hpc.kernels.launches import matmul_relu_squared

    hidden = matmul_relu_squared(x, up.to(x.dtype))
    return hidden @ down.to(x.dtype).T, hidden


@_mlp.register_fake
def _(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(down)), x.new_empty(len(x), len(up))


@torch.library.custom_op("autoresearch_hpc::relu_squared_mlp_backward", mutates_args=())
def _mlp_backward(dy: Tensor, x: Tensor, up: Tensor, down: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from autoresearch_hpc.kernels.launches import matmul_relu_squared_backward

    ddown = torch.mm(dy.T, hidden, out_dtype=torch.float32)
    dinner = matmul_relu_squared_backward(dy, down.to(dy.dtype), hidden)
    return dinner @ up.to(dy.dtype), torch.mm(dinner.T, x, out_dtype=torch.float32), ddown


@_mlp_backward.register_fake
def _(dy: Tensor, x: Tensor, up: Tensor, down: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(up), torch.empty_like(down)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _mlp_backward(dy.contiguous(), *ctx.saved_tensors)


_mlp.register_autograd(_gradients, setup_context=_keep)
