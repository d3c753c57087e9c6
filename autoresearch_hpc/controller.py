"""The loop: ask for K proposals, commit them, train them at once, keep the winner, roll the rest back, ask again.

Every step is journaled so that it can be taken up again: intent before effect, and effects that do no harm when they
are repeated. The controller that starts a run and the one that resumes it are the same code.
"""

import logging
import signal
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from autoresearch_hpc import budget, collect, decide, report
from autoresearch_hpc.agents import Agent
from autoresearch_hpc.candidates import CandidateMaker
from autoresearch_hpc.cluster import Cluster, JobState, Submission
from autoresearch_hpc.config import Baseline, Config
from autoresearch_hpc.errors import AutoresearchError, ClusterError, ConfigError, InterruptedRun
from autoresearch_hpc.files import read_json
from autoresearch_hpc.history import Entry, History, Incumbent, Round, Trial
from autoresearch_hpc.journal import Journal
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.live import View
from autoresearch_hpc.records import (
    Candidate,
    Knobs,
    Proposal,
    SearchState,
    Status,
    TrialResult,
    TrialSpec,
    candidate_id,
    from_json,
    knob_value,
    to_json,
    trial_id,
)
from autoresearch_hpc.repo import Repo
from autoresearch_hpc.specs import SpecWriter

_log = logging.getLogger(__name__)

_IN_FLIGHT_S = 5.0  # how long an sbatch that outlived its controller may still take to reach the queue
_CANCEL_WAIT_S = 5.0


