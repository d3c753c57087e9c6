"""A run's candidates, trials and rounds, as `History` keeps them: mutable, but only by the journal's events."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import NamedTuple

from autoresearch_hpc.gains import Comparison
from autoresearch_hpc.records import Candidate, Proposal, Status, TrialResult, Verdict

__all__ = ["Call", "Entry", "Incumbent", "Round", "Trial", "Want", "alike", "mean_of", "values_of"]


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
    version: int = 0  # how often something of it has changed: what was made of it holds until it does again

    @property
    def place(self) -> tuple[int, int]:
        """Of r03-c02: 3 and 2, by which candidates are ordered."""
        round_, _, index = self.id.partition("-c")
        return int(round_[1:]), int(index)

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
        return values_of(self.good(self.deciding_tier))

    @property
    def one_kind(self) -> bool:
        """Whether all of its trials compare."""
        return len({result.kind for result in self.results}) < 2

    @property
    def decided(self) -> bool:
        """Whether its value comes from where it is decided what is kept."""
        good = self.good(self.deciding_tier)
        return not self.deciding_tier or any(result.tier == self.deciding_tier for result in good)

    @property
    def screened(self) -> list[TrialResult]:
        """Its good results where it was tried first, which every candidate has: what a search can learn from."""
        return self.good(self.tier)

    @property
    def value(self) -> float | None:
        """The mean over all good trials, so that no lucky one stands for the candidate."""
        return mean_of(self.values)


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


def alike(results: Iterable[TrialResult], tier: str = "") -> list[TrialResult]:
    """The good results of one kind, the newest, since others do not compare: of this tier, if there are any."""
    good = [result for result in results if result.metric.value is not None]
    good = [result for result in good if result.tier == tier] or good
    return [result for result in good if result.kind == good[-1].kind]


def values_of(results: Sequence[TrialResult]) -> list[float]:
    """The good ones' values."""
    return [value for result in results if (value := result.metric.value) is not None]


def mean_of(values: Sequence[float]) -> float | None:
    """Exact: the mean of equal values is their value. None of none."""
    if len(values) == 1:  # nearly always: statistics takes its time
        return values[0]
    return mean(values) if values else None
