"""Causal attention in a window by flash-attn-4, as an operator that torch.compile takes as it is.

flash-attn-4 is optional (`pip install 'autoresearch_hpc[flash]'`). Its two functions that are used here are not of its
documented interface; PyTorch's own use of the package rests on the same two.
"""

import contextlib
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoresearch_hpc.kernels import hopper

HEAD_DIMS = (64, 128)  # those that were tried


@functools.cache
def unavailable(device: torch.device, head_dim: int) -> str:
    """Why flash-attn-4 cannot serve here; "" where it can."""
    if not hopper(device):
        return f"flash-attn-4 is not made for this {'GPU' if device.type == 'cuda' else 'device'}"
    if head_dim not in HEAD_DIMS:
        return f"heads of {head_dim} channels"
    try:
        from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd  # noqa: F401
    except Exception as error:  # noqa: BLE001 - whatever its compiler's import does not like
        return f"{type(error).__name__}: {error}"
    return ""


def flash_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """(B, T, heads, D) in bfloat16, on a GPU: each query sees `window` tokens back, its own included."""
    return _attention(q, k, v, window)[0]


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, T, D): PyTorch's causal attention over all tokens, cuDNN's where that is faster."""
    if not hopper(q.device) or q.size(-1) % 8 or q.size(-1) > 128:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # The operator itself: sdpa_kernel() inside a compiled graph would keep that out of the compiler's cache.
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, is_causal=True)[0]


def first_use(device: torch.device, head_dim: int) -> None:
    """Use CUDA, cuBLAS and, where it will serve, cuDNN's attention: each takes up to a second the first time."""
    with contextlib.suppress(RuntimeError):  # whoever needs them will hear of it
        x = torch.ones((1, 1, 128, head_dim), dtype=torch.bfloat16, device=device, requires_grad=True)
        products = x @ x.mT @ x
        if unavailable(device, head_dim):
            causal_attention(products, x, x).sum().backward()


def _limits(window: int, length: int) -> dict[str, Any]:
    left, right = (window - 1, 0) if window < length else (None, None)
    return {"causal": True, "window_size_left": left, "window_size_right": right}


@torch.library.custom_op("autoresearch_hpc::flash_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The output (B, T, heads, D), and the logarithms of the softmax's denominators (B, heads, T)."""
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse, *_ = _flash_attn_fwd(q, k, v, return_lse=True, **_limits(window, q.shape[1]))
    return out, lse


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    B, T, heads, _D = q.shape
    return q.new_empty(q.shape), q.new_empty((B, heads, T), dtype=torch.float32)


@torch.library.custom_op("autoresearch_hpc::flash_attention_backward", mutates_args=())
def _attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    _flash_attn_bwd(q, k, v, out, dout, lse, **_limits(window, q.shape[1]), dq=dq, dk=dk, dv=dv)
    return dq, dk, dv


@_attention_backward.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*_attention_backward(dout.contiguous(), *ctx.saved_tensors, ctx.window), None)


_attention.register_autograd(_gradients, setup_context=_keep)
