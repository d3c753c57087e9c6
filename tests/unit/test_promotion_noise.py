"""The pooled noise and what a selected gain is worth."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from autoresearch_hpc.promotion import (
    Difference,
    KnownNoise,
    Noise,
    Prior,
    Replicates,
    effect_prior,
    pool,
    shrink,
)


def group(*values: float, kind: str = "H200") -> Replicates:
    return Replicates(kind=kind, values=values)


def test_by_hand() -> None:
    noise = pool([group(1.0, 3.0), group(10.0, 11.0, 12.0), group(7.0)])
    assert (noise.df, noise.measured_df, noise.kind) == (3.0, 3.0, "H200")
    assert noise.sd == pytest.approx(math.sqrt((2 + 2) / 3))  # squares about each group's own mean


def test_known_noise_counts_as_degrees_of_freedom() -> None:
    noise = pool([group(1.0, 3.0)], KnownNoise(sd=2.0, df=4))
    assert (noise.df, noise.measured_df) == (5.0, 1.0)
    assert noise.sd == pytest.approx(math.sqrt((2 + 4 * 4) / 5))
    assert noise.words == "noise sd=1.897367 of df=5 (1 measured and 4 configured)"


def test_pooling_in_two_goes_is_pooling_at_once() -> None:
    first = pool([group(1.0, 3.0), group(5.0, 5.5)])
    second = pool([group(2.0, 2.5, 4.0)], KnownNoise(sd=first.sd, df=first.df))
    at_once = pool([group(1.0, 3.0), group(5.0, 5.5), group(2.0, 2.5, 4.0)])
    assert (second.sd, second.df) == (pytest.approx(at_once.sd), at_once.df)


def test_a_lone_baseline_falls_back_and_says_so() -> None:
    noise = pool([group(0.99)], KnownNoise(sd=0.0006, df=4))
    assert (noise.sd, noise.df, noise.known) == (pytest.approx(0.0006), 4.0, True)
    assert noise.words == "noise sd=0.000600, as configured: no candidate was run twice yet"


def test_without_either_nothing_is_known() -> None:
    noise = pool([group(0.99)])
    assert (noise.sd, noise.df, noise.known) == (math.inf, 0.0, False)
    assert noise.words == "noise unknown: no candidate was run twice and none is configured"
    assert not pool([]).known


def test_kinds_do_not_mix() -> None:
    with pytest.raises(ValueError, match="replicates of H100 and H200 do not compare"):
        pool([group(1.0, 2.0), group(1.0, 2.0, kind="H100")])


def test_values_must_be_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        group(1.0, math.nan)
    with pytest.raises(ValueError, match="known noise"):
        KnownNoise(sd=0.0, df=4)


def test_shift_and_scale() -> None:
    values = [group(1.0, 3.0, 2.5), group(4.0, 4.5)]
    scaled = [Replicates(kind="H200", values=tuple(100 + 3 * v for v in g.values)) for g in values]
    assert pool(scaled).sd == pytest.approx(3 * pool(values).sd)


def test_the_estimate_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    draws = [pool([group(*rng.normal(0, 2, 3)), group(*rng.normal(5, 2, 2))]).sd ** 2 for _ in range(5000)]
    assert np.mean(draws) == pytest.approx(4.0, rel=0.05)


# effects


def seen(gain: float, se: float = 1.0) -> Difference:
    return Difference(gain=gain, se=se, n=1, n0=3)


NOISE = Noise(sd=1.0, df=math.inf)


def test_before_any_effect_all_sizes_are_as_likely() -> None:
    prior = effect_prior([], NOISE)
    assert prior is not None
    assert prior.weights == pytest.approx([1 / 6] * 6)
    assert prior.sds == (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


def test_the_prior_learns_the_size_of_effects() -> None:
    none = effect_prior([seen(0.1), seen(-0.2), seen(-40.0)] * 50, NOISE)
    large = effect_prior([seen(9.0), seen(8.0), seen(-2.9)] * 50, NOISE)
    assert none is not None
    assert large is not None
    assert none.num_effects == 100  # the hopeless ones say nothing of the others
    assert none.weights[0] + none.weights[1] > 0.8
    assert large.weights[4] + large.weights[5] > 0.8
    assert sum(large.weights) == pytest.approx(1.0)


def test_shrinking_by_hand() -> None:
    effect = shrink(seen(3.0), Prior(sds=(math.sqrt(2),), weights=(1.0,)), NOISE)
    assert effect is not None
    assert effect.gain == pytest.approx(3 * 2 / 3)
    assert effect.high - effect.gain == pytest.approx(1.959964 * math.sqrt(2 / 3), rel=1e-5)
    assert effect.words == "+2.000000 (+0.399696 to +3.600304)"


def test_shrinking_between_nothing_and_something_by_hand() -> None:
    effect = shrink(seen(2.0), Prior(sds=(0.0, math.sqrt(3)), weights=(0.5, 0.5)), NOISE)
    nothing, something = math.exp(-4 / 2), math.exp(-4 / 8) / 2
    assert effect is not None
    share = something / (nothing + something)
    assert effect.gain == pytest.approx(share * 1.5)
    spread = share * (3 / 4 + (1.5 - effect.gain) ** 2) + (1 - share) * effect.gain**2
    assert effect.high - effect.gain == pytest.approx(1.959964 * math.sqrt(spread), rel=1e-5)


def test_without_noise_a_gain_is_what_it_is() -> None:
    exact = Noise(sd=0.0, df=2.0)
    assert effect_prior([seen(3.0, 0.0)], exact) is None
    effect = shrink(seen(3.0, 0.0), None, exact)
    assert effect is not None
    assert (effect.gain, effect.low, effect.high) == (3.0, 3.0, 3.0)


def test_unknown_noise_shrinks_nothing() -> None:
    unknown = Noise(sd=math.inf, df=0.0)
    assert effect_prior([seen(1.0, math.inf)], unknown) is None
    assert shrink(seen(1.0, math.inf), None, unknown) is None


def few_large(rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(96) < 0.05, rng.uniform(3, 6, 96), 0.0)


def many_small(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 0.7, 96)


@pytest.mark.parametrize(("draw", "curse"), [(many_small, 1.0), (few_large, 0.3)])
def test_the_winners_curse_is_lifted(draw: Callable[[np.random.Generator], np.ndarray], curse: float) -> None:
    """The best of 16 is worth less than its face value; the shrunk gain is about right, and its interval covers."""
    rng, claimed, shrunk, true, covered = np.random.default_rng(0), [], [], [], []
    for _ in range(400):
        effects = draw(rng)
        observed = [seen(float(g)) for g in effects + rng.normal(0, 1, len(effects))]
        prior = effect_prior(observed, NOISE)
        i = int(np.argmax([d.gain for d in observed[:16]]))
        effect = shrink(observed[i], prior, NOISE)
        assert effect is not None
        claimed.append(observed[i].gain)
        shrunk.append(effect.gain)
        true.append(effects[i])
        covered.append(effect.low <= effects[i] <= effect.high)
    luck = np.mean(claimed) - np.mean(true)
    assert luck > curse
    assert abs(np.mean(shrunk) - np.mean(true)) < luck / 2
    assert np.mean(covered) > 0.88
