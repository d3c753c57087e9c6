"""What the shut-in child does with an edit: its model on shapes alone, then its whole training, then a real step.

It says what it does as JSON objects, one a line:

    {"stage": "shapes"}                          the model, forward and backward, without numbers
    {"shapes": {...}}                            what `shapes.measure` found
    {"stage": "steps"}                           the script from its start to the first number it asks for
    {"stage": "dry", "rows_of": n, "depth": d, "limit_s": s}
                                                 the script on the CPU, until its clock ends: one row of n tokens a
                                                 step, and d layers where their number was changed
    {"failed": {"type", "message", "tail"}}      the stage failed; nothing follows
    {"done": true}

The child runs foreign code: whoever reads this believes nothing but that.
"""

import contextlib
import errno
import os
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoresearch_hpc.errors import STORAGE_ERRORS
from autoresearch_hpc.harness import Meta, checkpoint
from autoresearch_hpc.records import Knobs
from autoresearch_hpc.screening import shapes, trace
from autoresearch_hpc.screening.limits import num_threads
from autoresearch_hpc.screening.script import EditedScript

FLOPS_PER_THREAD = 20e9
EVENTS = ("diverged", "saved")
LEAST_ROW = 128  # tokens; shorter rows try too little
LEAST_DEPTH = 2  # layers, where the script has a knob for them
DEPTH = "DEPTH"
_QUICK = 0.25  # of the time that there is: then nothing of the optimizer need be known
_STEPS = 3  # two to warm up, one on the clock
_BACKWARD = 3  # times the forward pass, both together
_MAX_EVENTS = 65_536
_SHAPES_S = 15.0  # of the script on shapes alone: with many small batches a step is long
_NO_ROOM = re.compile("allocate memory|bad_alloc|PytorchStreamWriter")
_NO_GPU = re.compile("CUDA|NVIDIA|accelerator|pin_memory|dummy base class|[Tt]riton")

Say = Callable[[dict[str, Any]], None]


class _Failed(Exception):
    """The stage failed, in these words."""


