"""Results come in: announced in the inbox, read from the trial's directory, or made up for a job that left none."""

import contextlib
import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from autoresearch_hpc.cluster import JobState
from autoresearch_hpc.files import read_json
from autoresearch_hpc.history import History, Trial
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.quoting import quoted
from autoresearch_hpc.records import Failure, Phases, SlurmJob, Status, TrialResult, TrialSpec, from_json
from autoresearch_hpc.trial import memory

_log = logging.getLogger(__name__)
_TAIL_BYTES = 16_384
_CLAIM = re.compile(r"claim-(\d+)\.json")
_INTERRUPTED = {
    "PREEMPTED",
    "FAILED",  # nobody cancelled it: a node that is shut down, say, ends its workers by SIGTERM
    "NODE_FAIL",
    "BOOT_FAIL",
    "UNKNOWN",
}  # ends that are not the trial's, though its worker had to stop
NEVER_STARTED, LAUNCH_FAILED, NO_RESULT = "NeverStarted", "LaunchFailed", "NoResult"


class Inbox:
    """One empty file for each result that waits to be taken in, so that one directory tells of all trials.

    Announcements only save time: the results of jobs that have ended are looked for without one. They come in bursts:
    after one that was found the next look comes five times sooner.
    """

    def __init__(self, path: Path, every_s: float) -> None:
        self._path, self._every_s = path, every_s
        self._looked_at = -float("inf")
        self._found = False
        path.mkdir(parents=True, exist_ok=True)

    def look(self, expected: Collection[str]) -> set[str]:
        """The trials that have announced a result; nothing before the next look is due.

        What nobody expects is cleared away: another controller has taken it in.
        """
        if self.due_in_s > 0:
            return set()
        self._looked_at = time.monotonic()
        with contextlib.suppress(PermissionError):
            os.utime(self._path)  # a client of NFS may keep old listings for a minute, but not of what it has touched
        announced = {entry.name for entry in os.scandir(self._path)}
        for name in announced - set(expected):
            self.clear(name)
        self._found = bool(announced & set(expected))
        return announced & set(expected)

    @property
    def due_in_s(self) -> float:
        """Until the next look."""
        every_s = self._every_s / 5 if self._found else self._every_s
        return max(0.0, self._looked_at + every_s - time.monotonic())

    def clear(self, trial: str) -> None:
        """Its result is in the journal."""
        (self._path / trial).unlink(missing_ok=True)


def read_result(paths: TrialPaths, run: str, trial: str) -> TrialResult | None:
    """The trial's result.

    None where there is none yet, and where the file is damaged, another trial's, or of an attempt that a newer one has
    replaced.
    """
    try:
        result = from_json(TrialResult, read_json(paths.result))
        newest = _newest_attempt(paths)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.debug("%s: %s", paths.result, error)
        return None
    return result if (result.run, result.trial) == (run, trial) and result.attempt >= newest else None


def is_final(result: TrialResult, trial: Trial, state: JobState | None) -> bool:
    """Whether the result stands.

    A worker that had to stop cannot tell why: until its job has ended it may be requeued, and a job that was preempted,
    lost its node, or was given up says nothing of the trial.
    """
    if result.status is not Status.CANCELLED:
        return True
    if trial.given_up is not None:
        return False
    return state is not None and state.ended and state.word not in _INTERRUPTED


def claimant(paths: TrialPaths) -> str | None:
    """The job whose worker has the trial, by its claim; None where none has, or where jobs have no ids."""
    job = _claim(paths).get("job")
    return job if isinstance(job, str) else None


