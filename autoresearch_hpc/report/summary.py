"""The figures of a run, computed from its history alone.

One trial holds one GPU from its worker's start to its result, so GPU time is the sum of the trials' `total_s`; the
same sum without dropped trials is what the trials would have taken one after another, with no time in between. A
candidate has several: it is OK if one of them is, and its value is the mean of the good ones.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime

from autoresearch_hpc.gains import NEAR_MISS, Comparison, Gain, Noise
from autoresearch_hpc.history import Entry, History, Round
from autoresearch_hpc.records import Direction, Status, Verdict, candidate_id
from autoresearch_hpc.report.settings import Settings
from autoresearch_hpc.report.tables import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSummary:
    """One line of the table of rounds: `best` and `title` are the winner's or, without one, the best one's."""

    index: int
    base: str  # the candidate the round started from, or a commit where no candidate has it
    num_candidates: int
    num_trials: int  # that ended, of its candidates and of the incumbent beside them
    statuses: Mapping[Status, int]  # of candidates
    best: float | None
    best_candidate: str | None
    winner: str | None  # the candidate that became the incumbent
    finding: Comparison | None
    title: str
    judged: bool

    @property
    def num_ok(self) -> int:
        return self.statuses.get(Status.OK, 0)

    @property
    def num_failed(self) -> int:
        return sum(self.statuses.values()) - self.num_ok

    @property
    def verdict(self) -> str:
        """keep, discard, crash (nothing succeeded), or running; near miss where the best one was."""
        if not self.judged:
            return "running"
        if self.finding and self.finding.call == NEAR_MISS:
            return NEAR_MISS
        return str(Verdict.KEEP if self.winner else Verdict.DISCARD if self.num_ok else Verdict.CRASH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """From a round's last result to the next one's first array; in seconds. GPUs wait for it."""

    total_s: float
    thought_s: float  # of these, until the agent had proposed


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """What the agent's calls of an endpoint or a program came to."""

    num_calls: int
    prompt_tokens: int
    answer_tokens: int
    usd: float  # those without an answer with the most that they may have cost


@dataclass(frozen=True, slots=True, kw_only=True)
class TierUse:
    """What ran on one kind of GPU."""

    tier: str
    num_trials: int
    trial_s: float
    cost_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run has come to and used, without a look at every candidate. Times in seconds; None: nothing is known."""

    tag: str
    metric: str
    direction: Direction
    num_trials: int  # that ended, repeated ones included
    active_s: float  # controllers at work
    trial_s: float  # all trials, dropped ones included
    gpu_s: float  # of these, with a GPU
    cost_usd: float | None  # None where the cluster has no price
    tiers: tuple[TierUse, ...]  # where there are several
    num_slots: int | None  # GPUs at most at once, where that was said
    noise: Noise | None
    baseline: float | None
    baseline_trials: int  # whose mean that is
    best: float | None
    best_trials: int
    best_candidate: str | None
    best_commit: str | None
    leading: float | None  # a value of the round that is not yet judged, better than the best
    leading_trials: int
    leading_candidate: str | None
    over_baseline: Gain | None  # as of the last judgement
    kept: tuple[tuple[str, Gain], ...]  # every winner and its gain on the incumbent before it, as it was judged

    @property
    def moved(self) -> bool:
        """Whether the best is another than the baseline."""
        return self.best_candidate not in (None, candidate_id(0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(Figures):
    """What a run did, cost and found: the figures, and what is counted over all of its candidates."""

    rounds: tuple[RoundSummary, ...]
    num_experiments: int  # candidates with a result
    statuses: Mapping[Status, int]  # of candidates
    elapsed_s: float  # first to last event, interruptions included
    sequential_s: float  # the trials that counted, one after another
    train_s: float
    pauses: tuple[Pause, ...]  # between rounds, where one controller saw both
    thinking: Thinking | None  # None where the agent calls nothing

    @property
    def num_failed(self) -> int:
        return self.num_experiments - self.statuses.get(Status.OK, 0)

    @property
    def speed_up(self) -> float | None:
        return self.sequential_s / self.active_s if self.active_s > 0 and self.sequential_s > 0 else None

    @property
    def useful(self) -> float | None:
        """The fraction of the trials' time that was training."""
        return self.train_s / self.trial_s if self.trial_s > 0 else None

    @property
    def busy(self) -> float | None:
        """The fraction of the slots' time, while a controller was at work, in which a trial ran."""
        return self.trial_s / (self.num_slots * self.active_s) if self.num_slots and self.active_s > 0 else None


def figures(history: History, settings: Settings | None = None, now: datetime | None = None) -> Figures:
    """The figures so far. `now` is given while a controller is at work: its last event may be some time ago.

    As cheap after 10,000 trials as after ten.
    """
    settings, tally = settings or Settings(), history.tally
    baseline, incumbent, leading = history.find("baseline"), history.incumbent, _leading(history)
    best = history.entry(incumbent.candidate) if incumbent else None
    return Figures(
        tag=history.tag,
        metric=history.metric,
        direction=history.direction,
        num_trials=tally.num_ended.total(),
        active_s=_active_s(history, now),
        trial_s=sum(tally.held_s.values()),
        gpu_s=tally.on_gpu_s,
        cost_usd=_cost(tally.held_s, settings),
        tiers=tuple(_tiers(history, settings)),
        num_slots=settings.num_slots,
        noise=history.noise,
        baseline=baseline.value if baseline else None,
        baseline_trials=len(baseline.values) if baseline else 0,
        best=best.value if best else None,
        best_trials=len(best.values) if best else 0,
        best_candidate=best.id if best else None,
        best_commit=incumbent.commit if incumbent else None,
        leading=leading.value if leading else None,
        leading_trials=len(leading.values) if leading else 0,
        leading_candidate=leading.id if leading else None,
        over_baseline=history.over_baseline,
        kept=tuple(_kept(history)),
    )


