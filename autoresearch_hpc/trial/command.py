"""A trial of any single-GPU script: run a shell line in a private copy of the candidate's files, then read its metric.

The script knows nothing of us, so the score is its own word: the result says `self-reported`.
"""

import json
import math
import re
import shutil
from pathlib import Path

from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import CommandSpec, Failure, Status, TrialSpec
from autoresearch_hpc.trial.children import Child, StopFlag
from autoresearch_hpc.trial.ending import Ending
from autoresearch_hpc.trial.environment import child_environment
from autoresearch_hpc.trial.facts import failure, log_tail
from autoresearch_hpc.trial.memory import oom_kills
from autoresearch_hpc.trial.phases import Phase, PhaseLog
from autoresearch_hpc.trial.scratch import node_directory

_MAX_OUTPUT = 16 << 20  # bytes of the script's output that are searched for its metric


class CommandTrial:
    """One run of the script; `run` gives the ending."""

    def __init__(self, spec: TrialSpec, paths: TrialPaths, phases: PhaseLog, stop: StopFlag) -> None:
        assert spec.command
        self._spec, self._command, self._paths, self._phases, self._stop = spec, spec.command, paths, phases, stop
        self._oom_kills = oom_kills()

    def run(self) -> Ending:
        spec, paths = self._spec, self._paths
        work = paths.root / "work"  # trials of one candidate may run side by side, and scripts write where they stand
        shutil.rmtree(work, ignore_errors=True)
        try:
            shutil.copytree(spec.src, work, symlinks=True)
        except shutil.Error as problems:  # a list of all files with their reasons
            raise OSError(problems.args[0][0][2]) from problems
        if self._command.metric_json:
            _remove(work / self._command.metric_json)
        extra = {"AUTORESEARCH_SEED": str(spec.seed), **self._command.env}
        self._phases.enter(Phase.TRAIN)
        child = Child(
            ["/bin/sh", "-c", self._command.command],
            log=paths.log,
            env=child_environment(spec.num_threads, extra, node_directory(), pass_env=spec.pass_env),
            cwd=work,
            fd_variable="AUTORESEARCH_EVENTS_FD",
        )
        try:
            child.wait(lambda event: False, spec.train_s + spec.grace_s, self._stop)
            if child.running:
                message = f"the command took longer than {spec.train_s + spec.grace_s:g} s"
                return Ending(
                    status=Status.TIMEOUT, error=Failure(type="Timeout", message=message, tail=log_tail(paths.log))
                )
        finally:
            child.kill()
        self._phases.close(Phase.TRAIN)
        if child.process.returncode != 0:
            status, error = failure(child.process.returncode, paths.log, self._oom_kills)
            return Ending(status=status, error=error)
        return self._score(work)

    def _score(self, work: Path) -> Ending:
        try:
            value = read_metric(self._command, work, self._paths.log)
        except ValueError as problem:
            return Ending(
                status=Status.INVALID,
                error=Failure(type="NoMetric", message=str(problem), tail=log_tail(self._paths.log)),
            )
        if not math.isfinite(value):
            return Ending(status=Status.DIVERGED, error=Failure(type="Diverged", message=f"the metric is {value}"))
        return Ending(status=Status.OK, value=value)


def _remove(path: Path) -> None:
    """An old metric that was committed with the script is nobody's result."""
    if path.is_file() or path.is_symlink():
        path.unlink()


def read_metric(command: CommandSpec, work: Path, log: Path) -> float:
    """The metric from its JSON file or from the output. Raises ValueError saying what is missing."""
    if command.metric_json:
        return _of_json(work / command.metric_json, command.metric_json, command.metric_key or "")
    assert command.metric_regex
    found = re.findall(command.metric_regex, _end(log), re.MULTILINE)
    if not found:
        raise ValueError(f"no match of {command.metric_regex!r} in the output")
    try:
        return float(found[-1])
    except (TypeError, ValueError):
        raise ValueError(f"{command.metric_regex!r} must have one group that matches a number") from None


def _end(log: Path) -> str:
    """The output, of a huge one the end."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _MAX_OUTPUT))
        return file.read(_MAX_OUTPUT).decode("utf-8", errors="replace").replace("\r\n", "\n")


def _of_json(path: Path, name: str, key: str) -> float:
    if not path.is_file():  # nor a pipe, which would keep the worker waiting
        raise ValueError(f"the script wrote no {name}")
    try:
        return _number(_find(json.loads(path.read_text(encoding="utf-8")), key))
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError(f"{name} has no number at {key!r}") from None


def _find(node: object, key: str) -> object:
    """The value at a dotted key; a key that holds dots itself is found as it is."""
    if isinstance(node, dict) and key in node:
        return node[key]
    first, _, rest = key.partition(".")
    inner = node[int(first)] if isinstance(node, list) else node[first]  # type: ignore[index]
    return _find(inner, rest) if rest else inner


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("no number")
    try:
        return float(value)
    except OverflowError:  # JSON's integers have no bounds
        return math.inf
