"""Full and fractional factorial designs of two levels, 2^(k-p), with their resolution and aliases.

The first factors, the base, take all combinations; each further one is the product of some of them, its generator. The
generators up to 64 runs are the published minimum-aberration ones. Beyond that table products of an odd number of base
factors come first: as long as these suffice, no main effect is aliased with an interaction of two factors (resolution
IV).
Source: Box, Hunter and Hunter 2005, table 6.22; NIST/SEMATECH e-Handbook, 5.3.3.4.7; Chen, Sun and Wu 1993.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["TwoLevel", "axial", "factors_that_fit", "largest", "two_level"]

_ROMAN = ("0", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")

# (factors, log2 of runs) -> generators of the factors after the base, by the base's letters.
_GENERATORS = {
    (3, 2): "AB",
    (4, 3): "ABC",
    (5, 3): "AB AC",
    (6, 3): "AB AC BC",
    (7, 3): "AB AC BC ABC",
    (5, 4): "ABCD",
    (6, 4): "ABC BCD",
    (7, 4): "ABC BCD ACD",
    (8, 4): "BCD ACD ABC ABD",
    (9, 4): "ABC BCD ACD ABD ABCD",
    (10, 4): "ABC BCD ACD ABD ABCD AB",
    (11, 4): "ABC BCD ACD ABD ABCD AB AC",
    (6, 5): "ABCDE",
    (7, 5): "ABCD ABDE",
    (8, 5): "ABC ABD BCDE",
    (9, 5): "BCDE ACDE ABDE ABCE",
    (10, 5): "ABCD ABCE ABDE ACDE BCDE",
    (11, 5): "ABC BCD CDE ACD ADE BDE",
    (7, 6): "ABCDEF",
    (8, 6): "ABCD ABEF",
    (9, 6): "ABCD ACEF CDEF",
    (10, 6): "BCDF ACDF ABDE ABCE",
    (11, 6): "CDE ABCD ABF BDEF ADEF",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoLevel:
    """A design of 2^num_base runs for num_factors factors; `generators` holds the base factors of each further one."""

    num_factors: int
    num_base: int
    generators: tuple[frozenset[int], ...]

    @property
    def num_runs(self) -> int:
        return int(2**self.num_base)

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Levels, -1 or +1, of every factor in every run."""
        base = [levels[::-1] for levels in itertools.product((-1, 1), repeat=self.num_base)]
        return tuple((*row, *(math.prod(row[i] for i in word) for word in self.generators)) for row in base)

    @property
    def words(self) -> tuple[frozenset[int], ...]:
        """The defining relation: products of factors that are +1 in every run, the shortest first."""
        basic = [word ^ {self.num_base + i} for i, word in enumerate(self.generators)]
        found = []
        for size in range(1, len(basic) + 1):
            for some in itertools.combinations(basic, size):
                word: frozenset[int] = frozenset()
                for one in some:
                    word = word ^ one
                found.append(word)
        return tuple(sorted(found, key=lambda word: (len(word), sorted(word))))

    @property
    def resolution(self) -> int | None:
        """The length of the shortest word: III confounds main effects with interactions of two, IV these with each
        other, V neither. None of a full design, which confounds nothing."""
        return min(map(len, self.words), default=None)

    @property
    def name(self) -> str:
        """As textbooks write it: `2^(7-4) III`."""
        if self.resolution is None:
            return f"2^{self.num_factors} full"
        roman = _ROMAN[self.resolution] if self.resolution < len(_ROMAN) else str(self.resolution)
        return f"2^({self.num_factors}-{len(self.generators)}) {roman}"

    def aliases(self, effect: frozenset[int], largest: int = 2) -> tuple[frozenset[int], ...]:
        """Effects of at most so many factors that cannot be told from this one."""
        others = (effect ^ word for word in self.words)
        return tuple(sorted((o for o in others if 0 < len(o) <= largest), key=lambda word: (len(word), sorted(word))))


def two_level(num_factors: int, num_base: int) -> TwoLevel:
    """The design of 2^num_base runs. Raises ValueError where there are not enough columns for the factors."""
    if num_factors <= num_base:
        return TwoLevel(num_factors=num_factors, num_base=num_factors, generators=())
    if num_base < 2 or num_factors > 2**num_base - 1:
        raise ValueError(f"{num_factors} factors do not fit into 2^{num_base} runs of two levels")
    text = _GENERATORS.get((num_factors, num_base))
    if text:
        generators = [frozenset(ord(letter) - ord("A") for letter in word) for word in text.split()]
    else:
        generators = list(itertools.islice(_products(num_base), num_factors - num_base))
    return TwoLevel(num_factors=num_factors, num_base=num_base, generators=tuple(generators))


def largest(num_factors: int, max_runs: int) -> TwoLevel | None:
    """The design with the most runs that fits, and so with the highest resolution; None where none does."""
    for num_base in range(min(num_factors, max_runs.bit_length() - 1), 0, -1):
        if 2**num_base <= max_runs and (num_factors <= num_base or (num_base > 1 and num_factors < 2**num_base)):
            return two_level(num_factors, num_base)
    return None


def factors_that_fit(num_factors: int, max_runs: int, resolution: int) -> int:
    """How many factors, of so many, a design of at least that resolution can take in so many runs."""
    for count in range(num_factors, 0, -1):
        design = largest(count, max_runs)
        if design is not None and (design.resolution is None or design.resolution >= resolution):
            return count
    return 0


def axial(num_factors: int, which: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The centre with one factor at a time at its low and its high level: the third level that shows curvature."""
    for factor in which:
        for level in (-1, 1):
            yield tuple(level if i == factor else 0 for i in range(num_factors))


def _products(num_base: int) -> Iterator[frozenset[int]]:
    """Products of base factors: of odd numbers, which keep resolution IV, then of even ones, the longest first."""
    sizes = [*range(3, num_base + 1, 2), *range(num_base - num_base % 2, 1, -2)]
    for size in sizes:
        yield from map(frozenset, itertools.combinations(range(num_base), size))
