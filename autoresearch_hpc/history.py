"""What a run has done so far: the journal, replayed.

`History.apply` is the one place that knows what each event means; the controller applies every event that it
appends, so that a resumed run and one that never stopped are in the same state.

    run.started     tag, uid, version, config_sha256, repo, start_commit, metric, direction
    run.resumed     pid, host
    agent.calling   call, at_most_usd: an agent asks an endpoint or runs a program, or does so again; what it may cost
    agent.called    call, usd, prompt_tokens, answer_tokens: what it has cost; its answer is in the run's directory
    round.proposed  round, base, proposals {candidate id: proposal}; again for more of the same round (schedule=async)
    round.committed round, candidates [candidate], tiers {candidate id: tier}: one trial of each is wanted there
    trials.wanted   round, stage (array | remeasurement | validation | look N), tier, trials {candidate id: further
                    trials}
    submit.intent   round, job_name, tier, trials [trial id]
    submit.done     round, job_name, jobs {trial id: job id}
    submit.refused  round, job_name, trials [trial id], reason: they are not in the queue, and may be submitted again
    trial.given_up  trial, reason, launch_failed: it would never begin; its job is about to be cancelled
    trial.done      trial, result (result.json's content)
    trial.dropped   trial, reason: its outcome says nothing of the candidate; a further trial replaces it
    trial.charged   gpu_s {trial id: GPU-seconds, by the cluster's accounting}
    round.shrunk    round, tier, candidates [candidate id], reason: the budget has no room for them
    round.judged    round, verdicts {candidate id: verdict}, findings {candidate id: comparison}, noise (or null),
                    pool [candidate id]: the near misses, best first, incumbent {candidate, commit, value} (or null),
                    over_baseline: the incumbent's gain (or null: it is the baseline, or cannot be compared now),
    round.analysed  round, effects: what all results so far tell of the space's knobs
    round.closed    round: the branch and the tables are up to date
    run.interrupted reason, cancelled [trial id]
    run.stopped     reason
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, NamedTuple

from autoresearch_hpc.errors import JournalError
from autoresearch_hpc.estimates import Effects
from autoresearch_hpc.gains import Comparison, Gain, Noise
from autoresearch_hpc.journal import REMEDY, Event
from autoresearch_hpc.records import (
    Candidate,
    Direction,
    Outcome,
    Proposal,
    Status,
    TrialResult,
    Verdict,
    candidate_id,
    from_json,
)


class Want(NamedTuple):
    """Trials that a round needs: of whom, and on which kind of GPU."""

    candidate: str
    tier: str = ""


@dataclass(slots=True, kw_only=True)
class Trial:
    """One execution: submitted under `job_name`, known to the cluster as `job`.

    Without a job name it is in no queue. With one and without a job it is unknown whether it is.
    """

    id: str
    candidate: str
    round: int  # that asked for it: an incumbent is run again in later ones
    job_name: str | None
    submitted_at: str
    tier: str = ""
    job: str | None = None
    result: TrialResult | None = None
    dropped: str | None = None
    cancelled: bool = False  # by the controller, when it was interrupted
    done_at: str | None = None  # when its result was taken in
    given_up: str | None = None  # why its job was cancelled before it began
    launch_failed: bool = False  # of one given up: whether it was the node's fault
    gpu_s: float | None = None  # by the cluster's accounting

    @property
    def want(self) -> Want:
        return Want(self.candidate, self.tier)

    @property
    def held_s(self) -> float:
        """How long it held its GPU: by the cluster's accounting, else from its worker's start to its result."""
        if self.gpu_s is not None:
            return self.gpu_s
        return (self.result.phases.total_s or 0.0) if self.result else 0.0

    @property
    def node(self) -> str | None:
        """The cluster's name of the node that it ended on."""
        return self.result.slurm.nodelist if self.result and self.result.slurm else None


@dataclass(slots=True, kw_only=True)
class Call:
    """A call of an agent's endpoint or program, with all the tries that it took."""

    open_usd: float = 0.0  # the most that the try may cost which has no answer yet
    lost_usd: float = 0.0  # the same of tries that were given up, or whose controller was killed
    usd: float | None = None  # None until there is an answer
    prompt_tokens: int = 0
    answer_tokens: int = 0

    @property
    def cost_usd(self) -> float:
        return self.open_usd + self.lost_usd + (self.usd or 0.0)


