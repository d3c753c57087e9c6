"""Results come in: read from the trial's directory, or made up for a trial whose job ended without one."""

import logging
import socket
from datetime import UTC, datetime

from autoresearch_hpc.cluster import JobState
from autoresearch_hpc.files import read_json
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import Failure, Phases, Status, TrialResult, TrialSpec, from_json

_log = logging.getLogger(__name__)
_TAIL_BYTES = 16_384


def read_result(paths: TrialPaths, run: str, trial: str) -> TrialResult | None:
    """The trial's result; None where there is none yet, or the file is damaged or another trial's."""
    try:
        result = from_json(TrialResult, read_json(paths.result))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.debug("%s: %s", paths.result, error)
        return None
    return result if (result.run, result.trial) == (run, trial) else None


def claimant(paths: TrialPaths) -> str | None:
    """The job whose worker has the trial, by its claim; None where none has, or where jobs have no ids."""
    try:
        job = read_json(paths.claim(0)).get("job")
    except (OSError, ValueError):
        return None
    return job if isinstance(job, str) else None


def missing_result(spec: TrialSpec, state: JobState, tail: str) -> TrialResult:
    """What is known of a trial whose job ended without a result: what the cluster called its end."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    message = f"the job ended as {state.word} and left no result"
    return TrialResult(
        run=spec.run,
        round=spec.round,
        candidate=spec.candidate,
        trial=spec.trial,
        attempt=0,
        commit=spec.commit,
        status=state.status,
        metric=spec.metric,
        evaluator="self-reported" if spec.kind == "command" else "trusted",
        seed=spec.seed,
        tier=spec.tier,
        host=socket.gethostname(),
        started_at=spec.submitted_at or now,
        ended_at=now,
        phases=Phases(),
        error=Failure(type="NoResult", message=message, tail=tail),
        data_sha256=spec.data_sha256,
        harness_sha256=spec.harness_sha256,
    )


def is_infrastructure(result: TrialResult) -> bool:
    """Whether the outcome says nothing of the candidate, so that another trial may follow."""
    return result.status is Status.LOST


def log_tail(paths: TrialPaths, num_lines: int = 40) -> str:
    """The last lines of the trial's log, or nothing."""
    try:
        with paths.log.open("rb") as file:
            file.seek(max(0, paths.log.stat().st_size - _TAIL_BYTES))
            return "\n".join(file.read(_TAIL_BYTES).decode("utf-8", errors="replace").splitlines()[-num_lines:])
    except OSError:
        return ""
