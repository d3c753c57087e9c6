"""A trial of our own train.py: the candidate's process trains, a trusted one that started beside it evaluates.

The worker charges the time: it stamps the trainer's announcements (warm-up, clock, end of training, checkpoint) with
its own clock and ends a trainer that overruns. It hands the training data over when the clock starts, and takes the
checkpoint into its own memory the moment that it is announced: what happens to the file later is of no importance.
What the trainer reports of itself (steps, tokens) is for people; nothing decides on it.
"""

import contextlib
import fcntl
import logging
import math
import os
import socket
import stat
import time
from pathlib import Path
from typing import Any

from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.leftovers import kill_descendants
from autoresearch_hpc.quoting import quoted_line
from autoresearch_hpc.records import Failure, Status, TrialSpec
from autoresearch_hpc.trial import compiled
from autoresearch_hpc.trial.children import Child, StopFlag
from autoresearch_hpc.trial.ending import Ending
from autoresearch_hpc.trial.facts import failure, is_storage, log_tail, storage_failure
from autoresearch_hpc.trial.memory import oom_kills
from autoresearch_hpc.trial.phases import Phase, PhaseLog
from autoresearch_hpc.trial.processes import start_evaluator, start_trainer, write_session
from autoresearch_hpc.trial.scratch import Scratch
from autoresearch_hpc.trial.shared_memory import ours_in_shared_memory, remove_left
from autoresearch_hpc.trial.staging import Copy

MAX_SCRATCH_BYTES = 64 << 30
OVERRUN_SHARE = 0.01  # of the training time is always allowed
SAVING_BYTES_PER_S = 200e6
_FDS_OF_A_MESSAGE = 64
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_LIMIT_IN_WORDS = f"{MAX_SCRATCH_BYTES >> 30} GiB"
_LOOK_EVERY_S = 2.0
_MAX_COUNT = 10**18
_ANSWERS = (Status.OK, Status.INVALID, Status.DIVERGED, Status.OOM, Status.CRASHED)

_log = logging.getLogger(__name__)


class _Broken(Exception):
    """The trial ends here; its failure is the argument."""

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(type=type_, message=message)