@dataclass(slots=True, kw_only=True)
class Entry:
    """One candidate's way through its round."""

    id: str
    proposal: Proposal
    candidate: Candidate | None = None
    tier: str = ""  # where it is tried first
    trials: list[Trial] = field(default_factory=list)
    verdict: Verdict | None = None
    finding: Comparison | None = None  # against the incumbent, when its round was judged
    deciding_tier: str = ""  # whose values count before others; empty: the newest do

    @property
    def trial(self) -> Trial | None:
        """The trial that counts: the newest that was not dropped."""
        return next((t for t in reversed(self.trials) if t.dropped is None), None)

    @property
    def results(self) -> list[TrialResult]:
        """Of all the trials that count."""
        return [t.result for t in self.trials if t.result and t.dropped is None]

    @property
    def result(self) -> TrialResult | None:
        """The one to show: the first good one, else the newest."""
        results = self.results
        good = (result for result in results if result.status is Status.OK)
        return next(good, results[-1] if results else None)

    def good(self, tier: str = "") -> list[TrialResult]:
        """Its good results that compare with each other: of this tier, if there are any."""
        return alike(self.results, tier)

    @property
    def values(self) -> list[float]:
        """What the candidate is worth: on the tier that decides, where it has been run there."""
        return _values(self.good(self.deciding_tier))

    @property
    def one_kind(self) -> bool:
        """Whether all of its trials compare."""
        return len({result.kind for result in self.results}) < 2

    @property
    def decided(self) -> bool:
        """Whether its value comes from where it is decided what is kept."""
        return not self.deciding_tier or any(
            result.tier == self.deciding_tier for result in self.good(self.deciding_tier)
        )

    @property
    def screened(self) -> list[TrialResult]:
        """Its good results where it was tried first, which every candidate has: what a search can learn from."""
        return self.good(self.tier)

    @property
    def value(self) -> float | None:
        """The mean over all good trials, so that no lucky one stands for the candidate."""
        values = self.values
        return mean(values) if values else None