def started_at(paths: TrialPaths) -> datetime | None:
    """When the newest attempt began, by its node's clock; None where none has."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(str(_claim(paths).get("at")))
    return None


def _newest_attempt(paths: TrialPaths) -> int:
    return max((int(m[1]) for path in paths.root.iterdir() if (m := _CLAIM.fullmatch(path.name))), default=0)


def _claim(paths: TrialPaths) -> dict[str, object]:
    try:
        return read_json(paths.claim(_newest_attempt(paths)))
    except (OSError, ValueError):
        return {}


def missing_result(spec: TrialSpec, trial: Trial, state: JobState, paths: TrialPaths, job_log: Path) -> TrialResult:
    """What is known of a trial whose job ended without a result: what the cluster called its end."""
    now = datetime.now(UTC)
    begun = started_at(paths)
    status, failure = _why(trial, state, paths, job_log)
    return TrialResult(
        run=spec.run,
        round=spec.round,
        candidate=spec.candidate,
        trial=spec.trial,
        attempt=_newest_attempt(paths),
        commit=spec.commit,
        status=status,
        metric=spec.metric,
        evaluator="self-reported" if spec.kind == "command" else "trusted",
        seed=spec.seed,
        tier=spec.tier,
        host=state.node or socket.gethostname(),
        started_at=begun.isoformat() if begun else spec.submitted_at or now.isoformat(timespec="milliseconds"),
        ended_at=now.isoformat(timespec="milliseconds"),
        slurm=SlurmJob(job_id=trial.job or "", nodelist=state.node) if state.node else None,
        phases=Phases(total_s=max(0.0, (now - begun).total_seconds()) if begun else None),
        error=failure,
        data_sha256=spec.data_sha256,
        harness_sha256=spec.harness_sha256,
    )


def _why(trial: Trial, state: JobState, paths: TrialPaths, job_log: Path) -> tuple[Status, Failure]:
    if trial.given_up is not None:
        kind = LAUNCH_FAILED if trial.launch_failed else NEVER_STARTED
        return Status.LOST, Failure(type=kind, message=trial.given_up)
    if state.word == "CANCELLED" and state.node and started_at(paths) is None:
        # Slurm's word also for a launch that failed where jobs are not requeued
        message = f"the job was cancelled on {state.node} before its worker had begun"
        return Status.LOST, Failure(type=LAUNCH_FAILED, message=message)
    if memory.told_by_slurm(job_log):
        message = f"host memory: Slurm ended the job for exceeding its memory, and called that {state.word}"
        return Status.OOM, Failure(type="OverMemory", message=message, tail=log_tail(paths))
    result = paths.result.exists() and (state.word == "FAILED" or state.word not in _INTERRUPTED)
    left = "a result that cannot be used" if result else "no result"
    where = f" on {state.node}" if state.node else ""
    message = f"the job ended as {state.word}{where} and left {left}"
    return state.status, Failure(type=NO_RESULT, message=message, tail=log_tail(paths))


def is_infrastructure(result: TrialResult) -> bool:
    """Whether the outcome says nothing of the candidate, and another trial may fare better."""
    return result.status is Status.LOST and not (result.error and result.error.type == NEVER_STARTED)


def is_nodes_fault(trial: Trial) -> bool:
    """Whether the trial was lost to the node that it ran on, or was to run on."""
    result = trial.result
    if result is None or result.status is not Status.LOST or trial.node is None or result.error is None:
        return False
    elsewhere = result.error.type in (NEVER_STARTED, "OSError") or "PREEMPTED" in result.error.message
    return not elsewhere


def faulty_nodes(history: History, at_least: int) -> set[str]:
    """Nodes to which trials of so many candidates were lost: one candidate alone may be the cause itself."""
    faults = {(trial.node, trial.candidate) for trial in history.tally.lost.values() if is_nodes_fault(trial)}
    return {node for node, count in Counter(node for node, _ in faults).items() if node and count >= at_least}


def log_tail(paths: TrialPaths, num_lines: int = 40) -> str:
    """The last lines of the trial's log, or nothing."""
    try:
        with paths.log.open("rb") as file:
            file.seek(max(0, paths.log.stat().st_size - _TAIL_BYTES))
            return quoted(file.read(_TAIL_BYTES).decode("utf-8", errors="replace"), max_lines=num_lines)
    except OSError:
        return ""
