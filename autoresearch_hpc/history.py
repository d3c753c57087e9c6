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

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoresearch_hpc.entries import Call as Call
from autoresearch_hpc.entries import Entry as Entry
from autoresearch_hpc.entries import Incumbent as Incumbent
from autoresearch_hpc.entries import Round as Round
from autoresearch_hpc.entries import Trial as Trial
from autoresearch_hpc.entries import Want as Want
from autoresearch_hpc.errors import JournalError
from autoresearch_hpc.estimates import Effects
from autoresearch_hpc.gains import Comparison, Gain, Noise
from autoresearch_hpc.journal import REMEDY, Event
from autoresearch_hpc.outcomes import Outcomes, kind_shifts
from autoresearch_hpc.records import (
    Candidate,
    Direction,
    Outcome,
    Proposal,
    TrialResult,
    Verdict,
    candidate_id,
    from_json,
)
from autoresearch_hpc.tally import Tally

_ID = re.compile(r"r\d+-c\d+")


@dataclass(kw_only=True)
class History:
    """The state of a run. Mutable, but only by `apply`, whose every event takes as long as the one before.

    `tally` and what agents were told are no part of the state: they follow from it.
    """

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

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._outcomes = Outcomes()

    @classmethod
    def replay(cls, events: Iterable[Event]) -> "History":
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
        return list(self.tally.open.values())

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
        if _ID.fullmatch(wanted) and _round_of(wanted) < len(self.rounds):
            if entry := self.rounds[_round_of(wanted)].entries.get(wanted):
                return entry
        return next((e for e in self.entries() if wanted == e.proposal.name), None)

    @property
    def kept(self) -> list[Entry]:
        """All winners so far, in order, the baseline among them."""
        return sorted(self.tally.kept.values(), key=lambda entry: entry.place)

    @property
    def llm_usd(self) -> float:
        """What the agent's calls have cost; those without an answer count with the most that they may have."""
        return self.tally.calls_usd

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
        """What agents hear: every candidate of a judged round; also those of others that have a result, if asked."""
        told = (
            entry
            for round_ in self.rounds
            for entry in round_.entries.values()
            if round_.judged or (unjudged and entry.result)
        )
        return self._outcomes.of(told, kind_shifts(next(self.entries(), None), self.tally.mixed.values()))

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
        before_usd = call.cost_usd
        call.lost_usd += call.open_usd
        call.open_usd = float(data["at_most_usd"])
        self.tally.call(call, before_usd)

    def _agent_called(self, at: str, data: Mapping[str, Any]) -> None:
        call = self.calls[data["call"]]
        before_usd = call.cost_usd
        call.usd, call.open_usd = float(data["usd"]), 0.0
        call.prompt_tokens, call.answer_tokens = int(data["prompt_tokens"]), int(data["answer_tokens"])
        self.tally.call(call, before_usd)

    def _round_proposed(self, at: str, data: Mapping[str, Any]) -> None:
        index = data["round"]
        if index == len(self.rounds):
            self.rounds.append(Round(index=index, base=data["base"], proposed_at=at))
            self.tally.open[index] = self.rounds[-1]
        for id_, payload in data["proposals"].items():
            entry = Entry(id=id_, proposal=from_json(Proposal, payload), deciding_tier=self.deciding_tier)
            self.rounds[index].entries[id_] = entry
            self.tally.entry(entry)

    def _round_committed(self, at: str, data: Mapping[str, Any]) -> None:
        for payload in data["candidates"]:
            candidate = from_json(Candidate, payload)
            entry, tier = self.entry(candidate.id), data.get("tiers", {}).get(candidate.id, "")
            entry.candidate, entry.tier = candidate, tier
            if candidate.proposal == entry.proposal:  # as good as always: one for both
                entry.proposal = candidate.proposal
            self.tally.entry(entry)
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
            self.tally.entry(entry)

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
        self._changed(trial)

    def _trial_dropped(self, at: str, data: Mapping[str, Any]) -> None:
        trial = self.trial(data["trial"])
        trial.dropped = data["reason"]
        self._changed(trial)

    def _trial_charged(self, at: str, data: Mapping[str, Any]) -> None:
        for id_, seconds in data["gpu_s"].items():
            trial = self.trial(id_)
            trial.gpu_s = float(seconds)
            self._changed(trial)

    def _changed(self, trial: Trial) -> None:
        self.tally.trial(trial)
        self.tally.entry(self.entry(trial.candidate))

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
            if entry := self.find(id_):
                self.tally.entry(entry)
            if not round_.num_needed(id_) and (entry := round_.entries.pop(id_, None)):
                self.tally.gone(entry)

    def _round_judged(self, at: str, data: Mapping[str, Any]) -> None:
        round_ = self.rounds[data["round"]]
        round_.judged = True
        for id_, verdict in data["verdicts"].items():
            round_.entries[id_].verdict = Verdict(verdict)
        for id_, finding in data.get("findings", {}).items():
            round_.entries[id_].finding = from_json(Comparison, finding)
        for id_ in {*data["verdicts"], *data.get("findings", {})}:
            self.tally.entry(round_.entries[id_])
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
        self.tally.open.pop(data["round"], None)

    def _run_interrupted(self, at: str, data: Mapping[str, Any]) -> None:
        self.interrupted = data["reason"]
        for id_ in data["cancelled"]:
            self.trial(id_).cancelled = True

    def _run_stopped(self, at: str, data: Mapping[str, Any]) -> None:
        self.stopped = data["reason"]


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
