"""The trials of open rounds: submitted together, watched together, found again after a crash.

A trial whose outcome says nothing of its candidate is dropped, and another trial follows.
"""

import logging
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime

from autoresearch_hpc import collect
from autoresearch_hpc.budget import Budget
from autoresearch_hpc.cluster import Cluster, JobState, Wait
from autoresearch_hpc.config import Config
from autoresearch_hpc.errors import ClusterError
from autoresearch_hpc.files import read_json
from autoresearch_hpc.history import Round, Trial
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.live import View
from autoresearch_hpc.records import Status, TrialResult, TrialSpec, from_json, to_json
from autoresearch_hpc.stopping import StopRequest
from autoresearch_hpc.submit import Submitter, age_s

_log = logging.getLogger(__name__)

_CANCEL_WAIT_S = 5.0
_LOCAL_POLL_S = 0.2
_LEAST_PAUSE_S = 0.02
_OVERDUE_S = 600.0  # beyond a job's own limit: it cannot be running any more, whoever does not answer
_CHARGE_WAIT_S = 15.0
_UNHEARD = JobState("UNKNOWN", ended=True)


class Fanout:
    """Trains the candidates of one round, or of several at a time."""

    def __init__(
        self,
        config: Config,
        *,
        layout: RunLayout,
        ledger: Ledger,
        cluster: Cluster,
        submitter: Submitter,
        budget: Budget,
        view: View,
        stop: StopRequest,
    ) -> None:
        self._config, self._layout = config.cluster, layout
        self._record, self._history, self._verify = ledger.record, ledger.history, ledger.verify
        self._cluster, self._budget, self._view, self._stop = cluster, budget, view, stop
        self._submitter, self._pacing = submitter, submitter.pacing
        self._on_slurm = cluster.name == "slurm"
        self._inbox = collect.Inbox(layout.inbox, config.cluster.poll_s)
        outstanding = self._history.outstanding
        self._unread = {t.id for t in outstanding}  # an earlier controller may have taken the announcement
        self._missing_since: dict[str, float] = {}
        self._stuck_since: dict[str, float] = {}
        self._stuck_told: set[tuple[int, str]] = set()
        self._cancelling: set[str] = set()
        self._uncharged = {t.id: t.job for t in self._history.trials() if t.result and t.job and t.gpu_s is None}

    def take_over(self, *rounds: Round) -> None:
        """Finish what the last controller may have been killed in: results were taken in, void ones not dropped yet."""
        for round_ in rounds:
            for trial in [t for t in round_.trials if t.result and t.dropped is None and not round_.judged]:
                self._drop_if_void(trial)

    def train(self, *rounds: Round, until: Callable[[], bool]) -> None:
        """Submit and collect, oldest round first, until `until` says so.

        Raises ClusterError where the cluster refuses or does not answer for too long.
        """
        while not until():
            for round_ in rounds:
                self._submitter.resolve(round_)
                self._submitter.submit(round_)
            self._collect()
            self._charge()
            self._stop.check()
            if not until():
                self._pause()

    def _pause(self) -> None:
        if self._history.outstanding:
            time.sleep(max(_LEAST_PAUSE_S, self._inbox.due_in_s) if self._on_slurm else _LOCAL_POLL_S)
        elif not self._pacing.due:
            time.sleep(_LOCAL_POLL_S)

    # collecting

    def _collect(self) -> None:
        """Take in what has come; whatever happens to one trial, the others go on."""
        waiting = self._history.outstanding
        known = {t.id: t.job for t in waiting if t.job and t.id not in self._submitter.strangers}
        states = self._cluster.poll(known)
        read_now = self._unread | self._inbox.look({t.id for t in waiting})
        self._unread = set()
        for trial in waiting:
            state = states.get(trial.id) or self._overdue(trial)
            if trial.id in read_now or (state and state.ended):
                if result := self._result(trial, state):
                    self._accept(trial, result)
                    continue
            if state and not state.ended:  # an announced result may be none yet: its job was requeued, and may wait
                self._watch(trial, state)
        words = {id_: f"{s.word} ({s.reason})" if s.wait is not Wait.turn else s.word for id_, s in states.items()}
        self._view.update(self._history, words)

    def _result(self, trial: Trial, state: JobState | None) -> TrialResult | None:
        """The trial's result if it is final: its own, or one made up once its job has ended without."""
        paths = self._layout.trial(trial.id)
        result = collect.read_result(paths, self._history.tag, trial.id)
        if result and collect.is_final(result, trial, state):
            return result
        if state is None or not state.ended:
            return None
        since = self._missing_since.setdefault(trial.id, time.monotonic())
        if time.monotonic() - since < self._grace_s(state):
            return None
        holder = collect.claimant(paths)
        if holder and holder != trial.job and self._cluster.durable:  # an sbatch given up for lost came first after all
            self._record("submit.done", round=trial.round, job_name=trial.job_name, jobs={trial.id: holder})
            self._missing_since.pop(trial.id)
            return None
        spec = from_json(TrialSpec, read_json(paths.spec))
        job_log = self._layout.array(trial.round, trial.job_name or "").log(trial.job or "")
        return collect.missing_result(spec, trial, state, paths, job_log)

    def _grace_s(self, state: JobState) -> float:
        """A job that ended well has written a result, though another node's client may not see it yet."""
        if not self._on_slurm:
            return _LOCAL_POLL_S
        return self._config.late_result_s if state.word == "COMPLETED" else self._config.result_grace_s

    def _overdue(self, trial: Trial) -> JobState | None:
        """The end of a job that nobody tells of, once even its time limit is long over."""
        limit_s = self._budget.job_limit_s + _OVERDUE_S
        if age_s(trial) < limit_s:
            return None
        begun = collect.started_at(self._layout.trial(trial.id))
        return _UNHEARD if begun and (datetime.now(UTC) - begun).total_seconds() > limit_s else None

    def _watch(self, trial: Trial, state: JobState) -> None:
        """Say what a trial waits for if that may never come, and give it up in the end."""
        if state.wait is Wait.turn:
            self._stuck_since.pop(trial.id, None)
            return
        limit_s = 0.0 if state.wait is Wait.failed else 60 * self._config.stuck_limit_min
        if (trial.round, state.reason) not in self._stuck_told:
            self._stuck_told.add((trial.round, state.reason))
            _log.warning(
                "round=%d trial=%s waits: %s; given up after %.0f s", trial.round, trial.id, state.reason, limit_s
            )
        since = self._stuck_since.setdefault(trial.id, time.monotonic())
        if trial.given_up is None and time.monotonic() - since >= limit_s:
            failed = state.wait is Wait.failed
            self._record("trial.given_up", trial=trial.id, reason=f"never began: {state.reason}", launch_failed=failed)
        if trial.given_up is not None and trial.id not in self._cancelling:
            try:
                self._cluster.cancel({trial.id: trial.job or ""})
                self._cancelling.add(trial.id)
            except ClusterError as error:
                _log.warning("%s", error)

    def _accept(self, trial: Trial, result: TrialResult) -> None:
        self._record("trial.done", trial=trial.id, result=to_json(result))
        self._inbox.clear(trial.id)
        self._pacing.one_ended()
        if trial.job and self._cluster.durable:
            self._uncharged[trial.id] = trial.job
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
        """Drop a trial whose outcome says nothing of its candidate, so that another follows, if one fits the budget."""
        result, round_ = trial.result, self._history.rounds[trial.round]
        assert result
        if result.status not in (Status.CANCELLED, Status.LOST):
            return
        lost = [t for t in round_.trials if t.want == trial.want and t.dropped is not None]
        tried = sum(not t.cancelled for t in lost)
        if trial.cancelled and result.status in (Status.CANCELLED, Status.LOST):
            self._record("trial.dropped", trial=trial.id, reason="cancelled when the controller was interrupted")
        elif collect.is_infrastructure(result) and tried < self._config.max_retries * round_.needed[trial.want]:
            if self._budget.room(self._history).fits(1):
                self._record("trial.dropped", trial=trial.id, reason=result.error.message if result.error else "lost")

    def require_one(self, round_: Round) -> None:
        """Raise ClusterError where every trial was lost: there is nothing to judge. Who resumes trains them again."""
        results = [trial.result for trial in round_.trials if trial.result and trial.dropped is None]
        if round_.judged or not results or any(result.status is not Status.LOST for result in results):
            return
        for result in results:
            self._record("trial.dropped", trial=result.trial, reason="the whole round was lost")
        cause = results[-1].error.message if results[-1].error else "no reason given"
        log = self._layout.trial(results[-1].trial).log
        raise ClusterError(
            f"round {round_.index}: every trial was lost, the last one because {cause}",
            f"see {log}; the same command with tag={self._history.tag} goes on",
        )

    # accounting

    def _charge(self) -> None:
        """Note what the cluster's accounting has told of trials that have ended."""
        if self._uncharged and self._cluster.accounts and (told := self._cluster.charges(self._uncharged)):
            self._record("trial.charged", gpu_s=dict(told))
            for id_ in told:
                del self._uncharged[id_]

    def settle(self) -> None:
        """Give the accounting a little time to tell of the last trials."""
        deadline = time.monotonic() + _CHARGE_WAIT_S
        while self._uncharged and self._cluster.accounts and time.monotonic() < deadline:
            self._charge()
            self._stop.check()
            time.sleep(_LOCAL_POLL_S)

    # stopping

    def interrupt(self) -> list[str]:
        """Ctrl-C cancels what is in flight; other signals leave it running for the controller that resumes.

        Returns the trials that were cancelled.
        """
        if self._stop.signal != signal.SIGINT:
            return []
        trials = self._history.outstanding
        jobs = {t.id: t.job for t in trials if t.job}
        unknown: dict[str, list[Trial]] = {}
        for trial in trials:
            if trial.job_name and (not trial.job or trial.id in self._submitter.strangers):
                unknown.setdefault(trial.job_name, []).append(trial)
        try:
            for name, mine in unknown.items():
                round_ = self._history.rounds[mine[0].round]
                submission = self._submitter.submission(round_, name, [t.id for t in mine], mine[0].tier)
                jobs |= self._cluster.adopt(submission) or {}
            self._verify()
            self._view.note(f"asking the cluster to cancel {len(jobs)} trials")
            self._cluster.cancel(jobs)
        except ClusterError as error:
            _log.warning("%s", error)
        deadline = time.monotonic() + _CANCEL_WAIT_S
        while time.monotonic() < deadline and not all(s.ended for s in self._cluster.poll(jobs).values()):
            time.sleep(_LOCAL_POLL_S)
        return [t.id for t in trials]