def summarize(history: History, settings: Settings | None = None, now: datetime | None = None) -> Summary:
    """All that is told of a run in the end; `now` as of `figures`."""
    shown = [entry.result for entry in history.entries() if entry.result]
    counted = [result for entry in history.entries() for result in entry.results]
    known = figures(history, settings, now)
    return Summary(
        **{field.name: getattr(known, field.name) for field in fields(known)},
        rounds=tuple(_round(history, round_) for round_ in history.rounds),
        num_experiments=len(shown),
        statuses=Counter(result.status for result in shown),
        elapsed_s=_between(history.started_at, now.isoformat() if now else history.last_at),
        sequential_s=sum(result.phases.total_s or 0.0 for result in counted),
        train_s=sum(result.phases.train_s or 0.0 for result in counted),
        pauses=tuple(_pauses(history)),
        thinking=_thinking(history),
    )


def _cost(held_s: Mapping[str, float], settings: Settings) -> float | None:
    prices = [settings.price(tier) for tier in held_s] or [settings.price_per_gpu_hour]
    if not any(prices):
        return None
    return sum(seconds * settings.price(tier) for tier, seconds in held_s.items()) / 3600


def _tiers(history: History, settings: Settings) -> Iterator[TierUse]:
    held_s, ended = history.tally.held_s, history.tally.num_ended
    names = sorted(name for name in held_s if ended[name])
    for name in names if len(names) > 1 else ():
        cost_usd = _cost({name: held_s[name]}, settings)
        yield TierUse(tier=name, num_trials=ended[name], trial_s=held_s[name], cost_usd=cost_usd)


def base_of(history: History, commit: str) -> str:
    """The candidate whose commit this is; "start" for the repository's own commit; else the commit, shortened."""
    if known := history.tally.by_commit.get(commit):
        return known.id
    return "start" if commit == history.start_commit else commit[:7]


def _round(history: History, round_: Round) -> RoundSummary:
    entries = list(round_.entries.values())
    best = _best(entries, history.direction)
    winner = next((entry for entry in reversed(entries) if entry.verdict is Verdict.KEEP), None)  # not the baseline
    shown = winner or best
    return RoundSummary(
        index=round_.index,
        base=base_of(history, round_.base),
        num_candidates=len(entries),
        num_trials=sum(trial.result is not None for trial in round_.trials),
        statuses=Counter(entry.result.status for entry in entries if entry.result),
        best=shown.value if shown else None,
        best_candidate=shown.id if shown else None,
        winner=winner.id if winner else None,
        finding=shown.finding if shown else None,
        title=one_line(shown.proposal.title) if shown else "",
        judged=round_.judged,
    )


def _best(entries: Sequence[Entry], direction: Direction) -> Entry | None:
    """Of those that were run on the tier that decides, if any were: other values do not compare with theirs."""
    valued = [(entry, value) for entry in entries if (value := entry.value) is not None]
    best: tuple[Entry, float] | None = None
    for entry, value in [each for each in valued if each[0].decided] or valued:
        if best is None or direction.better(value, best[1]):
            best = entry, value
    return best[0] if best else None


def _leading(history: History) -> Entry | None:
    """The best of the rounds that are still going on, where it beats the incumbent."""
    going_on = [e for round_ in history.open_rounds if not round_.judged for e in round_.entries.values() if e.decided]
    entry = _best(going_on, history.direction)
    if entry is None or entry.value is None:
        return None
    best = history.entry(history.incumbent.candidate).value if history.incumbent else None
    return entry if best is None or history.direction.better(entry.value, best) else None


def _kept(history: History) -> Iterator[tuple[str, Gain]]:
    for entry in history.kept:
        if entry.finding and entry.finding.gain:
            yield entry.id, entry.finding.gain


def _pauses(history: History) -> Iterator[Pause]:
    starts = [start for start, _ in history.active]
    for before, after in itertools.pairwise(history.rounds):
        done = [trial.done_at for trial in before.trials if trial.done_at]
        if not done or after.submitted_at is None or before.closed_at is None:
            continue
        if not any(max(done) <= start <= after.submitted_at for start in starts):
            thought_s = _between(before.closed_at, after.proposed_at)
            yield Pause(total_s=_between(max(done), after.submitted_at), thought_s=thought_s)


def _thinking(history: History) -> Thinking | None:
    calls = list(history.calls.values())
    if not calls:
        return None
    return Thinking(
        num_calls=len(calls),
        prompt_tokens=sum(call.prompt_tokens for call in calls),
        answer_tokens=sum(call.answer_tokens for call in calls),
        usd=history.llm_usd,
    )


def _active_s(history: History, now: datetime | None) -> float:
    spans = list(history.active)
    if spans and now:
        spans[-1] = (spans[-1][0], now.isoformat())
    return sum(_between(start, end) for start, end in spans)


def _between(start: str | None, end: str | None) -> float:
    if start is None or end is None:
        return 0.0
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