class GptTrial:
    """One training and one evaluation; `run` gives the ending."""

    def __init__(
        self,
        spec: TrialSpec,
        paths: TrialPaths,
        phases: PhaseLog,
        stop: StopFlag,
        gpu_name: str | None = None,
        copy: Copy | None = None,
    ) -> None:
        """With a copy of the training data, that is what it trains on."""
        self._gpu_name, self._copy = gpu_name, copy
        self._spec, self._paths, self._phases, self._stop = spec, paths, phases, stop
        self._facts: dict[str, Any] = {}
        self._store: compiled.Store | None = None
        self._warm = False
        self._oom_kills = oom_kills()
        self._eval_begun = 0.0
        self._looked_at = time.monotonic()
        self._slack_s = max(spec.overrun_s, OVERRUN_SHARE * spec.train_s)

    def run(self) -> Ending:
        self._store = compiled.Store.of(self._spec, self._gpu_name)
        archive = self._store.best() if self._store else None
        ending = self._once(archive)
        if archive is None or not self._warm or ending.status is not Status.CRASHED or self._clock_started:
            return ending
        _log.warning("%s crashed with what the baseline had compiled: once more without", self._spec.script)
        ending = self._once(None)
        if self._clock_started:
            archive.unlink(missing_ok=True)  # it does not suit, whatever the reason
        return ending

    @property
    def _clock_started(self) -> bool:
        return Phase.TRAIN in self._phases.seconds()

    def _once(self, archive: Path | None) -> Ending:
        """The trial, from the start; with the caches in the archive where there is one."""
        scratch, in_shared_memory = Scratch(), ours_in_shared_memory()
        try:
            return self._run(scratch, archive)
        except _Broken as broken:
            return self._ending(Status.INVALID, broken.failure)
        finally:
            kill_descendants()
            remove_left(in_shared_memory)
            scratch.remove()

    def _run(self, scratch: Scratch, archive: Path | None) -> Ending:
        spec, paths = self._spec, self._paths
        self._scratch, self._facts = scratch, {}
        place, _, _ = (scratch.place(name) for name in ("trainer", "scoring", "witness"))
        self._file, filled = place / "out" / "checkpoint.pt", place / "caches-filled"
        data = Dataset(Path(spec.data_dir)) if spec.data_dir else None
        session = write_session(spec, place, data, checkpoint=self._file, caches_filled=filled)
        self._door, door = socket.socketpair()
        compiles = not (self._store and archive and self._store.complete(archive))
        trainer = start_trainer(spec, paths.log, place, session, door, compiles=compiles)
        door.close()
        self._checkpoint_fd = os.memfd_create("checkpoint", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        evaluator = start_evaluator(spec, paths, scratch, self._checkpoint_fd)
        try:
            self._warm = compiled.unpack(archive, scratch.root, "trainer")  # while both import torch
            with contextlib.suppress(FileExistsError):  # whoever does not want to wait
                filled.touch(exist_ok=False)  # which follows no link
            baseline = self._store.baseline if self._store and archive else None
            for name in ("scoring", "witness"):
                compiled.unpack(baseline, scratch.root, name, of="scoring")
            ending = self._train(trainer, data)
            if ending is None:
                trainer.kill()
                left = kill_descendants(spare=evaluator.process.pid)
                if left:
                    _log.info("%s left %d processes behind; they were ended", spec.script, left)
                ending = self._evaluate(evaluator)
            if ending.status is Status.OK and self._store and archive:
                self._store.keep(scratch.root, archive)
            return ending
        finally:
            trainer.kill()
            evaluator.kill()
            self._door.close()
            os.close(self._checkpoint_fd)

    def _train(self, trainer: Child, data: Dataset | None) -> Ending | None:
        """Follow the trainer to its checkpoint and its exit. None when all went well."""
        spec = self._spec
        fds = self._copy.open_rows() if self._copy else data.open_rows("train") if data else []
        try:
            if not trainer.wait(self._on_start, spec.startup_limit_s, self._stop, self._watch):
                return self._trainer_failed(trainer, "start-up and compilation", spec.startup_limit_s)
            self._hand_over(fds)
        finally:
            for fd in fds:
                os.close(fd)
        begun = time.monotonic()
        limit_s = spec.train_s + self._slack_s
        if not trainer.wait(self._on_training, limit_s, self._stop, self._watch):
            if not trainer.running:
                return self._trainer_failed(trainer, "training", limit_s)
            message = f"training went on for more than {self._slack_s:g} s after the clock's {spec.train_s:g} s"
            raise _Broken("Overrun", f"{message}; if single steps are that long, raise task.overrun_s")
        left_s = spec.train_s + max(spec.grace_s, self._slack_s) - (time.monotonic() - begun)
        if self._facts["event"] == "stopped" and not trainer.wait(self._on_saved, left_s, self._stop, self._watch):
            return self._trainer_failed(trainer, "saving", spec.grace_s)
        took_s = time.monotonic() - begun
        if self._facts["event"] == "diverged":
            message = f"the loss was not finite at step {self._facts.get('step')}"
            return self._ending(Status.DIVERGED, Failure(type="Diverged", message=quoted_line(message)))
        self._phases.enter(Phase.EVAL)
        self._eval_begun = time.monotonic()
        self._judge_time(took_s)
        self._take_checkpoint()
        exit_limit_s = min(spec.grace_s, spec.eval_limit_s)
        done = trainer.wait(lambda event: event.get("event") == "summary", exit_limit_s, self._stop, self._watch)
        if not done and (trainer.running or trainer.process.returncode != 0):
            return self._trainer_failed(trainer, "exiting after its checkpoint", exit_limit_s)
        return None

    def _on_start(self, event: dict[str, Any]) -> bool:
        if event.get("event") == "warmup":
            self._phases.enter(Phase.COMPILE)
        if event.get("event") == "clock":
            if self._store:
                self._store.snapshot(self._scratch.root, self._phases.seconds().get(Phase.COMPILE, 0.0))
            self._phases.enter(Phase.TRAIN)
        return event.get("event") == "clock"

    def _on_training(self, event: dict[str, Any]) -> bool:
        self._facts = event
        return event.get("event") in ("stopped", "saved", "diverged")

    def _on_saved(self, event: dict[str, Any]) -> bool:
        self._facts = event
        return event.get("event") in ("saved", "diverged")

    def _hand_over(self, fds: list[int]) -> None:
        """Give the trainer its data. One that does not take it has none."""
        self._door.setblocking(False)
        for first in range(0, len(fds), _FDS_OF_A_MESSAGE):
            with contextlib.suppress(OSError):
                socket.send_fds(self._door, [b"d"], fds[first : first + _FDS_OF_A_MESSAGE])

    def _watch(self) -> None:
        """End a trial that fills the disk."""
        if time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            written = self._scratch.num_bytes()
            if written > MAX_SCRATCH_BYTES:
                raise _Broken("DiskFull", f"the trial wrote {written / 2**30:.1f} GiB; {_LIMIT_IN_WORDS} are allowed")

    def _judge_time(self, took_s: float) -> None:
        """Between clock and checkpoint nothing fits but the training, the end of its last step, and the writing."""
        with contextlib.suppress(OSError):
            size = self._file.lstat().st_size
            allowed_s = self._spec.train_s + self._slack_s + size / SAVING_BYTES_PER_S
            if took_s > allowed_s:
                message = f"the checkpoint came {took_s:.1f} s after the clock's start; {allowed_s:.1f} s are allowed"
                raise _Broken("Overrun", message)

    def _take_checkpoint(self) -> None:
        """Copy the checkpoint into sealed memory of this process."""
        try:
            fd = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _Broken("NoCheckpoint", f"no checkpoint was saved: {error.strerror}") from None
        try:
            size = os.fstat(fd).st_size
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _Broken("NoCheckpoint", "the checkpoint is not a file")
            done = 0
            while done < size and (more := os.sendfile(self._checkpoint_fd, fd, done, size - done)):
                done += more
        finally:
            os.close(fd)
        fcntl.fcntl(self._checkpoint_fd, fcntl.F_ADD_SEALS, _SEALS)

    def _trainer_failed(self, trainer: Child, doing: str, limit_s: float) -> Ending:
        if trainer.running:
            message = f"{doing} took longer than {limit_s:g} s"
            return self._ending(
                Status.TIMEOUT, Failure(type="Timeout", message=message, tail=log_tail(self._paths.log))
            )
        if trainer.process.returncode == 0:
            message = f"{self._spec.script} ended without a saved checkpoint"
            return self._ending(
                Status.INVALID, Failure(type="NoCheckpoint", message=message, tail=log_tail(self._paths.log))
            )
        status, error = failure(trainer.process.returncode, self._paths.log, self._oom_kills)
        return self._ending(status, error)

    def _evaluate(self, evaluator: Child) -> Ending:
        answer: dict[str, Any] = {}
        evaluator.tell("go")
        left_s = self._eval_begun + self._spec.eval_limit_s - time.monotonic()  # the trainer's exit is part of it

        def on_answer(event: dict[str, Any]) -> bool:
            answer.update(event)
            return True

        if evaluator.wait(on_answer, left_s, self._stop):
            self._phases.close(Phase.EVAL)
            return self._scored(answer)
        if evaluator.running:
            message = f"the evaluation took longer than {self._spec.eval_limit_s:g} s"
            return self._ending(Status.TIMEOUT, Failure(type="Timeout", message=message))
        status, error = failure(evaluator.process.returncode, self._paths.evaluate_log, self._oom_kills)
        return self._ending(status, error)

    def _scored(self, answer: dict[str, Any]) -> Ending:
        """The evaluator's answer; the candidate's code runs there too and may have spoilt it."""
        status = next((s for s in _ANSWERS if s.value == answer.get("status")), None)
        value = _number(answer.get("value"))
        if status is Status.OK and value is not None:
            return self._ending(status, None, value=value)
        if status is None or status is Status.OK:
            message = f"the evaluator's answer makes no sense: {str(answer)[:200]}"
            return self._ending(Status.INVALID, Failure(type="BadAnswer", message=message))
        type_, message = (str(answer.get(key, "unknown"))[:500] for key in ("type", "message"))
        if status is Status.CRASHED and is_storage(type_, message):
            return self._ending(Status.LOST, storage_failure(type_, message))
        return self._ending(status, Failure(type=type_, message=message))

    def _ending(self, status: Status, error: Failure | None, value: float | None = None) -> Ending:
        facts = self._facts
        return Ending(
            status=status,
            value=value,
            error=error,
            steps=_count(facts.get("steps")),
            tokens=_count(facts.get("tokens")),
            num_params=_count(facts.get("num_params")),
            peak_vram_mb=_number(facts.get("peak_vram_mb")),
            mfu=_number(facts.get("mfu")),
        )


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None


def _number(value: object) -> float | None:
    """A finite number, else None: what a foreign process says may be anything."""
    if type(value) is int and abs(value) < _MAX_COUNT:
        return float(value)
    return value if type(value) is float and math.isfinite(value) else None
