"""What is said of knobs: by how much each moves the metric, and which ones depend on each other.

Values that travel, like those of `records`, whose `to_json` and `from_json` are theirs too.
"""

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

SIGNIFICANT = 0.05  # below this chance an effect counts


class Term(StrEnum):
    """Of a linear model."""

    main = "main"
    interaction = "interaction"  # of two factors
    curvature = "curvature"  # a square, or several that cannot be told from each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A knob that was varied: what -1 and +1 stand for, as people write these settings.

    Of one with more than two choices each other choice is a factor of its own, against the commonest.
    """

    name: str
    low: str
    high: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The change of the metric when its factors go from low to high.

    An interaction's is half the difference that one factor makes to the other's effect; a curvature's is how far the
    mean of low and high is above the middle. `margin` is half of a 95 % interval, None where nothing is known of the
    error. `aliases` are other terms that the trials could not tell from this one, or hardly.
    """

    term: Term
    factors: tuple[str, ...]
    estimate: float
    margin: float | None = None
    p: float | None = None
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`MATRIX_LR`, `DEPTH:MATRIX_LR`, `MATRIX_LR^2`, `DEPTH^2+MATRIX_LR^2`."""
        if self.term is Term.curvature:
            return "+".join(f"{factor}^2" for factor in self.factors)
        return ":".join(self.factors)

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT

    @property
    def coefficient(self) -> float:
        """Of the coded term: a main effect and an interaction go from -1 to +1, a curvature from 0 to 1."""
        return self.estimate if self.term is Term.curvature else self.estimate / 2

    def column(self, coded: Mapping[str, float]) -> float:
        """The term's value at coded levels; a factor that is not named is in its middle."""
        levels = [coded.get(name, 0.0) for name in self.factors]
        if self.term is Term.curvature:
            return sum(level**2 for level in levels) / len(levels)
        return math.prod(levels)

    @property
    def words(self) -> str:
        """`+0.012000 ± 0.001100, p=0.0003`."""
        known = "" if self.margin is None else f" ± {self.margin:.6f}"
        odds = "" if self.p is None else ", p<0.0001" if self.p < 0.0001 else f", p={self.p:.4f}"
        return f"{self.estimate:+.6f}{known}{odds}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """A linear model of a run's results, in coded units.

    `effects` are the mean-free terms, mains first. `sd` is that of one trial, of `df` degrees of freedom, and `error`
    says where it is from. `centre` is the model's value in the middle of all factors. `lack_of_fit` is the chance of so
    large a deviation from the model if it held. What failed has no value: `num_failed` were left out.
    """

    factors: tuple[Factor, ...]
    effects: tuple[Effect, ...]
    centre: float
    num_outcomes: int
    num_failed: int = 0
    sd: float | None = None
    df: float = 0.0
    error: str = ""
    lack_of_fit: float | None = None
    not_estimated: tuple[str, ...] = field(default_factory=tuple)

    @property
    def by_size(self) -> tuple[Effect, ...]:
        """The surest first; without intervals the largest."""
        return tuple(sorted(self.effects, key=lambda e: (1.0 if e.p is None else e.p, -abs(e.estimate))))

    def predict(self, coded: Mapping[str, float], keep: Container[str] | None = None) -> float:
        """The model's value at coded levels, by all terms or by those named in `keep`."""
        kept = (effect for effect in self.effects if keep is None or effect.name in keep)
        return self.centre + sum(effect.coefficient * effect.column(coded) for effect in kept)

    @property
    def of_factors(self) -> Mapping[str, Factor]:
        return {factor.name: factor for factor in self.factors}

    @property
    def words(self) -> str:
        """One line: how many trainings, what of, how sure."""
        parts = [f"{self.num_outcomes} results"]
        parts += [f"{self.num_failed} failures left out"] if self.num_failed else []
        if self.sd is not None:
            parts.append(f"sd={self.sd:.6f} of one trial, df={self.df:g} ({self.error})")
        if self.lack_of_fit is not None:
            parts.append(f"lack of fit p={self.lack_of_fit:.3f}")
        return ", ".join(parts)
