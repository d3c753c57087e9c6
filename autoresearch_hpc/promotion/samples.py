"""What one candidate's trials came to, and how two candidates compare."""

import functools
import math
import statistics
from dataclasses import dataclass

from autoresearch_hpc.promotion.noise import Noise
from autoresearch_hpc.records import Direction

__all__ = ["Difference", "Sample", "difference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The values of one candidate's OK trials, on one kind of GPU.

    `values` are those for which it was picked out (its trial of the round's array), `fresh` all later ones: a
    confirmation's, controls', every one of the baseline's. Fresh ones alone are replicates that measure the noise.
    `net_lines` is lines added minus lines removed.
    """

    candidate: str
    values: tuple[float, ...]
    fresh: tuple[float, ...] = ()
    net_lines: int = 0
    peak_vram_mb: float | None = None

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.all):
            raise ValueError(f"{self.candidate}: a value that is not finite in {self.all}")

    @property
    def all(self) -> tuple[float, ...]:
        return self.values + self.fresh

    @property
    def mean(self) -> float:
        """Over all trials: a first lucky one never stands for the candidate. Raises ValueError without any."""
        if not self.all:
            raise ValueError(f"{self.candidate} has no value")
        return self.all[0] if len(self.all) == 1 else _mean(self.all)


@functools.lru_cache(maxsize=1024)
def _mean(values: tuple[float, ...]) -> float:
    """Exact, so that the mean of equal values is their value, but slow; an incumbent's is asked for by every rival."""
    return statistics.mean(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """By how much a candidate is better than the incumbent (positive is better), with its standard error."""

    gain: float
    se: float
    n: int
    n0: int

    @property
    def t(self) -> float:
        """In standard errors; 0 where the noise is unknown, infinite where there is none."""
        if self.se == 0:
            return math.copysign(math.inf, self.gain) if self.gain else 0.0
        return self.gain / self.se

    def shifted(self, by: float) -> "Difference":
        return Difference(gain=self.gain + by, se=self.se, n=self.n, n0=self.n0)


def difference(
    sample: Sample, incumbent: Sample, noise: Noise, direction: Direction, price_per_gb: float = 0.0
) -> Difference:
    """Means over all trials of both, less the price of the memory that the candidate needs more (or less)."""
    n, n0 = len(sample.all), len(incumbent.all)
    gain = incumbent.mean - sample.mean if direction is Direction.min else sample.mean - incumbent.mean
    if price_per_gb and sample.peak_vram_mb is not None and incumbent.peak_vram_mb is not None:
        gain -= price_per_gb * (sample.peak_vram_mb - incumbent.peak_vram_mb) / 1024
    return Difference(gain=gain, se=noise.sd * math.sqrt(1 / n + 1 / n0), n=n, n0=n0)
