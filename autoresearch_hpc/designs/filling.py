"""Designs that fill a space: every combination of some levels, a Latin hypercube, a Sobol sequence."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar

__all__ = ["full_grid", "latin_hypercube", "sobol"]

T = TypeVar("T")


def full_grid(axes: Sequence[Sequence[T]]) -> Iterator[tuple[T, ...]]:
    """Every combination; the last axis varies fastest."""
    return itertools.product(*axes)


def latin_hypercube(num_factors: int, num_runs: int, seed: int) -> list[tuple[float, ...]]:
    """Positions in the unit cube: each factor has one run in each of num_runs equal parts of its range."""
    from scipy.stats import qmc

    points = qmc.LatinHypercube(d=num_factors, rng=seed, optimization="random-cd").random(num_runs)
    return [tuple(map(float, point)) for point in points]


def sobol(num_factors: int, num_runs: int, seed: int) -> list[tuple[float, ...]]:
    """Positions in the unit cube: the first points of a scrambled Sobol sequence, balanced for powers of two."""
    from scipy.stats import qmc

    # a whole power of two is drawn: the sequence is balanced there alone, and scipy says so where it is not
    points = qmc.Sobol(d=num_factors, scramble=True, rng=seed).random_base2(max(num_runs - 1, 0).bit_length())
    return [tuple(map(float, point)) for point in points[:num_runs]]
