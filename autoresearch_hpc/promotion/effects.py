"""What a gain is worth once it was picked out for being large (the winner's curse).

Observed gain d = true effect + error, of standard error s. True effects of a run's proposals are taken as a mixture of
normals around zero, from no effect at all to eight times the noise; how much of each the run's own gains tell. Given
one normal of variance tau^2 the expected effect is d * tau^2 / (tau^2 + s^2), whatever was picked; the mixture weighs
these by how well each explains d. So a gain within the noise shrinks to almost nothing, and a large one hardly. A
single normal would not do: a run has many neutral proposals and a few real gains, and it shrinks the latter by a third.
Proposals that are clearly behind are left out: the long tail of bad ideas says nothing of those near the incumbent.

Source: Stephens 2017, "False discovery rates: a new deal", Biostatistics 18 (the mixture); Efron 2011, "Tweedie's
formula and selection bias", JASA 106 (why selection needs no further correction under the prior).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from autoresearch_hpc.gains import Gain, Noise
from autoresearch_hpc.promotion.samples import Difference

__all__ = ["Effect", "Prior", "as_gain", "effect_prior", "shrink"]

_SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the noise of a single trial
_ROUNDS = 100  # of expectation and maximization; the weights settle long before
_BEHIND = -3.0  # standard errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Normals around zero: standard deviations and weights, and how many observed effects these rest on."""

    sds: tuple[float, ...]
    weights: tuple[float, ...]
    num_effects: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A shrunk gain with its 95 % interval."""

    gain: float
    low: float
    high: float

    @property
    def words(self) -> str:
        return f"{self.gain:+.6f} ({self.low:+.6f} to {self.high:+.6f})"


def effect_prior(differences: Iterable[Difference], noise: Noise) -> Prior | None:
    """The mixture of true effects, from every difference of the run so far; None where there is no noise to tell.

    Every normal starts with one effect to its credit, so that a run's first few do not decide alone.
    """
    import numpy as np

    if not noise.known or noise.sd == 0:
        return None
    near = [d for d in differences if 0 < d.se < math.inf and d.t > _BEHIND]
    sds = noise.sd * np.array(_SCALES)
    weights = np.full(len(sds), 1 / len(sds))
    if near:
        variance = np.array([d.se for d in near])[:, None] ** 2 + sds**2
        log = -(np.array([d.gain for d in near])[:, None] ** 2) / variance / 2 - np.log(variance) / 2
        likelihood = np.exp(log - log.max(axis=1, keepdims=True))
        for _ in range(_ROUNDS):
            share = likelihood * weights
            share /= share.sum(axis=1, keepdims=True)
            weights = (share.sum(axis=0) + 1) / (len(near) + len(sds))
    return Prior(sds=tuple(sds.tolist()), weights=tuple(weights.tolist()), num_effects=len(near))


def shrink(observed: Difference, prior: Prior | None, noise: Noise) -> Effect | None:
    """The effect to report; None where nothing is known of the noise."""
    import numpy as np

    if not noise.known:
        return None
    if prior is None or observed.se == 0:
        half = interval(observed.se, noise.df)
        return Effect(gain=observed.gain, low=observed.gain - half, high=observed.gain + half)
    tau2 = np.array(prior.sds) ** 2
    variance = tau2 + observed.se**2
    log = np.log(prior.weights) - observed.gain**2 / variance / 2 - np.log(variance) / 2
    share = np.exp(log - log.max())
    share /= share.sum()
    means = observed.gain * tau2 / variance
    gain = float(share @ means)
    spread = float(share @ (tau2 / variance * observed.se**2 + (means - gain) ** 2))
    half = interval(math.sqrt(spread), noise.df)
    return Effect(gain=gain, low=gain - half, high=gain + half)


def as_gain(observed: Difference, df: float, effect: Effect | None = None) -> Gain:
    """What is journaled of a difference; of noise that is unknown (df is 0), or as good as unknown, no number."""
    margin = interval(observed.se, df) if df else math.inf
    known = math.isfinite(margin)
    return Gain(
        value=observed.gain,
        margin=margin if known else None,
        expected=effect.gain if effect and known else None,
        expected_margin=effect.high - effect.gain if effect and known else None,
    )


def interval(se: float, df: float) -> float:
    """Half the width of the two-sided 95 % interval."""
    from scipy.special import stdtrit

    return se * float(stdtrit(min(df, 1e12), 0.975))