class _Enough(BaseException):
    """The time for something is over. A script does not catch it with its own errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """What a dry run is cut down to, and how long it is estimated to take."""

    row: int
    settings: Knobs
    seconds: float
    depth: int | None


class Rehearsal:
    """One edit's stages. `place` holds its files in src/, and a writable out/."""

    def __init__(self, request: dict[str, Any], place: Path, say: Say) -> None:
        self._say, self._threads = say, num_threads()
        name, meta = request["script"], Meta(**request["meta"])
        self._script = EditedScript(request["files"][name], name, place / "src", place / "out", meta, self._threads)
        self._dry_s: float = request["dry_s"]
        self._slack_s: float = request["slack_s"]
        self._only_shapes: bool = request["only_shapes"]

    def run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            self._stages()
            self._say({"done": True})
        except _Failed as failed:
            self._say({"failed": failed.args[0]})

    def _stages(self) -> None:
        self._say({"stage": "shapes"})
        measured = self._measured()
        self._say({"shapes": measured})
        if self._only_shapes:
            return
        self._say({"stage": "steps"})
        if error := self._without_numbers({}, self._script.meta.seq_len):
            raise _Failed(trace.words(error, self._script.src))
        size = self._fitting(measured["forward_flops"] if measured else 0.0)
        if size is not None:
            limit_s = min(size.seconds, self._dry_s) + self._slack_s
            self._say({"stage": "dry", "rows_of": size.row, "depth": size.depth, "limit_s": limit_s})
            self._dry(size)

    def _measured(self) -> dict[str, Any] | None:
        """What shapes tell of the model; None where it cannot be built or run without numbers."""
        rows = self._script.knobs.get("DEVICE_BATCH_SIZE")
        rows = rows if type(rows) is int and rows > 0 else 1
        try:
            return shapes.measure(self._script.load({}, "candidate_script"), self._script.meta, rows)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code may raise anything
            if shapes.is_artifact(error) or _is_of_this_machine(error):
                return None
            raise _Failed(trace.words(error, self._script.src)) from None

    def _without_numbers(self, settings: Knobs, row: int) -> BaseException | None:
        """Run the script on shapes alone, for some seconds. The error that is its own, if there was one."""
        self._script.open_session(row)
        with shapes.shapes_alone():
            try:
                with _in_time(_SHAPES_S):
                    self._script.load(settings, "__main__")
            except _Enough:
                pass
            except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code may raise anything
                # A training that went through ends in writing a checkpoint, for which there are no numbers.
                says_nothing = shapes.is_artifact(error) or _is_of_this_machine(error) or _within_checkpoint(error)
                if not (says_nothing or _is_success(error)):
                    return error
        return None

    def _fitting(self, forward_flops: float) -> _Size | None:
        """What of the script is run: all of it, else shorter rows, else fewer layers; None where all takes too long."""
        longest = self._script.meta.seq_len
        shortest = min(longest, LEAST_ROW)
        passes = _STEPS * _BACKWARD * forward_flops  # FLOPs of a dry run, less the optimizer's
        if self._seconds(passes) <= _QUICK * self._dry_s:
            return self._size(longest, passes)
        if self._seconds(passes * shortest / longest) <= self._dry_s:
            with shapes.counting() as flops:
                failed = self._without_numbers(self._size(shortest, 0.0).settings, shortest)
            optimizer = max(0.0, flops() - passes * shortest / longest)
            row = 0 if failed else longest
            while row > shortest and self._seconds(optimizer + passes * row / longest) > self._dry_s:
                row = max(row // 2, shortest)
            if row and self._seconds(optimizer + passes * row / longest) <= self._dry_s:
                return self._size(row, optimizer + passes * row / longest)
        depth = self._script.knobs.get(DEPTH)
        if type(depth) is int and depth > LEAST_DEPTH:
            return self._size(shortest, passes * shortest / longest * LEAST_DEPTH / depth, depth=LEAST_DEPTH)
        return None

    def _seconds(self, flops: float) -> float:
        return flops / (FLOPS_PER_THREAD * self._threads)

    def _size(self, row: int, flops: float, *, depth: int | None = None) -> _Size:
        """One row a step, without compilation, as far as the script has these knobs."""
        wanted: Knobs = {"DEVICE_BATCH_SIZE": 1, "TOTAL_BATCH_SIZE": row, "COMPILE": False, DEPTH: depth}
        settings = {name: value for name, value in wanted.items() if type(self._script.knobs.get(name)) is type(value)}
        return _Size(row=row, settings=settings, seconds=self._seconds(flops), depth=depth)

    def _dry(self, size: _Size) -> None:
        events = self._script.open_session(size.row)
        try:
            self._script.load(size.settings, "__main__")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code may raise anything
            if _is_of_this_machine(error):
                return
            names = _names(events)
            if "diverged" not in names and not _is_success(error):
                words = trace.words(error, self._script.src)
                if self._without_numbers(size.settings, size.row):
                    return  # at its own size it passed this: it fails for having been cut down
                raise _Failed(words) from None
        else:
            names = _names(events)
        if "diverged" in names:
            raise _Failed(_words("NonFiniteLoss", "the loss is not finite at the first step"))
        if "saved" not in names:
            raise _Failed(_words("NoCheckpoint", f"{self._script.name} ended without session.save(model, ...)"))
        self._check_saved()

    def _check_saved(self) -> None:
        state = torch.load(self._script.checkpoint, map_location="cpu", weights_only=True)
        bad = [
            name
            for name, tensor in state.items()
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and bool(tensor.isnan().any())
        ]
        if bad:
            message = f"after the first step {len(bad)} of {len(state)} tensors of the model hold NaN: "
            raise _Failed(_words("NotFinite", message + ", ".join(map(str, bad[:5]))))


def _names(events_fd: int) -> list[str]:
    """Which of the session's last events have come."""
    try:
        text = os.read(events_fd, _MAX_EVENTS).decode(errors="replace")
    except BlockingIOError:
        return []
    return [name for name in EVENTS if f'"event": "{name}"' in text]


def _words(type_: str, message: str) -> dict[str, str]:
    return {"type": type_, "message": message, "tail": ""}


def _is_success(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)


def _is_of_this_machine(error: BaseException) -> bool:
    """Whether memory or disk ended here, or a GPU was asked for: that says nothing of a GPU's node."""
    full = isinstance(error, OSError) and (error.errno in STORAGE_ERRORS or error.errno == errno.EFBIG)
    message = str(error)[:2000]
    asked = isinstance(error, RuntimeError | AssertionError | ImportError) and _NO_GPU.search(message)
    return full or isinstance(error, MemoryError) or bool(asked or _NO_ROOM.search(message))


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Raise _Enough within it once the seconds are over."""

    def enough(number: int, frame: object) -> None:
        raise _Enough

    signal.signal(signal.SIGALRM, enough)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _within_checkpoint(error: BaseException) -> bool:
    """Whether the error came in writing the checkpoint."""
    return any(f.f_code.co_filename == checkpoint.__file__ for f, _ in traceback.walk_tb(error.__traceback__))
