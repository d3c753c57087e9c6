"""What a gain is worth once it was picked out for being large (the winner's curse).

Observed gain d = true effect + error, of standard error s. Effects of a run's proposals are taken as normal around
zero with a variance tau^2 that the run's own gains tell; then the expected true effect is B*d with
B = tau^2 / (tau^2 + s^2), whatever was picked, and its standard deviation is sqrt(B)*s. Proposals that are clearly
behind are left out of tau^2: the long tail of bad ideas says nothing of those near the incumbent.

Source: Efron and Morris 1973, "Stein's estimation rule and its competitors"; Efron 2011, "Tweedie's formula and
selection bias" (why selection needs no further correction under the prior).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtrit

from autoresearch_hpc.promotion.noise import Noise
from autoresearch_hpc.promotion.samples import Difference

__all__ = ["Effect", "Prior", "effect_prior", "shrink"]

_PSEUDO_EFFECTS = 4  # a run's first effects are too few to tell their variance: as if so many of one sd had been seen
_BEHIND = -3.0  # standard errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Variance of true effects near the incumbent, and how many observed ones it rests on."""

    tau2: float
    num_effects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A shrunk gain with its 95 % interval."""

    gain: float
    low: float
    high: float

    @property
    def words(self) -> str:
        return f"{self.gain:+.6f} ({self.low:+.6f} to {self.high:+.6f})"


def effect_prior(differences: Iterable[Difference], noise: Noise) -> Prior:
    """The variance of true effects by the method of moments, from every difference of the run so far."""
    near = [d for d in differences if math.isfinite(d.se) and d.t > _BEHIND]
    excess = math.fsum(d.gain**2 - d.se**2 for d in near)
    pseudo = noise.sd**2 * _PSEUDO_EFFECTS if noise.known else 0.0
    return Prior(tau2=max(0.0, (excess + pseudo) / (len(near) + _PSEUDO_EFFECTS)), num_effects=len(near))


def shrink(observed: Difference, prior: Prior, noise: Noise) -> Effect | None:
    """The effect to report; None where the noise is unknown."""
    if not noise.known:
        return None
    total = prior.tau2 + observed.se**2
    weight = prior.tau2 / total if total else 1.0
    half = interval(math.sqrt(weight) * observed.se, noise.df)
    return Effect(gain=weight * observed.gain, low=weight * observed.gain - half, high=weight * observed.gain + half)


def interval(se: float, df: float) -> float:
    """Half the width of the two-sided 95 % interval."""
    return se * float(stdtrit(min(df, 1e12), 0.975))
