"""The trusted evaluator: a process that turns a checkpoint into bits per byte.

    python -P -m autoresearch_hpc.trial.evaluate SPEC_JSON --result-fd N

It is started early, imports what is slow, and waits on stdin: the line `go` starts the evaluation, end of file ends
the process. It answers with one JSON object on the file descriptor N:

    {"status": "OK", "value": bits per byte, "tokens": targets counted, "bytes": their UTF-8 bytes}
    {"status": "INVALID" | "DIVERGED" | "OOM" | "CRASHED", "type": ..., "message": ...}

The candidate's code gives logits for inputs (`Candidate`). Everything that makes a score of them is ours (`Score`):
the rows, the targets, the cross-entropy in float32, the bytes. Special tokens, which stand for no bytes, count in
neither sum.
"""

import torch  # isort: skip - first: the slow import is what an early start is for

import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.errors import STORAGE_ERRORS
from autoresearch_hpc.files import read_json
from autoresearch_hpc.harness import Meta
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import TrialSpec, from_json

CHUNK_TOKENS = 16_384  # targets whose cross-entropy is computed at once: half a gigabyte at 8,192 words


class InvalidCandidate(Exception):
    """The candidate broke the contract between training script and evaluator."""


class Diverged(Exception):
    """The model's logits are not finite."""


class Candidate:
    """The candidate's model, from its script and its checkpoint. Foreign code runs here and in `logits`."""

    def __init__(self, script: Path, checkpoint: Path, meta: Meta, device: torch.device) -> None:
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
            state = torch.load(checkpoint, map_location=device, weights_only=True)
            self._model.load_state_dict(state, strict=True)
        except torch.OutOfMemoryError:
            raise
        except FileNotFoundError:
            raise InvalidCandidate("no checkpoint was saved") from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
                raise
            reason = " ".join(str(error).split())
            raise InvalidCandidate(f"the checkpoint does not fit build_model(meta): {reason}") from error
        self._model.eval()

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs `(B, T)` -> logits `(B, T, V)`, of a floating type."""
        gpu = self._device.type == "cuda"
        with torch.no_grad(), torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=gpu):
            logits = self._model(inputs)
        if not isinstance(logits, torch.Tensor):
            raise InvalidCandidate(f"forward returned a {type(logits).__name__}, not logits")
        expected = (*inputs.shape, self._vocab_size)
        if tuple(logits.shape) != expected:
            raise InvalidCandidate(f"logits of shape {tuple(logits.shape)}, expected {expected}")
        if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InvalidCandidate(f"logits of type {logits.dtype}, expected float32, bfloat16 or float16")
        if logits.device.type != self._device.type:
            raise InvalidCandidate(f"logits on {logits.device}, expected {self._device}")
        return logits.detach()


class Score:
    """Sums of cross-entropy, targets and bytes. They stay on the device: nothing waits for a batch."""

    def __init__(self, token_bytes: npt.NDArray[np.int32], device: torch.device) -> None:
        self._token_bytes = torch.from_numpy(token_bytes.astype(np.int64)).to(device)
        self._nats = torch.zeros((), dtype=torch.float64, device=device)
        self._tokens = torch.zeros((), dtype=torch.int64, device=device)
        self._bytes = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Logits `(B, T, V)` for targets `(B, T)`."""
        flat, wanted = logits.flatten(0, 1), targets.flatten()
        num_bytes = self._token_bytes[wanted]
        counted = num_bytes > 0
        for first in range(0, len(wanted), CHUNK_TOKENS):
            chunk = slice(first, first + CHUNK_TOKENS)
            nats = torch.nn.functional.cross_entropy(flat[chunk].float(), wanted[chunk], reduction="none")
            self._nats += torch.where(counted[chunk], nats, 0.0).sum(dtype=torch.float64)
        self._tokens += counted.sum()
        self._bytes += num_bytes.sum()

    def result(self) -> dict[str, object]:
        """The answer. Raises Diverged where the sum is not finite."""
        nats, num_bytes = self._nats.item(), int(self._bytes.item())
        if not math.isfinite(nats):
            raise Diverged("logits that are not finite")
        if num_bytes == 0:
            raise ValueError("no bytes in the validation rows")
        return {
            "status": "OK",
            "value": nats / (math.log(2) * num_bytes),
            "tokens": int(self._tokens.item()),
            "bytes": num_bytes,
        }


def val_batches(
    files: Sequence[npt.NDArray[np.uint16]], eval_tokens: int, batch_rows: int
) -> Iterator[npt.NDArray[np.int64]]:
    """The first validation rows that hold eval_tokens targets, at least one row, as `(batch_rows, T + 1)`."""
    seq_len = files[0].shape[1] - 1
    left = max(1, math.ceil(eval_tokens / seq_len))
    for file in files:
        for first in range(0, min(len(file), left), batch_rows):
            yield file[first : min(first + batch_rows, left)].astype(np.int64)
        left -= min(len(file), left)


def evaluate(spec: TrialSpec) -> dict[str, object]:
    """The score of the trial's checkpoint. Raises what went wrong."""
    if spec.data_dir is None:
        raise ValueError("the trial names no data")
    dataset = Dataset(Path(spec.data_dir))
    manifest = dataset.manifest
    meta = Meta(vocab_size=manifest.vocab_size, seq_len=manifest.seq_len, bos_id=manifest.bos_id)
    gpu = spec.device == "cuda" or (spec.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if gpu else "cpu")
    if gpu:
        torch.set_float32_matmul_precision("high")
    candidate = Candidate(Path(spec.src) / spec.script, TrialPaths(Path(spec.trial_dir)).checkpoint, meta, device)
    score = Score(dataset.token_bytes(), device)
    for rows in val_batches(dataset.rows("val"), spec.eval_tokens, max(1, spec.eval_batch_rows)):
        tokens = torch.from_numpy(rows)
        if gpu:
            tokens = tokens.pin_memory().to(device, non_blocking=True)
        score.add(candidate.logits(tokens[:, :-1].contiguous()), tokens[:, 1:].contiguous())
    return score.result()


def answer(spec: TrialSpec) -> dict[str, object]:
    """What goes to the worker: the score, or how the evaluation failed."""
    try:
        return evaluate(spec)
    except InvalidCandidate as error:
        return _failure("INVALID", error)
    except Diverged as error:
        return _failure("DIVERGED", error)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return _failure("OOM", error) if str(error) else _failure("OOM", MemoryError("host memory"))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code may raise anything: that is its result
        return _failure("CRASHED", error)


def _failure(status: str, error: BaseException) -> dict[str, object]:
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return {"status": status, "type": type(error).__name__, "message": message[:500]}


def _load_module(script: Path) -> object:
    found = importlib.util.spec_from_file_location("candidate_script", script)
    if found is None or found.loader is None:
        raise InvalidCandidate(f"{script.name} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules["candidate_script"] = module  # dataclasses and pickling look their module up
    sys.path.append(str(script.parent))  # the candidate's own files, behind everything installed
    found.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m autoresearch_hpc.trial.evaluate")
    parser.add_argument("spec", type=Path, help="the trial's trial.json")
    parser.add_argument("--result-fd", type=int, required=True, help="where the answer is written")
    arguments = parser.parse_args()
    spec = from_json(TrialSpec, read_json(arguments.spec))
    if spec.num_threads:
        torch.set_num_threads(spec.num_threads)
    if sys.stdin.readline().strip() != "go":
        return
    text = json.dumps(answer(spec), allow_nan=False)
    with os.fdopen(arguments.result_fd, "w") as pipe:
        pipe.write(text + "\n")


if __name__ == "__main__":
    main()