class Controller:
    """Runs one search to its end. `journal` is open, `history` its replay."""

    def __init__(
        self,
        config: Config,
        *,
        layout: RunLayout,
        journal: Journal,
        history: History,
        repo: Repo,
        agent: Agent,
        cluster: Cluster,
        maker: CandidateMaker,
        specs: SpecWriter,
        view: View,
    ) -> None:
        self._config, self._layout, self._journal, self.history = config, layout, journal, history
        self._repo, self._agent, self._cluster = repo, agent, cluster
        self._maker, self._specs, self._view = maker, specs, view
        self._signal: int | None = None
        self._agent.tell(history.outcomes())

    def run(self) -> str:
        """Go on to the end and return why it ended. Raises InterruptedRun when a signal asked to stop."""
        try:
            with _Signals(self):
                self._recover()
                while (reason := self._reason_to_stop()) is None:
                    round_ = self._open_round()
                    if round_ is None:
                        reason = "the agent has nothing more to propose"
                        break
                    self._commit(round_)
                    self._train(round_)
                    self._judge(round_)
                    self._close(round_)
                self._record("run.stopped", reason=reason)
                return reason
        except InterruptedRun:
            self._interrupt()
            raise
        finally:
            self._view.close()

    # proposing

    def _reason_to_stop(self) -> str | None:
        rounds = self.history.rounds
        if rounds and rounds[-1].closed_at is None:
            return None
        index = len(rounds)
        if index > self._config.plan.num_rounds:
            return "the plan is complete"
        return budget.exhausted(
            self._config.budget,
            self.history,
            self._size(index),
            self._wall_limit_s,
            self._config.cluster.price_per_gpu_hour,
        )

    def _size(self, index: int) -> int:
        """How many candidates a round has, or may have."""
        plan = self._config.plan
        planned = plan.num_candidates(index) if index >= plan.first_round else 0
        return planned + (1 if index == 0 else 0)

    def _open_round(self) -> Round | None:
        """The round that is under way, or a new one; None when the agent proposes nothing."""
        rounds = self.history.rounds
        if rounds and rounds[-1].closed_at is None:
            return rounds[-1]
        index = len(rounds)
        proposals = self._propose(index)
        if not proposals:
            return None
        ids = [candidate_id(index, i) for i in range(len(proposals))]
        self._record(
            "round.proposed",
            round=index,
            base=self._base,
            proposals={id_: to_json(p) for id_, p in zip(ids, proposals, strict=True)},
        )
        return rounds[-1]

    def _propose(self, index: int) -> list[Proposal]:
        plan = self._config.plan
        proposals: list[Proposal] = []
        if index == 0:
            base = {name: knob_value(value) for name, value in plan.base.items()}
            proposals.append(Proposal(title="baseline", knobs=base, origin="plan"))
            if plan.baseline is Baseline.alone:
                return proposals
        return proposals + list(self._agent.ask(self._state(index), plan.num_candidates(index)))

    def _state(self, index: int) -> SearchState:
        history = self.history
        incumbent = history.incumbent
        commit = incumbent.commit if incumbent else history.start_commit
        knobs: Knobs = self._maker.script_knobs(commit)
        if incumbent:
            candidate = history.entry(incumbent.candidate).candidate
            knobs = candidate.knobs if candidate else knobs
        else:
            knobs = {**knobs, **{name: knob_value(value) for name, value in self._config.plan.base.items()}}
        return SearchState(
            index=index,
            direction=history.direction,
            metric=history.metric,
            incumbent=incumbent.candidate if incumbent else None,
            incumbent_value=incumbent.value if incumbent else None,
            incumbent_knobs=knobs,
            source={path: self._repo.read(commit, path) for path in self._config.task.editable},
            outcomes=history.outcomes(),
        )

    @property
    def _base(self) -> str:
        return self.history.incumbent.commit if self.history.incumbent else self.history.start_commit

    # committing

    def _commit(self, round_: Round) -> None:
        """Make every proposal a commit on the candidate that it builds on."""
        if round_.committed:
            return
        made: dict[str, Candidate] = {}
        for entry in round_.entries.values():
            parent = self._parent(entry, round_, made)
            commit, knobs = (parent.commit, parent.knobs) if parent else (round_.base, {})
            made[entry.id] = self._maker.make(entry.id, round_.index, entry.proposal, commit, knobs)
        self._record("round.committed", round=round_.index, candidates=[to_json(c) for c in made.values()])
        for entry in round_.entries.values():
            _log.info(
                "round=%d candidate=%s commit=%s %s",
                round_.index,
                entry.id,
                made[entry.id].commit[:7],
                entry.proposal.title,
            )

    def _parent(self, entry: Entry, round_: Round, made: Mapping[str, Candidate]) -> Candidate | None:
        """The candidate to build on; None for the baseline, which builds on the user's commit."""
        baseline = candidate_id(0, 0)
        if entry.id == baseline:
            return None
        name = entry.proposal.on or (self.history.incumbent.candidate if self.history.incumbent else baseline)
        found = self.history.find(name)
        candidate = made.get(found.id) or found.candidate if found else None
        if candidate is None:
            raise ConfigError(f"{entry.id} builds on {name!r}, which is no earlier candidate", "correct the plan")
        return candidate

    # training

    def _train(self, round_: Round) -> None:
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
            job_name = f"{self.history.tag}-{self.history.uid}-r{round_.index:02d}-a{round_.num_arrays}"
            self._check_signals()
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
            self._view.update(self.history, {id_: state.word for id_, state in states.items()})
            self._check_signals()
            if _outstanding(round_):
                time.sleep(self._config.cluster.poll_s if self._cluster.name == "slurm" else _LOCAL_POLL_S)

    def _result(self, trial: Trial, state: JobState | None, missing_since: dict[str, float]) -> TrialResult | None:
        """The trial's result if it is final: its own, or one made up once its job has ended without."""
        paths = self._layout.trial(trial.id)
        result = collect.read_result(paths, self.history.tag, trial.id)
        ended = state is not None and state.ended
        if result and (ended or result.status is not Status.CANCELLED):  # a cancelled job may yet be requeued
            return result
        if state is None or not state.ended:
            missing_since.pop(trial.id, None)
            return None
        since = missing_since.setdefault(trial.id, time.monotonic())
        if time.monotonic() - since < self._grace_s:
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
        dropped = sum(t.dropped is not None and not t.cancelled for t in self.history.entry(trial.candidate).trials)
        if trial.cancelled and result.status in (Status.CANCELLED, Status.LOST):
            self._record("trial.dropped", trial=trial.id, reason="cancelled when the controller was interrupted")
        elif collect.is_infrastructure(result) and dropped < self._config.cluster.max_retries:
            self._record("trial.dropped", trial=trial.id, reason=result.error.message if result.error else "lost")

    # judging

    def _judge(self, round_: Round) -> None:
        """Decide what is kept; the agent hears of it."""
        if round_.judged:
            return
        incumbent = self.history.incumbent
        standing = decide.Standing(candidate=incumbent.candidate, value=incumbent.value) if incumbent else None
        judgement = decide.judge(self.history.direction, standing, _judged(round_), self._config.decide)
        stands = judgement.standing
        new = self._incumbent(stands.candidate, stands.value) if stands else None
        self._record(
            "round.judged",
            round=round_.index,
            verdicts={id_: verdict.value for id_, verdict in judgement.verdicts.items()},
            incumbent=None if new is None else {"candidate": new.candidate, "commit": new.commit, "value": new.value},
        )
        self._agent.tell([o for o in self.history.outcomes() if o.round == round_.index])

    def _incumbent(self, id_: str, value: float) -> Incumbent:
        candidate = self.history.entry(id_).candidate
        assert candidate
        return Incumbent(candidate=id_, commit=candidate.commit, value=value)

    def _close(self, round_: Round) -> None:
        """Move the branch to the incumbent and bring the tables up to date."""
        incumbent = self.history.incumbent
        if incumbent is None:
            report.write_tables(self.history, self._layout)
            self._record("run.stopped", reason="the baseline failed")
            raise _baseline_failed(next(iter(round_.entries.values())), self._layout)
        self._repo.advance(self.history.tag, incumbent.commit)
        report.write_tables(self.history, self._layout)
        self._record("round.closed", round=round_.index)
        _log.info(
            "round=%d incumbent=%s %s=%.6f", round_.index, incumbent.candidate, self.history.metric, incumbent.value
        )

    # crashes, signals

    def _recover(self) -> None:
        """After a crash: find what the last controller had submitted, and submit again what never arrived."""
        if not self.history.rounds:
            return
        round_ = self.history.rounds[-1]
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
            lost |= {t.id: self.history.entry(t.candidate) for t in trials if t.id not in jobs}
        self._launch(round_, lost)

    def _submissions(self, round_: Round) -> dict[str, list[Trial]]:
        """The round's trials that have to be found again, by the name that they were submitted under."""
        found: dict[str, list[Trial]] = {}
        for trial in _outstanding(round_):
            result = collect.read_result(self._layout.trial(trial.id), self.history.tag, trial.id)
            final = result is not None and result.status is not Status.CANCELLED
            if not final and not (trial.job and self._cluster.durable):
                found.setdefault(trial.job_name, []).append(trial)
        return found

    def _adopt(self, submission: Submission, trials: Sequence[Trial]) -> Mapping[str, str]:
        """Look for the submission until it could not be on its way any more."""
        deadline = datetime.fromisoformat(trials[0].submitted_at).timestamp() + _IN_FLIGHT_S
        while not (jobs := self._cluster.adopt(submission)) and datetime.now(UTC).timestamp() < deadline:
            self._check_signals()
            time.sleep(0.5)
        return jobs

    def _interrupt(self) -> None:
        """Ctrl-C cancels what is in flight; other signals leave it running for the controller that resumes."""
        cancelled = []
        if self._signal == signal.SIGINT and self.history.rounds:
            round_ = self.history.rounds[-1]
            trials = _outstanding(round_)
            jobs = {t.id: t.job for t in trials if t.job}
            for job_name, unknown in self._submissions(round_).items():
                if not all(t.job for t in unknown):
                    jobs |= self._cluster.adopt(self._submission(round_, job_name, [t.id for t in unknown]))
            self._view.note(f"asking the cluster to cancel {len(jobs)} trials")
            try:
                self._cluster.cancel(jobs)
            except ClusterError as error:
                _log.warning("%s", error)
            deadline = time.monotonic() + _CANCEL_WAIT_S
            while time.monotonic() < deadline and not all(s.ended for s in self._cluster.poll(jobs).values()):
                time.sleep(_LOCAL_POLL_S)
            cancelled = [t.id for t in trials]
        self._record("run.interrupted", reason=signal.Signals(self._signal or signal.SIGTERM).name, cancelled=cancelled)

    def note_signal(self, number: int) -> None:
        """Remember that a signal asks to stop."""
        self._signal = number

    def _check_signals(self) -> None:
        if self._signal is not None:
            raise InterruptedRun(
                f"stopped by {signal.Signals(self._signal).name}",
                f"resume with tag={self.history.tag} and the same plan",
            )

    def _record(self, event: str, **data: object) -> None:
        self.history.apply(self._journal.append(event, **data))


_LOCAL_POLL_S = 0.2


class _Signals:
    """While a controller runs, the first signal is noted and a second one of the same kind acts as it always did."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._previous: dict[int, object] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        self._controller.note_signal(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _outstanding(round_: Round) -> list[Trial]:
    trials = [entry.trial for entry in round_.entries.values()]
    return [trial for trial in trials if trial and trial.result is None]


def _judged(round_: Round) -> list[decide.Entry]:
    entries = []
    for entry in round_.entries.values():
        assert entry.result
        assert entry.candidate
        entries.append(
            decide.Entry(
                candidate=entry.id,
                status=entry.result.status,
                value=entry.value,
                diff_lines=entry.candidate.diff_lines,
                baseline=entry.id == candidate_id(0, 0),
            )
        )
    return entries


def _baseline_failed(baseline: Entry, layout: RunLayout) -> AutoresearchError:
    result = baseline.result
    assert result
    cause = f"{result.status}: {result.error.message}" if result.error else str(result.status)
    return AutoresearchError(f"the baseline failed ({cause})", f"see {layout.trial(result.trial).log}")
