"""The trusted evaluator: a process that turns a checkpoint into bits per byte.

    python -P -m autoresearch_hpc.trial.evaluate SPEC_JSON --result-fd N [--checkpoint-fd N] [--private DIR]

It is started early, does what is slow when it is first used, and waits on stdin: the line `go` starts the evaluation,
end of file ends the process. It answers with one JSON object on the file descriptor N:

    {"status": "OK", "value": bits per byte, "tokens": targets counted, "bytes": their UTF-8 bytes}
    {"status": "INVALID" | "DIVERGED" | "OOM" | "CRASHED", "type": ..., "message": ...}

No code of the candidate runs here. Two servers forked at the start hold its model and give logits for inputs
(`server`): one for the score, one as the witness that tells whether the first looks at what it may not (`twins`).
With --private they are shut in, each below a directory of its own.
"""

import torch  # isort: skip - first: the slow import is what an early start is for

import argparse
import contextlib
import gc
import json
import logging
import os
import secrets
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.files import read_json
from autoresearch_hpc.harness.session import choose_device
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import TrialSpec, from_json
from autoresearch_hpc.sandbox import hide_memory
from autoresearch_hpc.trial import scoring, twins
from autoresearch_hpc.trial.scoring import Diverged, bits_per_byte, nats_of, val_rows
from autoresearch_hpc.trial.server import Shape, failure
from autoresearch_hpc.trial.serving import ModelServer, ServerFailed

_log = logging.getLogger(__name__)
_CPU_BUFFER_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Servers:
    """The processes with the candidate's model."""

    scored: ModelServer
    witness: ModelServer

    @classmethod
    def fork(cls, spec: TrialSpec, private: Path | None = None) -> "Servers":
        """Start both, before this process has read any data."""
        places = [private / name if private else None for name in ("scoring", "witness")]
        scored = ModelServer(spec, places[0])
        return cls(scored, ModelServer(spec, places[1], strangers=(scored,)))

    def kill(self) -> None:
        """End them, without waiting for their memory to be freed."""
        self.scored.kill()
        self.witness.kill()

    def close(self) -> None:
        """End them, and wait."""
        self.scored.close()
        self.witness.close()


