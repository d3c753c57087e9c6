"""How far trials are, read from the files that their workers leave; written by nobody here.

`claim-<attempt>.json` {"at", "host", ...} says that a worker has begun, `phases.json` {"phase", "at"} what it is
doing, `result.json` that it is done. A file that is missing, torn or of another shape says nothing: the next look will.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from autoresearch_hpc.entries import Entry, Trial, alike
from autoresearch_hpc.files import read_json
from autoresearch_hpc.layout import RunLayout, TrialPaths
from autoresearch_hpc.records import TrialResult, from_json

_PHASES = {"startup": "starting", "compile": "compiling", "train": "training", "eval": "evaluating"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One look at a trial. `started_at` and `since` (the phase's begin) are UTC; None where nothing is known."""

    phase: str | None = None  # startup, compile, train or eval
    since: datetime | None = None
    started_at: datetime | None = None
    host: str | None = None
    result: TrialResult | None = None


def trial_progress(paths: TrialPaths) -> Progress:
    """What the trial's directory says now: one listing, and the files that are there."""
    try:
        names = {path.name for path in paths.root.iterdir()}
    except OSError:
        return Progress()
    attempts = [int(n[6:-5]) for n in names if n.startswith("claim-") and n.endswith(".json") and n[6:-5].isdigit()]
    claim = _payload(paths.claim(max(attempts))) if attempts else {}
    started_at = _time(claim.get("at"))
    if attempts and started_at is None:
        started_at = _written(paths.claim(max(attempts)))
    host = claim.get("host")
    phases = _payload(paths.phases) if paths.phases.name in names else {}
    phase, since = phases.get("phase"), _time(phases.get("at"))
    if phase not in _PHASES or (since and started_at and since < started_at):  # an earlier attempt's
        phase, since = ("startup", started_at) if attempts else (None, None)
    return Progress(
        phase=phase,
        since=since,
        started_at=started_at,
        host=host if isinstance(host, str) else None,
        result=_result(paths.result) if paths.result.name in names else None,
    )


class Watch:
    """Looks at trials in turn, one every `pace_s` seconds, and never again at a finished one."""

    def __init__(self, layout: RunLayout, pace_s: float = 0.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._layout, self._pace_s, self._monotonic = layout, pace_s, monotonic
        self._looked_at = float("-inf")
        self._seen: dict[str, tuple[float, Progress]] = {}

    def __call__(self, trial: Trial) -> Progress:
        """The trial's progress when it was last looked at, which may be now."""
        if trial.result:
            self._seen.pop(trial.id, None)
            return Progress(result=trial.result)
        now = self._monotonic()
        at, progress = self._seen.setdefault(trial.id, (float("-inf"), Progress()))
        others_turns_s = self._pace_s * (len(self._seen) - 1)
        if progress.result is None and now - self._looked_at >= self._pace_s and now - at > others_turns_s:
            progress = trial_progress(self._layout.trial(trial.id))
            self._seen[trial.id], self._looked_at = (now, progress), now
        return progress


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A candidate as people see it: a word, how long it has been in it or took, and its value."""

    # proposed, committed, waiting, submitting, queued, starting, compiling, training, evaluating, cancelled, retrying,
    # or a Status
    word: str
    elapsed_s: float | None = None  # of a running trial since its worker began; of a finished one in total
    running: bool = False
    value: float | None = None  # the mean over the good trials so far, as in `Entry.value`


def state_of(
    entry: Entry, look: Callable[[Trial], Progress], states: Mapping[str, str], now: datetime | None = None
) -> State:
    """The state of a candidate: of the first of its trials that is running, else of the newest that is not over.

    Once all are over it is OK if one of them is. `states` are the cluster's words by trial id, where it was asked.
    """
    now = now or datetime.now(UTC)
    trials = [(trial, look(trial)) for trial in entry.trials if trial.dropped is None]
    if not trials:
        return State(word="retrying" if entry.trials else "committed" if entry.candidate else "proposed")
    results = [progress.result for _, progress in trials if progress.result]
    values = [v for result in alike(results, entry.deciding_tier) if (v := result.metric.value) is not None]
    value = mean(values) if values else None
    unfinished = [(trial, progress) for trial, progress in trials if not progress.result]
    for trial, progress in unfinished:
        if progress.phase and not trial.cancelled:
            elapsed_s = _seconds(progress.started_at, now)
            return State(word=_PHASES[progress.phase], elapsed_s=elapsed_s, running=True, value=value)
    if unfinished:
        return _waiting(unfinished[-1][0], states, now, value)
    shown = next((result for result in reversed(results) if result.metric.value is not None), results[-1])
    return State(word=str(shown.status), elapsed_s=shown.phases.total_s, value=value)


def _waiting(trial: Trial, states: Mapping[str, str], now: datetime, value: float | None) -> State:
    """Of a trial that no worker has begun."""
    if trial.cancelled:
        return State(word="cancelled", value=value)
    if trial.job is None:
        return State(word="submitting" if trial.job_name else "waiting", value=value)
    word = "starting" if states.get(trial.id, "").startswith("RUNNING") else "queued"
    return State(word=word, elapsed_s=_seconds(_time(trial.submitted_at), now), value=value)


def _seconds(since: datetime | None, now: datetime) -> float | None:
    return max(0.0, (now - since).total_seconds()) if since else None  # the node's clock may be ahead of ours


def _payload(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _result(path: Path) -> TrialResult | None:
    try:
        return from_json(TrialResult, read_json(path))
    except (OSError, ValueError):
        return None


def _time(text: object) -> datetime | None:
    try:
        parsed = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _written(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None
