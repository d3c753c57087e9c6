"""The rules' settings and what they answer; `best`, the rule that takes every number at its face value."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from autoresearch_hpc.promotion.dunnett import p_value
from autoresearch_hpc.promotion.effects import Effect, interval
from autoresearch_hpc.promotion.samples import Difference, Sample
from autoresearch_hpc.records import Direction

__all__ = ["Call", "Finding", "Judgement", "Screening", "Significant", "best"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Significant:
    """`decide=significant`, fixed before the round.

    `alpha` is the chance to promote anything that is no better, over a whole round; `alpha_screen` of it is spent on
    promoting after the array alone. `replicates` is how many values the incumbent should have before a round; what is
    missing goes along as controls. Up to `confirm` candidates that are at least `futility` standard errors ahead get
    `fresh` trials each, beside `controls` of the incumbent.
    """

    alpha: float = 0.05
    alpha_screen: float = 0.01
    replicates: int = 3
    confirm: int = 3
    fresh: int = 2
    controls: int = 2
    futility: float = 0.5
    min_delta: float = 0.0
    max_vram_mb: float | None = None
    price_per_gb: float = 0.0  # in the metric's units: what a gigabyte more has to bring
    simplify: bool = False
    simplify_margin: float = 0.0005  # by how much less code may be worse

    def __post_init__(self) -> None:
        if not 0 < self.alpha_screen < self.alpha < 1:
            raise ValueError(f"alpha_screen={self.alpha_screen} of alpha={self.alpha}: 0 < alpha_screen < alpha < 1")
        if self.confirm < 0 or self.fresh < 1 or self.controls < 0 or self.replicates < 1:
            raise ValueError(f"no design: {self}")
        if min(self.min_delta, self.price_per_gb) < 0 or self.simplify_margin <= 0:
            raise ValueError(f"no negative tolerances: {self}")

    @property
    def alpha_confirm(self) -> float:
        return self.alpha - self.alpha_screen

    def controls_along(self, incumbent: Sample) -> int:
        """Control trials of the incumbent to send along with the next round's candidates."""
        return max(0, self.replicates - len(incumbent.all))


class Call(StrEnum):
    """What a stage makes of a candidate."""

    PROMOTE = "promote"
    SIMPLER = "promote: less code at an equal score"
    CONFIRM = "to be confirmed"
    NEAR_MISS = "near miss"
    DISCARD = "discard"
    FAILED = "no score"
    TOO_LARGE = "over the memory cap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One candidate's comparison with the incumbent, one of `k`, and what came of it."""

    candidate: str
    call: Call
    difference: Difference | None = None
    k: int = 0
    df: float = 0.0
    effect: Effect | None = None  # what to report: shrunk for selection

    @property
    def p(self) -> float | None:
        """The chance of so large a lead, or a larger one, for any of the k, if none were better."""
        if self.difference is None or not self.df:
            return None
        return p_value(self.difference.t, self.k, self.difference.n, self.difference.n0, self.df)

    @property
    def words(self) -> str:
        """`+0.000412 ± 0.000300, p=0.003 of K=16`: the gain (positive is better) and its 95 % interval."""
        if self.difference is None:
            return self.call.value
        if self.p is None:
            return f"{self.difference.gain:+.6f}, noise unknown, K={self.k}"
        half = interval(self.difference.se, self.df)
        return f"{self.difference.gain:+.6f} ± {half:.6f}, p={_p_words(self.p)} of K={self.k}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """After the array: a clear winner, or whom to run again, with how many trials each and of the incumbent."""

    findings: tuple[Finding, ...]
    promote: str | None = None
    confirm: tuple[str, ...] = ()
    fresh: int = 0
    controls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The round's end: who takes the incumbent's place, and the near misses, best first, as a pool to combine."""

    findings: tuple[Finding, ...]
    promote: str | None = None
    pool: tuple[str, ...] = ()


def best(incumbent: Sample, candidates: Sequence[Sample], direction: Direction, min_delta: float = 0.0) -> str | None:
    """The best candidate that beats the incumbent's mean by min_delta; ties go to the smaller diff, then the id."""
    winner, value = None, incumbent.mean
    for sample in sorted(candidates, key=tie_break):
        if not sample.all or not direction.better(sample.mean, value):
            continue
        if winner or round(abs(sample.mean - incumbent.mean), 12) >= min_delta:
            winner, value = sample.candidate, sample.mean
    return winner


def tie_break(sample: Sample) -> tuple[int, int, str]:
    return sample.net_lines, len(sample.candidate), sample.candidate  # by length first: c100 comes after c99


def _p_words(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.001 else f"{p:.3f}"