class Evaluation:
    """One checkpoint, one score. `private` holds the servers' directories, where they are shut in."""

    def __init__(self, spec: TrialSpec, servers: Servers, checkpoint: Path, private: Path | None = None) -> None:
        self._begun = time.monotonic()
        self._private = private
        if spec.data_dir is None:
            raise ValueError("the trial names no data")
        self._dataset = Dataset(Path(spec.data_dir))
        self._servers, self._spec, self._checkpoint = servers, spec, checkpoint
        self._meta = self._dataset.meta
        self._device = choose_device(spec.device)
        self._random = np.random.default_rng(secrets.randbits(128))

    def run(self) -> dict[str, object]:
        """The score. Raises what went wrong."""
        scored, witness = self._servers.scored, self._servers.witness
        for server in (scored, witness):
            server.open(self._meta, self._device, self._checkpoint)
        self._read_rows()
        gpu = self._device.type == "cuda"
        shape = Shape(slots=2, rows=self._batch_rows, seq_len=self._meta.seq_len, vocab_size=self._meta.vocab_size)
        scored.share(shape, on_gpu=gpu)
        witness.share(replace(shape, slots=1), on_gpu=gpu and scored.on_gpu)
        early = twins.draw(self._random, self._rows, self._num_bytes, self._batch_rows)
        nats = self._scored(early)
        scored.kill()
        self._say("scored")
        answer = bits_per_byte(nats, self._num_bytes)
        finding = self._witnessed(nats, early)
        self._say("witnessed")
        if finding:
            return {"status": "INVALID", "type": finding.type, "message": finding.message}
        return answer

    def _read_rows(self) -> None:
        """The validation rows, and how many of them are in a batch."""
        self._rows = val_rows(self._dataset.rows("val"), self._spec.eval_tokens)
        self._num_bytes: npt.NDArray[np.int32] = self._dataset.token_bytes()[self._rows[:, 1:]]
        self._batch_rows = max(1, min(self._spec.eval_batch_rows, len(self._rows)))
        if self._device.type == "cpu":
            row_bytes = 4 * self._meta.seq_len * self._meta.vocab_size
            self._batch_rows = min(self._batch_rows, max(1, _CPU_BUFFER_BYTES // row_bytes))
        self._count = twins.num_tested(len(self._rows), self._batch_rows)

    def _scored(self, early: twins.Twins) -> twins.Floats:
        """The first server's scores `(R, T)`, the witness beside it at work on early twins. One after the other where
        there is no memory for both."""
        scored, witness = self._servers.scored, self._servers.witness
        inputs, targets = self._rows[:, :-1], self._rows[:, 1:]
        try:
            scored.opened()
            witness.opened()
            self._say("opened")
            witness.ask(0, early.inputs)
            return self._all(scored, inputs, targets)
        except ServerFailed as error:
            _require_want_of_memory(error, scored, witness)
            witness.forget()
            scored.open_again()
            nats = self._all(scored, inputs, targets)
            self._witness_alone(early)
            return nats

    def _witness_alone(self, early: twins.Twins) -> None:
        self._servers.scored.close()
        self._servers.witness.open_again()
        self._servers.witness.ask(0, early.inputs)

    def _say(self, what: str) -> None:
        if self._private:  # else somebody runs the script by hand
            _log.info("%s after %.2f s", what, time.monotonic() - self._begun)

    def _all(
        self, server: ModelServer, inputs: npt.NDArray[np.uint16], targets: npt.NDArray[np.uint16]
    ) -> twins.Floats:
        """The cross-entropy of all targets `(n, T)`, batch by batch, as many on their way as there are slots.

        The last batch is filled up with rows from the front: another shape would be compiled anew.
        """
        size, slots, total = self._batch_rows, server.slots, len(inputs)
        nats = torch.empty(inputs.shape, dtype=torch.float32, device=self._device)
        starts = list(range(0, total, size))
        asked = 0
        for number, first in enumerate(starts):
            for asking in range(asked, min(number + slots, len(starts))):
                server.ask(asking % slots, inputs[np.arange(starts[asking], starts[asking] + size) % total])
                asked += 1
            last = min(first + size, total)
            wanted = torch.from_numpy(targets[first:last].astype(np.int64)).to(self._device)
            nats[first:last] = nats_of(server.logits(number % slots, size)[: last - first], wanted)
            self._wait()
        return nats.cpu().numpy()

    def _wait(self) -> None:
        """Until what was read of a slot has been read: the next batch is written there."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _witnessed(self, nats: twins.Floats, early: twins.Twins) -> twins.Finding | None:
        """Ask the witness for the twins' scores, and compare."""
        witness = self._servers.witness
        left = self._count - self._batch_rows
        late = twins.draw(self._random, self._rows, self._num_bytes, left, nats) if left > 0 else None
        try:
            seen = [self._early(early)]
        except ServerFailed as error:
            _require_want_of_memory(error, self._servers.witness)
            self._witness_alone(early)
            seen = [self._early(early)]
        both = early
        if late is not None:
            seen.append(self._all(witness, late.inputs, self._rows[late.row, 1:]))
            both = early + late
        coarse = self._device.type == "cuda" or witness.coarse
        tolerance = twins.COARSE if coarse else twins.EXACT
        return twins.judge(both, nats[both.row], np.concatenate(seen), self._num_bytes, tolerance)

    def _early(self, early: twins.Twins) -> twins.Floats:
        targets = torch.from_numpy(self._rows[early.row, 1:].astype(np.int64)).to(self._device)
        nats = nats_of(self._servers.witness.logits(0, len(early.row)), targets)
        self._wait()
        return nats.cpu().numpy()


def _require_want_of_memory(error: ServerFailed, *needed: ModelServer) -> None:
    """Raise what is something else, and where one that is needed has not outlived it."""
    if error.answer.get("status") != "OOM" or any(server.gone for server in needed):
        raise error
    _log.info("not enough memory for two models at once: one after the other")


def answer(spec: TrialSpec, servers: Servers, checkpoint: Path, private: Path | None = None) -> dict[str, object]:
    """What goes to the worker: the score, or how the evaluation failed."""
    try:
        return Evaluation(spec, servers, checkpoint, private).run()
    except ServerFailed as error:
        return error.answer
    except Diverged as error:
        return failure("DIVERGED", error)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return failure("OOM", error if str(error) else MemoryError("host memory"))
    except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
        return failure("CRASHED", error)
    finally:
        servers.kill()


def _prepare(spec: TrialSpec) -> None:
    """What the first score would wait for. Where it fails the evaluation itself will say what is wrong."""
    with contextlib.suppress(Exception):
        if spec.data_dir and choose_device(spec.device).type == "cuda":
            scoring.prepare(Dataset(Path(spec.data_dir)).meta.vocab_size)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -P -m autoresearch_hpc.trial.evaluate")
    parser.add_argument("spec", type=Path, help="the trial's trial.json")
    parser.add_argument("--result-fd", type=int, required=True, help="where the answer is written")
    parser.add_argument("--checkpoint-fd", type=int, help="the checkpoint; default: the file in the trial's directory")
    parser.add_argument("--private", type=Path, help="a directory in which the servers are shut in")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    spec = from_json(TrialSpec, read_json(arguments.spec))
    gc.disable()  # it costs a fifth of what is imported and compiled from here on
    servers = Servers.fork(spec, arguments.private)
    hide_memory()
    if spec.num_threads:
        torch.set_num_threads(spec.num_threads)
    _prepare(spec)
    if sys.stdin.readline().strip() != "go":
        servers.close()
        return
    checkpoint = TrialPaths(Path(spec.trial_dir)).checkpoint
    if arguments.checkpoint_fd is not None:
        checkpoint = Path(f"/proc/self/fd/{arguments.checkpoint_fd}")
    text = json.dumps(answer(spec, servers, checkpoint, arguments.private), allow_nan=False)
    with os.fdopen(arguments.result_fd, "w") as pipe:
        pipe.write(text + "\n")
    servers.close()


if __name__ == "__main__":
    main()
