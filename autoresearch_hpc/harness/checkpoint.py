"""The checkpoint: the model's state_dict, published whole or not at all."""

import uuid
from pathlib import Path

import torch


def save_checkpoint(model: torch.nn.Module, path: Path) -> None:
    """Write model's parameters and buffers to path. A compiled model is saved under its own names."""
    plain = getattr(model, "_orig_mod", model)
    state = {name: tensor.detach() for name, tensor in plain.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # a requeued twin cannot collide
    try:
        torch.save(state, tmp)
        tmp.replace(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