@dataclass(slots=True, kw_only=True)
class Round:
    """One fan-out."""

    index: int
    base: str  # the incumbent's commit when the round was proposed
    proposed_at: str
    entries: dict[str, Entry] = field(default_factory=dict)
    # results that the round shall bring, the incumbent's controls among them. Where the budget has not room for all,
    # the first ones run: of a look the best, beside an array the incumbent.
    needed: dict[Want, int] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)  # of its own candidates, and of the incumbent beside them
    judged: bool = False
    pool: list[str] = field(default_factory=list)  # its near misses, best first
    closed_at: str | None = None
    submitted_at: str | None = None  # its first array
    num_arrays: int = 0

    @property
    def committed(self) -> bool:
        return all(entry.candidate for entry in self.entries.values())

    @property
    def outstanding(self) -> list[Trial]:
        """Trials that were submitted, or may have been, and have no result yet."""
        return [trial for trial in self.trials if trial.job_name and trial.result is None]

    @property
    def missing(self) -> dict[Want, int]:
        """Trials that are still lacking: neither in a queue, nor in doubt, nor ended."""
        have = Counter(t.want for t in self.trials if t.dropped is None and (t.job_name or t.result))
        return {want: n for want, wanted in self.needed.items() if (n := wanted - have[want]) > 0}

    @property
    def complete(self) -> bool:
        """Whether every result that was wanted is there."""
        have = Counter(t.want for t in self.trials if t.dropped is None and t.result)
        return self.committed and all(have[want] >= wanted for want, wanted in self.needed.items())

    def num_needed(self, candidate: str) -> int:
        """Results of one candidate, on all tiers."""
        return sum(count for want, count in self.needed.items() if want.candidate == candidate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """The best accepted candidate so far."""

    candidate: str
    commit: str
    value: float


@dataclass(slots=True, kw_only=True)
class History:
    """The state of a run. Mutable, but only by `apply`."""

    tag: str = ""
    uid: str = ""  # distinguishes runs of the same tag in job names
    start_commit: str = ""
    config_sha256: str = ""
    deciding_tier: str = ""  # on which a candidate is kept, where that is not the one on which it is tried
    metric: str = "val_bpb"
    direction: Direction = Direction.min
    started_at: str | None = None
    last_at: str | None = None
    active: list[tuple[str, str]] = field(default_factory=list)  # spans of a controller's life: (from, last event)
    rounds: list[Round] = field(default_factory=list)
    incumbent: Incumbent | None = None
    over_baseline: Gain | None = None  # the incumbent's; None where it is the baseline, or they never ran alike
    noise: Noise | None = None  # how far replicates spread, as of the last judgement; None where nothing is known
    effects: Effects | None = None  # of the space's knobs, as of the last judgement
    calls: dict[str, Call] = field(default_factory=dict)  # of the agent
    interrupted: str | None = None  # why the controller stopped early; None while it goes on
    stopped: str | None = None  # why the run ended; None while it goes on

    @classmethod
    def replay(cls, events: list[Event]) -> "History":
        """The state after these events. Raises JournalError on one that it does not know or that makes no sense."""
        history = cls()
        for event in events:
            history.apply(event)
        return history

    def apply(self, event: Event) -> None:
        handler = _HANDLERS.get(event.event)
        if handler is None:
            raise JournalError(f"unknown event {event.event!r} in the journal", "it was written by a newer version")
        if event.event in ("run.started", "run.resumed"):
            self.active.append((event.at, event.at))
        elif self.active:
            self.active[-1] = (self.active[-1][0], event.at)
        self.last_at = event.at
        try:
            handler(self, event.at, event.data)
        except (LookupError, ValueError, TypeError, AttributeError, StopIteration) as error:
            what = f"{type(error).__name__}: {error}"
            raise JournalError(
                f"damaged journal: event {event.seq} ({event.event}) makes no sense: {what}", REMEDY
            ) from error

    @property
    def open_rounds(self) -> list[Round]:
        """Those that are not over, oldest first."""
        return [round_ for round_ in self.rounds if round_.closed_at is None]

    @property
    def outstanding(self) -> list[Trial]:
        """Trials of all open rounds that are in a queue, or may be, and have no result yet."""
        return [trial for round_ in self.open_rounds for trial in round_.outstanding]

    def entries(self) -> Iterator[Entry]:
        """All candidates, in order."""
        for round_ in self.rounds:
            yield from round_.entries.values()

    def entry(self, candidate: str) -> Entry:
        return self.rounds[_round_of(candidate)].entries[candidate]

    def trial(self, trial: str) -> Trial:
        entry = self.entry(trial.rpartition("-")[0])
        return next(t for t in entry.trials if t.id == trial)

    def find(self, name: str) -> Entry | None:
        """A candidate by its id, its name in the plan, or "baseline"."""
        wanted = candidate_id(0, 0) if name == "baseline" else name
        return next((e for e in self.entries() if wanted in (e.id, e.proposal.name)), None)

    @property
    def llm_usd(self) -> float:
        """What the agent's calls have cost; those without an answer count with the most that they may have."""
        return sum(call.cost_usd for call in self.calls.values())

    def calls_of(self, round_: int) -> list[Call]:
        """The agent's calls for a round."""
        return [call for id_, call in self.calls.items() if id_.startswith(f"r{round_:02d}/")]

    @property
    def pool(self) -> tuple[str, ...]:
        """Near misses of the round that brought the incumbent and of those since, best first.

        Those that lost against the incumbent in its own round count, since their edits are not in it; what earlier ones
        bring on it nobody knows. By expected gain, else the observed one, each against the incumbent of its time.
        """
        if self.incumbent is None:
            return ()
        since = self.rounds[_round_of(self.incumbent.candidate) :]
        near = [self.entry(id_) for round_ in since for id_ in round_.pool]
        return tuple(entry.id for entry in sorted(near, key=_worth, reverse=True))

    def standard_error(self, entry: Entry) -> float | None:
        """Of the candidate's value, by the run's noise; None where nothing is known of that, or there is no value."""
        return self.noise.standard_error(len(entry.values)) if self.noise else None

    def outcomes(self, *, unjudged: bool = False) -> tuple[Outcome, ...]:
        """What agents hear: every candidate of a judged round; also those of others that have a result, if asked.

        A value from another kind of GPU than the baseline's is shifted by what a candidate differs that ran on both.
        """
        shifts = self._shifts()
        return tuple(
            Outcome(
                candidate=entry.id,
                round=round_.index,
                proposal=entry.proposal,
                knobs=entry.candidate.knobs if entry.candidate else {},
                status=entry.result.status if entry.result else Status.LOST,
                value=mean(_values(screened)) + shifts.get(screened[-1].kind, 0.0) if screened else None,
                verdict=entry.verdict,
                finding=entry.finding,
                error=entry.result.error if entry.result else None,
                fingerprint=entry.candidate.fingerprint if entry.candidate else "",
                peak_vram_mb=entry.result.peak_vram_mb if entry.result else None,
                num_trials=max(len(screened), 1),
                kind=screened[-1].kind if screened else "",
            )
            for round_ in self.rounds
            for entry in round_.entries.values()
            for screened in [entry.screened]
            if round_.judged or (unjudged and entry.result)
        )

    def _shifts(self) -> dict[str, float]:
        """Kind of GPU -> what brings its values to the level of the baseline's."""
        first = next(self.entries(), None)
        main = first.screened[-1].kind if first and first.screened else None
        shifts: dict[str, float] = {}
        if main is None or all(entry.one_kind for entry in self.entries()):
            return shifts
        for entry in self.entries():
            by_kind: dict[str, list[float]] = {}
            for result in entry.results:
                if result.metric.value is not None:
                    by_kind.setdefault(result.kind, []).append(result.metric.value)
            if main in by_kind:
                for kind in by_kind.keys() - {main} - shifts.keys():
                    shifts[kind] = mean(by_kind[main]) - mean(by_kind[kind])
        return shifts

    def trials(self) -> Iterator[Trial]:
        """Every trial, in order, dropped ones too."""
        for entry in self.entries():
            yield from entry.trials

    def results(self) -> Iterator[TrialResult]:
        """Every result there is, dropped trials' too."""
        return (trial.result for trial in self.trials() if trial.result)

    # what each event does

    def _run_started(self, at: str, data: Mapping[str, Any]) -> None:
        self.tag, self.uid, self.start_commit = data["tag"], data["uid"], data["start_commit"]
        self.config_sha256, self.metric = data["config_sha256"], data["metric"]
        self.deciding_tier = data.get("deciding_tier") or ""
        self.direction, self.started_at = Direction(data["direction"]), at

    def _run_resumed(self, at: str, data: Mapping[str, Any]) -> None:
        self.interrupted = self.stopped = None

    def _agent_calling(self, at: str, data: Mapping[str, Any]) -> None:
        call = self.calls.setdefault(data["call"], Call())
        call.lost_usd += call.open_usd
        call.open_usd = float(data["at_most_usd"])

    def _agent_called(self, at: str, data: Mapping[str, Any]) -> None:
        call = self.calls[data["call"]]
        call.usd, call.open_usd = float(data["usd"]), 0.0
        call.prompt_tokens, call.answer_tokens = int(data["prompt_tokens"]), int(data["answer_tokens"])

    def _round_proposed(self, at: str, data: Mapping[str, Any]) -> None:
        index = data["round"]
        if index == len(self.rounds):
            self.rounds.append(Round(index=index, base=data["base"], proposed_at=at))
        for id_, payload in data["proposals"].items():
            entry = Entry(id=id_, proposal=from_json(Proposal, payload), deciding_tier=self.deciding_tier)
            self.rounds[index].entries[id_] = entry

    def _round_committed(self, at: str, data: Mapping[str, Any]) -> None:
        for payload in data["candidates"]:
            candidate = from_json(Candidate, payload)
            entry, tier = self.entry(candidate.id), data.get("tiers", {}).get(candidate.id, "")
            entry.candidate, entry.tier = candidate, tier
            self.rounds[candidate.round].needed[Want(candidate.id, tier)] = 1

    def _trials_wanted(self, at: str, data: Mapping[str, Any]) -> None:
        round_ = self.rounds[data["round"]]
        wanted = {Want(id_, data.get("tier", "")): count for id_, count in data["trials"].items()}
        for want in wanted:
            self.entry(want.candidate)
        first = {want: round_.needed.pop(want, 0) + count for want, count in wanted.items()}
        round_.needed = first | round_.needed
        round_.stages.append(data["stage"])

    def _submit_intent(self, at: str, data: Mapping[str, Any]) -> None:
        round_ = self.rounds[data["round"]]
        round_.num_arrays += 1
        round_.submitted_at = round_.submitted_at or at
        for id_ in data["trials"]:
            entry = self.entry(id_.rpartition("-")[0])
            known = next((t for t in entry.trials if t.id == id_), None)
            if known:  # the same trial under a new name: its first submission never reached the cluster
                known.job_name, known.submitted_at, known.job = data["job_name"], at, None
                known.cancelled = False
            else:
                name = data["job_name"]
                trial = Trial(id=id_, candidate=entry.id, round=round_.index, job_name=name, submitted_at=at)
                trial.tier = data.get("tier", "")
                entry.trials.append(trial)
                round_.trials.append(trial)

    def _submit_done(self, at: str, data: Mapping[str, Any]) -> None:
        for id_, job in data["jobs"].items():
            self.trial(id_).job = job

    def _submit_refused(self, at: str, data: Mapping[str, Any]) -> None:
        for id_ in data["trials"]:
            trial = self.trial(id_)
            trial.job_name = trial.job = None

    def _trial_given_up(self, at: str, data: Mapping[str, Any]) -> None:
        trial = self.trial(data["trial"])
        trial.given_up, trial.launch_failed = data["reason"], data["launch_failed"]

    def _trial_done(self, at: str, data: Mapping[str, Any]) -> None:
        trial = self.trial(data["trial"])
        trial.result, trial.done_at = from_json(TrialResult, data["result"]), at

    def _trial_dropped(self, at: str, data: Mapping[str, Any]) -> None:
        self.trial(data["trial"]).dropped = data["reason"]

    def _trial_charged(self, at: str, data: Mapping[str, Any]) -> None:
        for id_, seconds in data["gpu_s"].items():
            self.trial(id_).gpu_s = float(seconds)

    def _round_shrunk(self, at: str, data: Mapping[str, Any]) -> None:
        round_ = self.rounds[data["round"]]
        for id_ in data["candidates"]:
            want = Want(id_, data.get("tier", ""))
            mine = [trial for trial in round_.trials if trial.want == want]
            for trial in [t for t in mine if not t.result]:  # never to be submitted again
                self.entry(id_).trials.remove(trial)
                round_.trials.remove(trial)
            ended = [trial for trial in mine if trial.result]
            if ended and all(trial.dropped is not None for trial in ended):
                ended[-1].dropped = None  # no further one fits: what the last one came to stands
            round_.needed[want] = sum(trial.dropped is None for trial in ended)
            if not round_.num_needed(id_):
                round_.entries.pop(id_, None)

    def _round_judged(self, at: str, data: Mapping[str, Any]) -> None:
        round_ = self.rounds[data["round"]]
        round_.judged = True
        for id_, verdict in data["verdicts"].items():
            round_.entries[id_].verdict = Verdict(verdict)
        for id_, finding in data.get("findings", {}).items():
            round_.entries[id_].finding = from_json(Comparison, finding)
        round_.pool = [round_.entries[id_].id for id_ in data.get("pool", [])]
        if noise := data.get("noise"):  # a round that tells nothing of it takes nothing back
            self.noise = from_json(Noise, noise)
        before, self.incumbent = self.incumbent, Incumbent(**data["incumbent"]) if data["incumbent"] else None
        if gain := data.get("over_baseline"):
            self.over_baseline = from_json(Gain, gain)
        elif self.incumbent is None or before is None or before.candidate != self.incumbent.candidate:
            self.over_baseline = None  # else what is known of this incumbent stands

    def _round_analysed(self, at: str, data: Mapping[str, Any]) -> None:
        self.effects = from_json(Effects, data["effects"])

    def _round_closed(self, at: str, data: Mapping[str, Any]) -> None:
        self.rounds[data["round"]].closed_at = at

    def _run_interrupted(self, at: str, data: Mapping[str, Any]) -> None:
        self.interrupted = data["reason"]
        for id_ in data["cancelled"]:
            self.trial(id_).cancelled = True

    def _run_stopped(self, at: str, data: Mapping[str, Any]) -> None:
        self.stopped = data["reason"]


def alike(results: Iterable[TrialResult], tier: str = "") -> list[TrialResult]:
    """The good results of one kind, the newest, since others do not compare: of this tier, if there are any."""
    good = [result for result in results if result.metric.value is not None]
    good = [result for result in good if result.tier == tier] or good
    return [result for result in good if result.kind == good[-1].kind]


def _values(results: list[TrialResult]) -> list[float]:
    return [value for result in results if (value := result.metric.value) is not None]


def _round_of(candidate: str) -> int:
    return int(candidate.split("-")[0][1:])


def _worth(entry: Entry) -> float:
    gain = entry.finding.gain if entry.finding else None
    if gain is None:
        return 0.0
    return gain.value if gain.expected is None else gain.expected


_HANDLERS = {
    "run.started": History._run_started,
    "run.resumed": History._run_resumed,
    "agent.calling": History._agent_calling,
    "agent.called": History._agent_called,
    "round.proposed": History._round_proposed,
    "round.committed": History._round_committed,
    "trials.wanted": History._trials_wanted,
    "submit.intent": History._submit_intent,
    "submit.done": History._submit_done,
    "submit.refused": History._submit_refused,
    "trial.given_up": History._trial_given_up,
    "trial.done": History._trial_done,
    "trial.dropped": History._trial_dropped,
    "trial.charged": History._trial_charged,
    "round.shrunk": History._round_shrunk,
    "round.judged": History._round_judged,
    "round.analysed": History._round_analysed,
    "round.closed": History._round_closed,
    "run.interrupted": History._run_interrupted,
    "run.stopped": History._run_stopped,
}
