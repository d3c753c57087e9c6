"""A script's model on shapes alone: tensors without memory, so that any size takes a second and no GPU.

The tensors are PyTorch's fake ones, which say that they are on the CPU: those on the device "meta" are refused by
autocast. What cannot be done without numbers raises errors of its own kind (`is_artifact`), which say nothing of
the script.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from autoresearch_hpc.harness import Meta

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_ARTIFACT_MODULES = ("torch._subclasses", "torch.fx", "torch.utils._sympy")
_ARTIFACT = re.compile(
    r"fake ?tensor|meta (tensor|device|kernel|backend|function)|(device|on) meta\b|'meta' (backend|device)"
    r"|data pointer|data_ptr|tensor subclass|data.dependent|symint",
    re.IGNORECASE,
)


class InvalidScript(Exception):
    """The script broke the contract with the evaluation."""


def shapes_alone() -> FakeTensorMode:
    """Within it tensors have no numbers."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def counting() -> Iterator[Callable[[], float]]:
    """Gives a function that tells the FLOPs so far. Shapes alone take twice as long with it."""
    aten = torch.ops.aten  # whose table of FLOPs has no attention on CPUs
    attention: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=attention)
    with counter:
        yield lambda: float(counter.get_total_flops())


def _attention_flops(query: Sequence[int], key: Sequence[int], *_: object, **__: object) -> int:
    """Two products of (B, heads, T, C) shapes; keys may have fewer heads."""
    return 4 * math.prod(query) * key[-2]


def _attention_backward_flops(grad: object, query: Sequence[int], key: Sequence[int], *_: object, **__: object) -> int:
    return 10 * math.prod(query) * key[-2]  # five products


def is_artifact(error: BaseException) -> bool:
    """Whether the error comes from tensors having no numbers."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            break
        if type(seen).__module__.startswith(_ARTIFACT_MODULES):
            return True
        if isinstance(seen, RuntimeError | NotImplementedError | TypeError) and _ARTIFACT.search(str(seen)[:2000]):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def measure(module: ModuleType, meta: Meta, device_batch_size: int) -> dict[str, Any]:
    """Build the model and go through it forward and backward, with one row and with two.

    Raises InvalidScript, or whatever the script does.
    """
    build_model = getattr(module, "build_model", None)
    if not callable(build_model):
        raise InvalidScript("build_model is no function")
    with shapes_alone():
        with torch.device("cpu"):
            model = build_model(meta)
        if not isinstance(model, torch.nn.Module):
            raise InvalidScript(f"build_model returned a {type(model).__name__}, not a torch.nn.Module")
        parameters = list(model.parameters())
        forward_flops, one = _saved(model, meta, 1)
        try:
            _, two = _saved(model, meta, 2)
        except Exception as error:  # noqa: BLE001 - the first pass decides, this one refines the estimate
            del error
            two = None
    return {
        "num_params": sum(p.numel() for p in parameters),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "forward_flops": forward_flops,
        "activations_of_1": one,
        "activations_of_2": two,
        "device_batch_size": device_batch_size,
    }


def _saved(model: torch.nn.Module, meta: Meta, rows: int) -> tuple[float, int | None]:
    """FLOPs of a forward pass over rows, and bytes that it keeps for the backward one; None where there is none."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    tokens = torch.zeros((rows, meta.seq_len), dtype=torch.int64)
    with counting() as flops, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(tokens)
        _check_logits(logits, (rows, meta.seq_len, meta.vocab_size))
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
    if not loss.requires_grad:  # a script may train through another path than the one which the evaluation takes
        return flops(), None
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return flops(), sum(kept.values())


def _check_logits(logits: object, expected: tuple[int, int, int]) -> None:
    if not isinstance(logits, torch.Tensor):
        raise InvalidScript(f"forward(idx) returned a {type(logits).__name__}, not logits")
    if tuple(logits.shape) != expected:
        raise InvalidScript(
            f"forward(idx) returned logits of shape {tuple(logits.shape)}, expected {expected} for idx of shape "
            f"{expected[:2]}: (rows, seq_len, vocab_size)"
        )
    if logits.dtype not in _FLOATS:
        raise InvalidScript(f"forward(idx) returned logits of type {logits.dtype}; use float32, bfloat16 or float16")
