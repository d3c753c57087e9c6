"""How far replicates of one candidate spread: the standard deviation of a single trial, with its degrees of freedom.

One component, on purpose. Trials of an array land on whatever node is free, so a node's own deviation is part of a
trial's noise, and replicates that the queue scattered measure both together. Replicates that shared one node do not:
they make the noise look smaller than it is. A known noise (`KnownNoise`), counted as so many degrees of freedom, guards
against that and carries the first rounds, when two degrees of freedom are all there is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from autoresearch_hpc.gains import Noise

__all__ = ["KnownNoise", "Noise", "Replicates", "pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicates:
    """Values of one candidate under fresh seeds. `kind` names what may be compared: GPU model, tier, task, data."""

    kind: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"replicates that are not finite: {self.values}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNoise:
    """A standard deviation known beforehand, worth as much as `df` degrees of freedom measured."""

    sd: float
    df: float

    def __post_init__(self) -> None:
        if not (0 < self.sd < math.inf and self.df > 0):
            raise ValueError(f"a known noise of sd={self.sd}, df={self.df}")


def pool(groups: Sequence[Replicates], prior: KnownNoise | None = None) -> Noise:
    """The pooled standard deviation within groups, with the known noise as further degrees of freedom.

    Raises ValueError when the groups are of more than one kind. A value for which a candidate was picked out is no
    replicate: give its fresh ones alone.
    """
    kinds = sorted({group.kind for group in groups})
    if len(kinds) > 1:
        raise ValueError(f"replicates of {' and '.join(kinds)} do not compare")
    kind = kinds[0] if kinds else ""
    several = [(group.values, mean(group.values)) for group in groups if len(group.values) > 1]
    squares = [(value - middle) ** 2 for values, middle in several for value in values]
    measured = sum(max(0, len(group.values) - 1) for group in groups)
    total, df = math.fsum(squares), float(measured)
    if prior:
        total, df = total + prior.df * prior.sd**2, df + prior.df
    if not df:
        return Noise(sd=math.inf, df=0.0, kind=kind)
    return Noise(sd=math.sqrt(total / df), df=df, kind=kind, measured_df=float(measured))
