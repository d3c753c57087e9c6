"""The untrusted half of the evaluation: a process that holds the candidate's model and turns inputs into logits.

It is forked from the trusted evaluator after the slow imports and before any data is read, shut in, and then runs
foreign code. It gets the checkpoint, inputs and a place for logits; targets never come here. The evaluator believes
nothing that it says: what this code checks (shapes, types) it checks for the sake of good reasons.

Messages are JSON objects on a SOCK_SEQPACKET socket, answered in order:

    {"do": "open", ...}     fd: checkpoint                  -> {"status": "READY"} or a failure
    {"do": "share", ...}    fd: memory                      -> {"status": "SHARED" | "NOT_SHARED"} or a failure
    {"do": "logits", "slot": n, "rows": n}                  -> {"status": "DONE", "dtype": ...} or a failure
    {"do": "close"}                                         -> {"status": "CLOSED"}
"""

import torch  # isort: skip - first: the slow import is what an early start is for

import contextlib
import gc
import importlib
import importlib.util
import json
import mmap
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch_hpc.errors import STORAGE_ERRORS
from autoresearch_hpc.harness import Meta
from autoresearch_hpc.kernels.attention import HEAD_DIMS, first_use
from autoresearch_hpc.quoting import quoted_line
from autoresearch_hpc.trial import cuda_memory
from autoresearch_hpc.trial.environment import compiler_caches

