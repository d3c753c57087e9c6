"""A round's trials: submitted together, watched together, found again after a crash.

Intent is journaled before an array is submitted and its job id after, so that no array is submitted twice and none is
lost. A trial whose outcome says nothing of its candidate is dropped, and another trial follows.
"""

import logging
import signal
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from autoresearch_hpc import collect
from autoresearch_hpc.cluster import Cluster, JobState, Submission
from autoresearch_hpc.config import Config
from autoresearch_hpc.errors import ClusterError
from autoresearch_hpc.files import read_json
from autoresearch_hpc.history import Entry, Round, Trial
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.live import View
from autoresearch_hpc.records import Status, TrialResult, TrialSpec, from_json, to_json, trial_id
from autoresearch_hpc.specs import SpecWriter
from autoresearch_hpc.stopping import StopRequest

_log = logging.getLogger(__name__)

_IN_FLIGHT_S = 5.0  # how long an sbatch that outlived its controller may still take to reach the queue
_CANCEL_WAIT_S = 5.0
_LOCAL_POLL_S = 0.2


class Fanout:
    """Trains the candidates of one round at a time."""

    def __init__(
        self,
        config: Config,
        *,
        layout: RunLayout,
        ledger: Ledger,
        cluster: Cluster,
        specs: SpecWriter,
        view: View,
        stop: StopRequest,
    ) -> None:
        self._config, self._layout = config, layout
        self._record, self._history = ledger.record, ledger.history
        self._cluster, self._specs, self._view, self._stop = cluster, specs, view, stop

    def train(self, round_: Round) -> None:
        """Submit and collect until every candidate has a result."""
        while any(entry.result is None for entry in round_.entries.values()):
            self._submit(round_, [entry for entry in round_.entries.values() if entry.trial is None])
            self._collect(round_)

    def _submit(self, round_: Round, entries: Sequence[Entry]) -> None:
        """A new trial of each of these candidates, in one array or as few as the cluster's limits allow."""
        self._launch(round_, {trial_id(e.id, len(e.trials)): e for e in entries})

    def _launch(self, round_: Round, trials: Mapping[str, Entry]) -> None:
        ids = list(trials)
        for first in range(0, len(ids), self._cluster.max_array):
            part = ids[first : first + self._cluster.max_array]
            for id_ in part:
                candidate = trials[id_].candidate
                assert candidate
                self._specs.write(candidate, id_)
            job_name = f"{self._history.tag}-{self._history.uid}-r{round_.index:02d}-a{round_.num_arrays}"
            self._stop.check()
            self._record("submit.intent", round=round_.index, job_name=job_name, trials=part)
            jobs = self._cluster.launch(self._submission(round_, job_name, part))
            self._record("submit.done", round=round_.index, job_name=job_name, jobs=dict(jobs))
            _log.info("round=%d array=%s trials=%d submitted", round_.index, job_name, len(part))

    def _submission(self, round_: Round, job_name: str, trials: Sequence[str]) -> Submission:
        array = self._layout.array(round_.index, job_name)
        array.root.mkdir(parents=True, exist_ok=True)
        specs = {id_: self._layout.trial(id_).spec for id_ in trials}
        return Submission(job_name=job_name, trials=specs, array=array, wall_limit_s=self._wall_limit_s)

    @property
    def _wall_limit_s(self) -> float:
        return self._config.task.wall_limit_s

    def _collect(self, round_: Round) -> None:
        """Wait for the round's trials; whatever happens to one, the others go on."""
        missing_since: dict[str, float] = {}
        while waiting := _outstanding(round_):
            states = self._cluster.poll({t.id: t.job for t in waiting if t.job})
            for trial in waiting:
                if result := self._result(trial, states.get(trial.id), missing_since):
                    self._accept(trial, result)
            self._view.update(self._history, {id_: state.word for id_, state in states.items()})
            self._stop.check()
            if _outstanding(round_):
                time.sleep(self._config.cluster.poll_s if self._cluster.name == "slurm" else _LOCAL_POLL_S)

    def _result(self, trial: Trial, state: JobState | None, missing_since: dict[str, float]) -> TrialResult | None:
        """The trial's result if it is final: its own, or one made up once its job has ended without."""
        paths = self._layout.trial(trial.id)
        result = collect.read_result(paths, self._history.tag, trial.id)
        ended = state is not None and state.ended
        if result and (ended or result.status is not Status.CANCELLED):  # a cancelled job may yet be requeued
            return result
        if state is None or not state.ended:
            missing_since.pop(trial.id, None)
            return None
        since = missing_since.setdefault(trial.id, time.monotonic())
        if time.monotonic() - since < self._grace_s:
            return None
        holder = collect.claimant(paths)
        if holder and holder != trial.job:  # an sbatch given up for lost went through after all, and came first
            self._record(
                "submit.done", round=self._history.rounds[-1].index, job_name=trial.job_name, jobs={trial.id: holder}
            )
            missing_since.pop(trial.id)
            return None
        spec = from_json(TrialSpec, read_json(paths.spec))
        return collect.missing_result(spec, state, collect.log_tail(paths))

    @property
    def _grace_s(self) -> float:
        return self._config.cluster.result_grace_s if self._cluster.name == "slurm" else _LOCAL_POLL_S

    def _accept(self, trial: Trial, result: TrialResult) -> None:
        self._record("trial.done", trial=trial.id, result=to_json(result))
        value = "none" if result.metric.value is None else f"{result.metric.value:.6f}"
        cause = f" error={result.error.type}: {result.error.message}" if result.error else ""
        _log.info(
            "round=%d candidate=%s trial=%s job=%s status=%s %s=%s%s",
            result.round,
            result.candidate,
            result.trial,
            trial.job,
            result.status,
            result.metric.name,
            value,
            cause,
        )
        self._drop_if_void(trial)

    def _drop_if_void(self, trial: Trial) -> None:
        """Drop a trial whose outcome says nothing of its candidate, so that another follows."""
        result = trial.result
        assert result
        dropped = sum(t.dropped is not None and not t.cancelled for t in self._history.entry(trial.candidate).trials)
        if trial.cancelled and result.status in (Status.CANCELLED, Status.LOST):
            self._record("trial.dropped", trial=trial.id, reason="cancelled when the controller was interrupted")
        elif collect.is_infrastructure(result) and dropped < self._config.cluster.max_retries:
            self._record("trial.dropped", trial=trial.id, reason=result.error.message if result.error else "lost")

    def recover(self) -> None:
        """After a crash: find what the last controller had submitted, and submit again what never arrived."""
        if not self._history.rounds:
            return
        round_ = self._history.rounds[-1]
        if not round_.judged:
            for trial in [t for entry in round_.entries.values() if (t := entry.trial) and t.result]:
                self._drop_if_void(trial)
        lost: dict[str, Entry] = {}
        for job_name, trials in self._submissions(round_).items():
            submission = self._submission(round_, job_name, [t.id for t in trials])
            jobs = self._adopt(submission, trials)
            if jobs:
                self._record("submit.done", round=round_.index, job_name=job_name, jobs=dict(jobs))
                _log.info("round=%d array=%s trials=%d adopted", round_.index, job_name, len(jobs))
            lost |= {t.id: self._history.entry(t.candidate) for t in trials if t.id not in jobs}
        self._launch(round_, lost)

    def _submissions(self, round_: Round) -> dict[str, list[Trial]]:
        """The round's trials that have to be found again, by the name that they were submitted under."""
        found: dict[str, list[Trial]] = {}
        for trial in _outstanding(round_):
            result = collect.read_result(self._layout.trial(trial.id), self._history.tag, trial.id)
            final = result is not None and result.status is not Status.CANCELLED
            if not final and not (trial.job and self._cluster.durable):
                found.setdefault(trial.job_name, []).append(trial)
        return found

    def _adopt(self, submission: Submission, trials: Sequence[Trial]) -> Mapping[str, str]:
        """Look for the submission until it could not be on its way any more."""
        deadline = datetime.fromisoformat(trials[0].submitted_at).timestamp() + _IN_FLIGHT_S
        while not (jobs := self._cluster.adopt(submission)) and datetime.now(UTC).timestamp() < deadline:
            self._stop.check()
            time.sleep(0.5)
        return jobs

    def interrupt(self) -> list[str]:
        """Ctrl-C cancels what is in flight; other signals leave it running for the controller that resumes.

        Returns the trials that were cancelled.
        """
        if self._stop.signal != signal.SIGINT or not self._history.rounds:
            return []
        round_ = self._history.rounds[-1]
        trials = _outstanding(round_)
        jobs = {t.id: t.job for t in trials if t.job}
        try:
            for job_name, unknown in self._submissions(round_).items():
                if not all(t.job for t in unknown):
                    jobs |= self._cluster.adopt(self._submission(round_, job_name, [t.id for t in unknown]))
            self._view.note(f"asking the cluster to cancel {len(jobs)} trials")
            self._cluster.cancel(jobs)
        except ClusterError as error:
            _log.warning("%s", error)
        deadline = time.monotonic() + _CANCEL_WAIT_S
        while time.monotonic() < deadline and not all(s.ended for s in self._cluster.poll(jobs).values()):
            time.sleep(_LOCAL_POLL_S)
        return [t.id for t in trials]


def _outstanding(round_: Round) -> list[Trial]:
    trials = [entry.trial for entry in round_.entries.values()]
    return [trial for trial in trials if trial and trial.result is None]
