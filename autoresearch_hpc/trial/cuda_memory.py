"""GPU memory shared between the evaluator and a server of its: one allocation of its own, opened by its handle.

torch's own sharing would do it through files in /dev/shm, and would share whatever else is in the same segment of its
allocator. This is CUDA's inter-process handle and nothing else.
"""

import ctypes
from typing import Any

import torch

_HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_char * _HANDLE_BYTES)]


class _Bytes:
    """GPU memory as torch takes it in without a copy."""

    def __init__(self, pointer: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,), "typestr": "|u1", "data": (pointer, False), "version": 3, "strides": None,
        }  # fmt: skip


def allocated(num_bytes: int) -> tuple[torch.Tensor, bytes]:
    """New bytes on the current GPU and the handle by which another process opens them. Raises OSError, or
    torch.OutOfMemoryError."""
    torch.cuda.synchronize()  # makes the context current
    pointer, handle = ctypes.c_uint64(), _Handle()
    code = _driver().cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(num_bytes))
    if code == 2:
        raise torch.OutOfMemoryError(f"no {num_bytes / 2**30:.1f} GiB of GPU memory for logits; lower eval_batch_rows")
    _check(code, "cuMemAlloc")
    _check(_driver().cuIpcGetMemHandle(ctypes.byref(handle), pointer), "cuIpcGetMemHandle")
    assert pointer.value
    return _tensor(pointer.value, num_bytes), bytes(handle)


def opened(handle: bytes, num_bytes: int) -> torch.Tensor:
    """The bytes of another process. Raises OSError."""
    torch.cuda.synchronize()
    pointer = ctypes.c_uint64()
    flags = ctypes.c_uint(_LAZY_PEER_ACCESS)
    _check(
        _driver().cuIpcOpenMemHandle_v2(ctypes.byref(pointer), _Handle.from_buffer_copy(handle), flags),
        "cuIpcOpenMemHandle",
    )
    assert pointer.value
    return _tensor(pointer.value, num_bytes)


def _tensor(pointer: int, num_bytes: int) -> torch.Tensor:
    return torch.as_tensor(_Bytes(pointer, num_bytes), device="cuda")


def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check(code: int, call: str) -> None:
    if code:
        raise OSError(f"{call} failed with CUDA error {code}")