MAX_MESSAGE = 65_536
NOT_SHARED = "NOT_SHARED"  # GPU memory cannot be shared here: another way is asked for
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class InvalidCandidate(Exception):
    """The candidate broke the contract between training script and evaluator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The memory that evaluator and server share: all slots' inputs `(rows, T)` int32, then logits `(rows, T, V)`."""

    slots: int
    rows: int
    seq_len: int
    vocab_size: int

    @property
    def input_bytes(self) -> int:
        return 4 * self.rows * self.seq_len

    @property
    def logit_bytes(self) -> int:
        return 4 * self.rows * self.seq_len * self.vocab_size  # float32 is the widest type taken

    def host_bytes(self, *, logits: bool) -> int:
        return self.slots * (self.input_bytes + (self.logit_bytes if logits else 0))

    def inputs(self, memory: torch.Tensor, slot: int, rows: int) -> torch.Tensor:
        """The slot's inputs `(rows, T)`, a view of the memory's bytes."""
        first = slot * self.input_bytes
        return memory[first : first + 4 * rows * self.seq_len].view(torch.int32).view(rows, self.seq_len)

    def logits(self, memory: torch.Tensor, offset: int, slot: int, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """The slot's logits `(rows, T, V)` of this type; they begin `offset` bytes into the memory."""
        first = offset + slot * self.logit_bytes
        size = rows * self.seq_len * self.vocab_size * dtype.itemsize
        return memory[first : first + size].view(dtype).view(rows, self.seq_len, self.vocab_size)


class Model:
    """The candidate's model, from its script and its checkpoint."""

    def __init__(self, script: Path, checkpoint_fd: int, meta: Meta, device: torch.device) -> None:
        module = _load_module(script)
        build_model = getattr(module, "build_model", None)
        if not callable(build_model):
            raise InvalidCandidate(f"{script.name} defines no build_model(meta)")
        with device:
            model = build_model(meta)
        if not isinstance(model, torch.nn.Module):
            raise InvalidCandidate(f"build_model returned a {type(model).__name__}, not a torch.nn.Module")
        self._vocab_size = meta.vocab_size
        self._device = device
        self._model = model.to(device)
        try:
            with os.fdopen(checkpoint_fd, "rb") as file:
                state = torch.load(file, map_location=device, weights_only=True)
            self._model.load_state_dict(state, strict=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
                raise
            raise InvalidCandidate(f"the checkpoint does not fit build_model(meta): {error}") from error
        self._model.eval()

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs `(B, T)` -> logits `(B, T, V)`, of a floating type."""
        gpu = self._device.type == "cuda"
        with torch.no_grad(), torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=gpu):
            logits = self._model(inputs.to(self._device, torch.int64))
        if not isinstance(logits, torch.Tensor):
            raise InvalidCandidate(f"forward returned a {type(logits).__name__}, not logits")
        expected = (*inputs.shape, self._vocab_size)
        if tuple(logits.shape) != expected:
            raise InvalidCandidate(f"logits of shape {tuple(logits.shape)}, expected {expected}")
        if logits.dtype not in _NAMES:
            raise InvalidCandidate(f"logits of type {logits.dtype}, expected float32, bfloat16 or float16")
        if logits.device.type != self._device.type:
            raise InvalidCandidate(f"logits on {logits.device}, expected {self._device}")
        return logits


class Server:
    """Answers the evaluator's messages until it hangs up."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self._model: Model | None = None

    def run(self, *, on_gpu: bool = False) -> None:
        """Until the evaluator hangs up. The wait for its first message is used for what is slow on a GPU at first."""
        if on_gpu:
            _prepare()
        while True:
            text, fds, _, _ = socket.recv_fds(self._door, MAX_MESSAGE, 1)
            if not text:
                return
            message = json.loads(text)
            self._door.send(json.dumps(_guarded(lambda m=message, f=fds: self._answer(m, *f))).encode())

    def _answer(self, message: Mapping[str, Any], *fds: int) -> dict[str, object]:
        if message["do"] == "open":
            return self._open(message, *fds)
        if message["do"] == "close":
            return self._close()
        return self._share(message, *fds) if message["do"] == "share" else self._logits(message)

    def _open(self, message: Mapping[str, Any], checkpoint_fd: int) -> dict[str, object]:
        device = torch.device(message["device"])
        if message["num_threads"]:
            torch.set_num_threads(message["num_threads"])
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self._model = Model(Path(message["script"]), checkpoint_fd, Meta(**message["meta"]), device)
        return {"status": "READY"}

    def _close(self) -> dict[str, object]:
        self._model = None
        torch.cuda.empty_cache()  # does nothing without CUDA
        return {"status": "CLOSED"}

    def _share(self, message: Mapping[str, Any], memory_fd: int) -> dict[str, object]:
        self._shape = Shape(**message["shape"])
        self._memory = map_memory(memory_fd)
        self._on_gpu = None
        if message["handle"]:
            size = self._shape.slots * self._shape.logit_bytes
            try:
                self._on_gpu = cuda_memory.opened(bytes.fromhex(message["handle"]), size)
            except OSError as error:
                return {"status": NOT_SHARED, "message": str(error)}
        return {"status": "SHARED"}

    def _logits(self, message: Mapping[str, Any]) -> dict[str, object]:
        assert self._model
        slot, rows = message["slot"], message["rows"]
        logits = self._model.logits(self._shape.inputs(self._memory, slot, rows).clone())
        if self._on_gpu is not None:
            self._shape.logits(self._on_gpu, 0, slot, rows, logits.dtype).copy_(logits)
            torch.cuda.synchronize()
        else:
            offset = self._shape.host_bytes(logits=False)
            self._shape.logits(self._memory, offset, slot, rows, logits.dtype).copy_(logits)
        gc.enable()  # what was compiled stays; a model of foreign make may leave what has to be collected
        return {"status": "DONE", "dtype": _NAMES[logits.dtype]}


def _prepare() -> None:
    """Use the GPU, its libraries and the compiler once, each of which takes a second then, while there is no foreign
    code here. Before the fork it would spoil CUDA. Where it fails, the model will say what is wrong."""
    for name in ("torch._dynamo", "torch._inductor.compile_fx", "triton"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(Exception), tempfile.TemporaryDirectory() as folder, _caches_in(Path(folder)):
        torch.compile(_doubled, dynamic=False)(torch.ones(128, device="cuda"))
        first_use(torch.device("cuda"), HEAD_DIMS[-1])
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@contextlib.contextmanager
def _caches_in(folder: Path) -> Iterator[None]:
    """Have torch.compile use other caches for a while: its own are being filled."""
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(folder)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def map_memory(fd: int) -> torch.Tensor:
    """The memory behind fd as bytes; closes fd."""
    try:
        return torch.frombuffer(mmap.mmap(fd, os.fstat(fd).st_size), dtype=torch.uint8)
    finally:
        os.close(fd)


def _guarded(act: Any) -> dict[str, object]:
    """What act answers, or how it failed: foreign code may raise anything."""
    try:
        return act()  # type: ignore[no-any-return]
    except InvalidCandidate as error:
        return failure("INVALID", error)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return failure("OOM", error if str(error) else MemoryError("host memory"))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - that is its result
        return failure("CRASHED", error)


def failure(status: str, error: BaseException) -> dict[str, object]:
    message = next((line for line in str(error).splitlines() if line.strip()), "")
    if status == "INVALID":
        message = str(error)
    return {"status": status, "type": type(error).__name__, "message": quoted_line(message)}


def _load_module(script: Path) -> object:
    found = importlib.util.spec_from_file_location("candidate_script", script)
    if found is None or found.loader is None:
        raise InvalidCandidate(f"{script.name} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules["candidate_script"] = module  # dataclasses and pickling look their module up
    sys.path.append(str(script.parent))  # the candidate's own files, behind everything installed
    found.loader.exec_module(module)
    return module


def settle_in(place: Path | None) -> None:
    """Make place the home of this process, which was forked with its parent's."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a pool of compilers would need /dev/shm
    if place is not None:
        os.environ.update(HOME=str(place / "home"), TMPDIR=str(place / "tmp"))
        os.environ.update(compiler_caches(place / "caches"))
        os.chdir(place / "tmp")
    tempfile.tempdir = None
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
