"""Designs against what textbooks say of them."""

import itertools
import math
from collections import Counter

import pytest

from autoresearch_hpc.designs import axial, factors_that_fit, full_grid, largest, latin_hypercube, sobol, two_level


def word(letters: str) -> frozenset[int]:
    return frozenset(ord(letter) - ord("A") for letter in letters)


# Factors, base factors, the name, and how many words of each length the defining relation has.
# Source: Box, Hunter and Hunter 2005, table 6.22; Chen, Sun and Wu 1993, tables 2 and 3.
TEXTBOOK = [
    (3, 2, "2^(3-1) III", {3: 1}),
    (4, 3, "2^(4-1) IV", {4: 1}),
    (5, 3, "2^(5-2) III", {3: 2, 4: 1}),
    (6, 3, "2^(6-3) III", {3: 4, 4: 3}),
    (7, 3, "2^(7-4) III", {3: 7, 4: 7, 7: 1}),
    (5, 4, "2^(5-1) V", {5: 1}),
    (6, 4, "2^(6-2) IV", {4: 3}),
    (7, 4, "2^(7-3) IV", {4: 7}),
    (8, 4, "2^(8-4) IV", {4: 14, 8: 1}),
    (9, 4, "2^(9-5) III", {3: 4, 4: 14, 5: 8, 7: 4, 8: 1}),
    (6, 5, "2^(6-1) VI", {6: 1}),
    (7, 5, "2^(7-2) IV", {4: 1, 5: 2}),
    (8, 5, "2^(8-3) IV", {4: 3, 5: 4}),
    (9, 5, "2^(9-4) IV", {4: 6, 5: 8, 8: 1}),
    (10, 5, "2^(10-5) IV", {4: 10, 5: 16, 8: 5}),
    (11, 5, "2^(11-6) IV", {4: 25, 6: 27, 8: 10, 10: 1}),
    (8, 6, "2^(8-2) V", {5: 2, 6: 1}),
    (9, 6, "2^(9-3) IV", {4: 1, 5: 4, 6: 2}),
    (10, 6, "2^(10-4) IV", {4: 2, 5: 8, 6: 4, 8: 1}),
    (11, 6, "2^(11-5) IV", {4: 4, 5: 14, 6: 8, 8: 3, 9: 2}),
]


@pytest.mark.parametrize(("num_factors", "num_base", "name", "lengths"), TEXTBOOK, ids=[t[2] for t in TEXTBOOK])
def test_fractions_are_the_published_ones(num_factors: int, num_base: int, name: str, lengths: dict[int, int]) -> None:
    design = two_level(num_factors, num_base)
    assert design.name == name
    assert Counter(len(one) for one in design.words) == lengths


@pytest.mark.parametrize(("num_factors", "num_base"), [(k, b) for b in range(2, 7) for k in range(1, 2**b)])
def test_every_design_is_balanced_and_orthogonal(num_factors: int, num_base: int) -> None:
    design = two_level(num_factors, num_base)
    rows = design.rows
    assert len(rows) == len(set(rows)) == design.num_runs == 2 ** min(num_factors, num_base)
    columns = list(zip(*rows, strict=True))
    assert all(sum(column) == 0 for column in columns)
    for a, b in itertools.combinations(columns, 2):
        assert sum(x * y for x, y in zip(a, b, strict=True)) == 0


@pytest.mark.parametrize(("num_factors", "num_base"), [(7, 3), (4, 3), (5, 4), (10, 4), (14, 5)])
def test_words_are_products_that_never_change(num_factors: int, num_base: int) -> None:
    design = two_level(num_factors, num_base)
    assert len(design.words) == 2 ** (num_factors - num_base) - 1
    for one in design.words:
        assert {math.prod(row[i] for i in one) for row in design.rows} == {1}


def test_aliases_of_the_half_fraction_of_four() -> None:
    design = two_level(4, 3)  # D = ABC
    assert design.aliases(word("AB")) == (word("CD"),)
    assert design.aliases(word("AC")) == (word("BD"),)
    assert design.aliases(word("A")) == ()  # with BCD alone
    assert design.aliases(word("A"), largest=3) == (word("BCD"),)


def test_aliases_of_the_saturated_eight_runs() -> None:
    design = two_level(7, 3)  # D = AB, E = AC, F = BC, G = ABC
    assert design.aliases(word("A")) == (word("BD"), word("CE"), word("FG"))


def test_five_factors_in_sixteen_runs_tell_all_pairs_apart() -> None:
    design = two_level(5, 4)
    for size in (1, 2):
        for effect in itertools.combinations(range(5), size):
            assert design.aliases(frozenset(effect)) == ()


@pytest.mark.parametrize("num_factors", [6, 12, 16])
def test_32_runs_keep_resolution_iv_up_to_16_factors(num_factors: int) -> None:
    assert (two_level(num_factors, 5).resolution or 0) >= 4


@pytest.mark.parametrize(
    ("num_factors", "max_runs", "name"),
    [
        (3, 8, "2^3 full"),
        (3, 100, "2^3 full"),
        (4, 15, "2^(4-1) IV"),
        (10, 16, "2^(10-6) III"),
        (10, 63, "2^(10-5) IV"),
        (1, 2, "2^1 full"),
        (17, 32, "2^(17-12) III"),
    ],
)
def test_the_largest_that_fits(num_factors: int, max_runs: int, name: str) -> None:
    design = largest(num_factors, max_runs)
    assert design is not None
    assert design.name == name
    assert design.num_runs <= max_runs


def test_what_does_not_fit() -> None:
    assert largest(4, 7) is None
    assert largest(1, 1) is None
    with pytest.raises(ValueError, match="8 factors do not fit into 2\\^3 runs"):
        two_level(8, 3)


@pytest.mark.parametrize(
    ("num_factors", "max_runs", "resolution", "fit"),
    [(10, 8, 3, 7), (10, 16, 4, 8), (10, 16, 5, 5), (10, 16, 3, 10), (10, 4, 3, 3), (3, 1, 3, 0), (2, 3, 3, 1)],
)
def test_how_many_factors_fit(num_factors: int, max_runs: int, resolution: int, fit: int) -> None:
    assert factors_that_fit(num_factors, max_runs, resolution) == fit


def test_axial_points_move_one_factor() -> None:
    assert list(axial(3, [0, 2])) == [(-1, 0, 0), (1, 0, 0), (0, 0, -1), (0, 0, 1)]


def test_grids() -> None:
    assert list(full_grid([[1, 2], ["a"], [True, False]])) == [
        (1, "a", True),
        (1, "a", False),
        (2, "a", True),
        (2, "a", False),
    ]


def test_a_latin_hypercube_has_one_run_in_each_stratum() -> None:
    points = latin_hypercube(4, 10, seed=1)
    for column in zip(*points, strict=True):
        assert sorted(int(x * 10) for x in column) == list(range(10))
    assert points == latin_hypercube(4, 10, seed=1) != latin_hypercube(4, 10, seed=2)


@pytest.mark.parametrize("num_runs", [1, 7, 16])
def test_sobol_points_are_spread(num_runs: int) -> None:
    points = sobol(3, num_runs, seed=1)
    assert len(points) == num_runs
    assert points == sobol(3, num_runs, seed=1)
    if num_runs == 16:  # a power of two: every half of every factor has as many
        assert all(sum(x < 0.5 for x in column) == 8 for column in zip(*points, strict=True))
