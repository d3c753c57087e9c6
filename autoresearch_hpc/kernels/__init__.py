"""GPU code where the compiler's own kernels leave time on the table: parts of a model for train.py, and the score.

    mlp         a ReLU² MLP whose activation costs no pass over memory of its own
    loss        cross-entropy of capped logits, whose logits never exist all at once
    attention   causal attention in a window, by flash-attn-4 where that is installed
    launches    the Triton kernels behind the first two; imported only where there is a GPU
    score       the evaluation's cross-entropy of foreign logits, each of which it reads once; likewise

A model's parts compute the same on every device: in plain PyTorch where a kernel does not fit, and `choices` says so.
With the variable AUTORESEARCH_PLAIN_KERNELS set (trials: task.pass_env) that is everywhere.
"""

import os
import threading

import torch

__all__ = ["choices", "hopper", "prepare"]

PLAIN_VARIABLE = "AUTORESEARCH_PLAIN_KERNELS"
_MAJOR: dict[int, int] = {}  # of each GPU's compute capability; asked outside compiled code, which can look it up


def hopper(device: torch.device) -> bool:
    """Whether the device is a GPU that these kernels are made for: H100, H200, or a data centre's Blackwell."""
    if device.type != "cuda":
        return False
    index = device.index or 0
    if index not in _MAJOR:
        plain = bool(os.environ.get(PLAIN_VARIABLE))
        _MAJOR[index] = 0 if plain else torch.cuda.get_device_capability(device)[0]
    return _MAJOR[index] in (9, 10)


def prepare(device: torch.device, head_dim: int) -> None:
    """Begin with the first use of a GPU's libraries: it takes seconds, and passes beside what the caller does next."""
    if device.type == "cuda":
        from autoresearch_hpc.kernels.attention import first_use

        threading.Thread(target=first_use, args=(device, head_dim), daemon=True).start()


def choices(device: torch.device, head_dim: int) -> str:
    """One line for the log: what computes attention, MLP and loss here, and why it is not the fastest."""
    from autoresearch_hpc.kernels import attention

    parts = "Triton" if hopper(device) else "plain PyTorch"
    reason = attention.unavailable(device, head_dim)
    return f"attention: {f'PyTorch ({reason})' if reason else 'flash-attn-4'}; MLP and loss: {parts}"
