"""The part of the schema that says what is tried, round by round; `config` holds the rest, and says how both are read.

The comment behind each field is its documentation: docs/configuration.md is generated from it.
"""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from autoresearch_hpc.errors import require


class KnobType(Enum):
    int = "int"
    float = "float"
    pow2 = "pow2"  # integers that are powers of two, sampled by exponent
    choice = "choice"


class Baseline(Enum):
    alone = "alone"
    joined = "joined"


@dataclass
class KnobDomain:
    """What a search may do with one knob."""

    type: KnobType = KnobType.choice  # int, float, pow2 (powers of two) or choice
    low: Any = None  # smallest value, of int, float and pow2
    high: Any = None  # largest value
    log: bool = False  # sample on a logarithmic scale
    choices: list[Any] = field(default_factory=list)  # the values, of choice
    points: int = 3  # how many values a grid takes from a range

    def __post_init__(self) -> None:
        if self.type is KnobType.choice:
            require(
                bool(self.choices),
                "a choice knob without choices",
                "give choices: [...], or type, low and high",
            )
            return
        for end in (self.low, self.high):
            number = isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end)
            require(number, f"a range of {self.low!r} to {self.high!r}", "give numbers for low and high")
        require(
            self.low < self.high,
            f"a range upside down: low {self.low} is not below high {self.high}",
            "swap them",
        )
        require(
            not self.log or self.low > 0,
            f"a logarithmic range from {self.low}",
            "its low end must be above 0",
        )
        if self.type is not KnobType.float:
            whole = self.low == int(self.low) and self.high == int(self.high)
            require(whole, f"a whole-number range of {self.low} to {self.high}", "use whole ends, or type: float")
        if self.type is KnobType.pow2:
            for end in (self.low, self.high):
                power = end >= 1 and int(end) & (int(end) - 1) == 0
                require(power, f"a pow2 range that ends at {end}", "both ends must be powers of two")
        require(self.points >= 2, f"points: {self.points}", "a grid over a range needs at least 2 points")


@dataclass
class SpaceConfig:
    """A search space: domains of knobs, and conditions between them."""

    knobs: dict[str, KnobDomain] = field(default_factory=dict)  # knob -> domain
    bounds: list[str] = field(
        default_factory=list
    )  # conditions over knobs, SEQ_LEN and VOCAB_SIZE, e.g. "HEAD_DIM % 2 == 0"


@dataclass
class CandidateConfig:
    """One explicit candidate of a plan."""

    title: str = ""  # what results.tsv says; default: the settings
    name: str | None = None  # a name that later candidates can build on
    parent: str | None = None  # the candidate it builds on: a name, an id or "baseline"; default the incumbent
    knobs: dict[str, Any] = field(default_factory=dict)  # settings; none makes a replicate


@dataclass
class RoundConfig:
    """One round of a plan: explicit candidates, or K that the agent proposes."""

    candidates: list[CandidateConfig] = field(default_factory=list)  # explicit candidates
    k: int | None = None  # how many the agent proposes; default plan.k

    def __post_init__(self) -> None:
        require(self.k is None or self.k >= 1, f"k: {self.k}", "a round needs at least one candidate")
        require(
            self.k is None or not self.candidates,
            f"a round with both k: {self.k} and candidates",
            "give one of them: explicit candidates are run as they are",
        )


@dataclass
class ValidateConfig:
    """What follows a round's screening: the best again, on another kind of GPU, before one is kept."""

    tier: str | None = None  # where; default the last of cluster.tiers
    top: int = 0  # so many candidates, the best by their screening; 0: none, and one is kept where it was tried
    seeds: int = 2  # with so many trials each

    def __post_init__(self) -> None:
        require(self.top >= 0, f"plan.validate.top={self.top}", "give 0 or more")
        require(self.seeds >= 1, f"plan.validate.seeds={self.seeds}", "give at least 1")


@dataclass
class PlanConfig:
    """What a run tries, round by round; the files of conf/round/ set it."""

    name: str = MISSING  # the plan's name; the run's tag starts with it
    description: str = ""  # one sentence for people
    k: int | None = 4  # candidates a round; null: as many as GPUs to try them on (cluster.max_parallel, or the tiers')
    combine: int = 1  # of these, at most so many combine near misses, from round 2 on; never more than half; 0: none
    base: dict[str, Any] = field(default_factory=dict)  # knob settings of the baseline, the run's first commit
    baseline: Baseline = Baseline.alone  # round 0 is the baseline alone, or joined by the first round's candidates
    rounds: list[RoundConfig] = field(default_factory=list)  # the rounds; empty: the agent proposes k
    max_rounds: int | None = None  # how many rounds after the baseline; the last of `rounds` repeats
    screen: str | None = None  # the tier on which candidates are tried; default the first of cluster.tiers
    validate: ValidateConfig = field(default_factory=ValidateConfig)  # the best are run again on another tier

    def __post_init__(self) -> None:
        require(self.k is None or self.k >= 1, f"plan.k={self.k}", "a round needs at least one candidate")
        require(self.combine >= 0, f"plan.combine={self.combine}", "give 0 or more")
        require(
            self.max_rounds is None or self.max_rounds >= 0,
            f"plan.max_rounds={self.max_rounds}",
            "give 0 or more",
        )
        names = [c.name for r in self.rounds for c in r.candidates if c.name]
        doubled = sorted({n for n in names if names.count(n) > 1})
        require(not doubled, f"candidate name {', '.join(doubled)} is used twice in the plan", "rename one")

    @property
    def first_round(self) -> int:
        """The first round that has a plan: 0 where the baseline is joined, else 1."""
        return 0 if self.baseline is Baseline.joined else 1

    @property
    def num_rounds(self) -> int:
        """Rounds after round 0, so the last round's index."""
        if self.max_rounds is not None:
            return self.max_rounds
        return self.first_round + max(len(self.rounds), 1) - 1

    def round(self, index: int) -> RoundConfig:
        """The plan of round index; the last of `rounds` repeats.

        With a baseline alone, round 0 is the baseline and has no plan (ValueError), and round i is rounds[i - 1]. With
        a joined baseline rounds[0] runs beside the baseline in round 0, and round i is rounds[i].
        """
        if index < self.first_round:
            raise ValueError(f"round {index} has no plan: the baseline runs alone")
        if not self.rounds:
            return RoundConfig()
        return self.rounds[min(index - self.first_round, len(self.rounds) - 1)]

    def is_open(self, index: int) -> bool:
        """Whether an agent fills round index, rather than the plan itself."""
        return not self.round(index).candidates

    def num_candidates(self, index: int) -> int:
        """How many candidates round index has; at most, where an agent proposes them."""
        planned = self.round(index)
        return len(planned.candidates) or planned.k or self.k or 1
