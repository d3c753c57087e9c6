"""The rules' settings and what they answer; `best`, the rule that takes every number at its face value."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from autoresearch_hpc.gains import NEAR_MISS, Comparison
from autoresearch_hpc.promotion.dunnett import p_value
from autoresearch_hpc.promotion.effects import Effect, as_gain
from autoresearch_hpc.promotion.samples import Difference, Sample
from autoresearch_hpc.records import Direction

__all__ = ["Call", "Finding", "Judgement", "Look", "Significant", "best"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A small array after the round's own: the best `keep` that are `ahead` standard errors run `fresh` seeds each.

    `share` of the rule's alpha is spent on promoting after it.
    """

    keep: int
    fresh: int
    ahead: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Significant:
    """`decide=significant`, fixed before the round.

    `alpha` is the chance to promote what is no better, over a whole round; what the looks leave of it is spent on
    promoting after the round's array alone. The incumbent gets controls until it has `replicates` trials along with a
    round, and until it has `incumbent_trials`, up to `controls` at a time, along with a look.
    """

    alpha: float = 0.05
    looks: tuple[Look, ...] = (
        Look(keep=3, fresh=1, ahead=1.0, share=0.2),
        Look(keep=1, fresh=3, ahead=1.5, share=0.78),
    )
    replicates: int = 3
    controls: int = 2
    incumbent_trials: int = 6
    near_miss: float = 1.0  # standard errors ahead that one must be after its last look to be worth combining
    min_delta: float = 0.0
    max_vram_mb: float | None = None
    price_per_gb: float = 0.0  # in the metric's units: what a gigabyte more has to bring
    simplify: bool = False
    simplify_margin: float = 0.0005  # by how much less code may be worse

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and 0 < self.spend(0)):
            raise ValueError(f"alpha={self.alpha} of which the looks spend {[look.share for look in self.looks]}")
        if any(look.keep < 1 or look.fresh < 1 or look.share <= 0 for look in self.looks):
            raise ValueError(f"a look that does nothing: {self.looks}")
        if self.replicates < 1 or self.controls < 0 or self.simplify_margin <= 0 or self.min_delta < 0:
            raise ValueError(f"no design: {self}")

    def spend(self, look: int) -> float:
        """The part of alpha for promoting after that many looks."""
        share = self.looks[look - 1].share if look else 1 - sum(each.share for each in self.looks)
        return round(self.alpha * share, 12)

    def controls_along(self, incumbent: Sample) -> int:
        """Control trials of the incumbent to send along with the next round's candidates."""
        return max(0, self.replicates - len(incumbent.all))

    def controls_at_look(self, incumbent: Sample) -> int:
        return max(0, min(self.controls, self.incumbent_trials - len(incumbent.all)))


class Call(StrEnum):
    """What a look makes of a candidate."""

    PROMOTE = "promote"
    SIMPLER = "promote: less code at an equal score"
    CONFIRM = "to be confirmed"
    NEAR_MISS = NEAR_MISS
    DISCARD = "discard"
    FAILED = "no score"
    TOO_LARGE = "over the memory cap"
    SCREENED_OUT = "screened out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One candidate's comparison with the incumbent, one of `k`, and what came of it.

    `k_alike` of these ran on the same kind of GPU; None where all did.
    """

    candidate: str
    call: Call
    difference: Difference | None = None
    k: int = 0
    k_alike: int | None = None
    df: float = 0.0
    effect: Effect | None = None  # what to report: shrunk for selection

    @property
    def p(self) -> float | None:
        """The chance of so large a lead, or a larger one, for any of the k, if none were better."""
        if self.difference is None or not self.df:
            return None
        k = self.k_alike or self.k
        return min(1.0, p_value(self.difference.t, k, self.difference.n, self.difference.n0, self.df) * self.k / k)

    @property
    def record(self) -> Comparison:
        """What is journaled of it, in plain numbers."""
        if self.difference is None:
            return Comparison(call=self.call.value)
        gain = as_gain(self.difference, self.df, self.effect)
        n, n0 = self.difference.n, self.difference.n0
        return Comparison(call=self.call.value, gain=gain, p=self.p, k=self.k, num_trials=n, num_incumbent_trials=n0)

    @property
    def words(self) -> str:
        """`+0.000412 ± 0.000300, p=0.003 of K=16`: the gain (positive is better) and its 95 % interval."""
        return self.record.odds or self.call.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a look says. While `again` names candidates the round goes on: `fresh` trials of each, and `controls`.

    At its end `promote` takes the incumbent's place, and `pool` are the near misses, best first, to be combined.
    """

    findings: tuple[Finding, ...]
    promote: str | None = None
    again: tuple[str, ...] = ()
    fresh: int = 0
    controls: int = 0
    pool: tuple[str, ...] = ()


def best(incumbent: Sample, candidates: Sequence[Sample], direction: Direction, min_delta: float = 0.0) -> str | None:
    """The best candidate that beats the incumbent's mean by min_delta; ties go to less code, then the lower id."""
    winner, value = None, incumbent.mean
    for sample in sorted(candidates, key=tie_break):
        if sample.all and direction.better(sample.mean, value):
            if winner or round(abs(sample.mean - value), 12) >= min_delta:
                winner, value = sample.candidate, sample.mean
    return winner


def tie_break(sample: Sample) -> tuple[int, int, str]:
    return sample.net_lines, len(sample.candidate), sample.candidate  # by length first: c100 comes after c99
