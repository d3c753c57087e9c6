"""A trial of our own train.py: the candidate's process trains, a trusted one that started beside it evaluates.

The worker charges the time: it stamps the trainer's announcements (warm-up, clock, checkpoint) with its own clock and
ends a trainer that overruns. What the trainer reports of itself (steps, tokens) is for people; nothing decides on it.
"""

import math
import sys
import time
from pathlib import Path
from typing import Any

from autoresearch_hpc.files import write_json_atomic
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import Failure, Status, TrialSpec
from autoresearch_hpc.trial.children import Child, StopFlag
from autoresearch_hpc.trial.ending import Ending
from autoresearch_hpc.trial.facts import child_environment, failure, is_storage, log_tail, storage_failure
from autoresearch_hpc.trial.memory import oom_kills
from autoresearch_hpc.trial.phases import Phase, PhaseLog

SESSION_SCHEMA = 1
_MAX_COUNT = 10**18
_ANSWERS = (Status.OK, Status.INVALID, Status.DIVERGED, Status.OOM, Status.CRASHED)


class GptTrial:
    """One training and one evaluation; `run` gives the ending."""

    def __init__(self, spec: TrialSpec, paths: TrialPaths, phases: PhaseLog, stop: StopFlag) -> None:
        self._spec, self._paths, self._phases, self._stop = spec, paths, phases, stop
        self._facts: dict[str, Any] = {}
        self._oom_kills = oom_kills()
        self._eval_begun = 0.0

    def run(self) -> Ending:
        spec, paths = self._spec, self._paths
        session = {
            "schema": SESSION_SCHEMA,
            "data_dir": spec.data_dir,
            "seed": spec.seed,
            "train_s": spec.train_s,
            "device": spec.device,
            "checkpoint": str(paths.checkpoint),
            "num_threads": spec.num_threads,
        }
        write_json_atomic(paths.session, session)
        env = child_environment(spec.num_threads, {"AUTORESEARCH_SESSION": str(paths.session)})
        python = [sys.executable, "-P", "-u"]
        trainer = Child(
            [*python, str(Path(spec.src) / spec.script)],
            log=paths.log,
            env=env,
            cwd=Path(spec.src),
            fd_variable="AUTORESEARCH_EVENTS_FD",
        )
        evaluator = Child(
            [*python, "-m", "autoresearch_hpc.trial.evaluate", str(paths.spec)],
            log=paths.evaluate_log,
            env=child_environment(spec.num_threads, {}),
            cwd=paths.root,
            fd_argument="--result-fd",
            stdin=True,
        )
        try:
            return self._train(trainer) or self._evaluate(evaluator)
        finally:
            trainer.kill()
            evaluator.kill()
            paths.checkpoint.unlink(missing_ok=True)

    def _train(self, trainer: Child) -> Ending | None:
        """Follow the trainer to its checkpoint and its exit. None when all went well."""
        spec = self._spec
        if not trainer.wait(self._on_start, spec.startup_limit_s, self._stop):
            return self._trainer_failed(trainer, "start-up and compilation", spec.startup_limit_s)
        if not trainer.wait(self._on_training, spec.train_s + spec.grace_s, self._stop):
            return self._trainer_failed(trainer, "training and saving", spec.train_s + spec.grace_s)
        if self._facts["event"] == "diverged":
            message = f"the loss was not finite at step {self._facts.get('step')}"
            return self._ending(Status.DIVERGED, Failure(type="Diverged", message=message))
        self._phases.enter(Phase.EVAL)
        self._eval_begun = time.monotonic()
        exit_limit_s = min(spec.grace_s, spec.eval_limit_s)
        trainer.wait(lambda event: False, exit_limit_s, self._stop)
        if trainer.running or trainer.process.returncode != 0:
            return self._trainer_failed(trainer, "exiting after its checkpoint", exit_limit_s)
        return None

    def _on_start(self, event: dict[str, Any]) -> bool:
        if event.get("event") == "warmup":
            self._phases.enter(Phase.COMPILE)
        if event.get("event") == "clock":
            self._phases.enter(Phase.TRAIN)
        return event.get("event") == "clock"

    def _on_training(self, event: dict[str, Any]) -> bool:
        self._facts = event
        return event.get("event") in ("saved", "diverged")

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
