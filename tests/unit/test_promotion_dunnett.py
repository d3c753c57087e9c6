"""Dunnett's distribution against his tables, Student's t, and simulation."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from autoresearch_hpc.promotion.dunnett import critical, p_value

# Dunnett 1955, JASA 50, tables 1a and 1b: one-sided, equal numbers in all arms, k = 1 ... 9.
TABLE_05 = {
    5: [2.02, 2.44, 2.68, 2.85, 2.98, 3.08, 3.16, 3.24, 3.30],
    10: [1.81, 2.15, 2.34, 2.47, 2.56, 2.64, 2.70, 2.76, 2.81],
    20: [1.72, 2.03, 2.19, 2.30, 2.39, 2.46, 2.51, 2.56, 2.60],
    math.inf: [1.64, 1.92, 2.06, 2.16, 2.23, 2.29, 2.34, 2.38, 2.42],
}
TABLE_01 = {10: [2.76, 3.11, 3.31, 3.45, 3.56, 3.64, 3.71, 3.78, 3.83]}


@pytest.mark.parametrize("df", TABLE_05)
def test_the_five_percent_table(df: float) -> None:
    assert [critical(0.05, k, 1, 1, df) for k in range(1, 10)] == pytest.approx(TABLE_05[df], abs=0.0055)


def test_the_one_percent_table() -> None:
    assert [critical(0.01, k, 1, 1, 10) for k in range(1, 10)] == pytest.approx(TABLE_01[10], abs=0.0055)


@pytest.mark.parametrize("df", [1, 4, 30.5])
def test_one_candidate_is_students_t(df: float) -> None:
    assert p_value(2.5, 1, 1, 3, df) == pytest.approx(t.sf(2.5, df), rel=1e-9)
    assert critical(0.05, 1, 3, 2, df) == pytest.approx(t.isf(0.05, df), rel=1e-9)
    assert p_value(2.5, 1, 1, 3, math.inf) == pytest.approx(norm.sf(2.5), rel=1e-9)


def test_a_well_known_control_makes_them_independent() -> None:
    assert p_value(2.0, 16, 1, 10**9, math.inf) == pytest.approx(1 - norm.cdf(2.0) ** 16, abs=1e-6)


@pytest.mark.parametrize(("k", "n", "n0", "df"), [(1, 1, 1, 3), (4, 2, 3, 6), (16, 1, 3, 12), (16, 5, 6, 4)])
def test_critical_and_p_are_inverses(k: int, n: int, n0: int, df: float) -> None:
    for alpha in (0.2, 0.05, 0.001):
        assert p_value(critical(alpha, k, n, n0, df), k, n, n0, df) == pytest.approx(alpha, rel=1e-3)


@pytest.mark.parametrize(("k", "n", "n0", "df"), [(16, 1, 3, 6), (4, 5, 3, 10)])
def test_by_simulation(k: int, n: int, n0: int, df: int) -> None:
    rng, num = np.random.default_rng(0), 200_000
    control = rng.normal(size=(num, 1)) / math.sqrt(n0)
    sd = np.sqrt(rng.chisquare(df, (num, 1)) / df)
    largest = ((rng.normal(size=(num, k)) / math.sqrt(n) - control) / (sd * math.sqrt(1 / n + 1 / n0))).max(axis=1)
    for bound in (1.0, 2.5, 4.0):
        assert np.mean(largest >= bound) == pytest.approx(p_value(bound, k, n, n0, df), abs=0.004)


def test_more_candidates_and_less_knowledge_ask_for_more() -> None:
    by_k = [critical(0.05, k, 1, 3, 8) for k in (1, 2, 4, 16, 64, 256)]
    by_df = [critical(0.05, 16, 1, 3, df) for df in (math.inf, 100, 20, 8, 3, 1)]
    assert by_k == sorted(set(by_k))
    assert by_df == sorted(set(by_df))
    assert all(critical(0.05, k, 1, 3, 8) < t.isf(0.05 / k, 8) for k in (2, 16, 256))  # sharper than Bonferroni


def test_the_ends_of_the_scale() -> None:
    assert p_value(math.inf, 16, 1, 3, 6) == 0.0
    assert p_value(-math.inf, 16, 1, 3, 6) == 1.0
    assert p_value(-50.0, 16, 1, 3, math.inf) == pytest.approx(1.0)


@pytest.mark.parametrize(("k", "n", "n0", "df"), [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)])
def test_nothing_to_compare(k: int, n: int, n0: int, df: float) -> None:
    with pytest.raises(ValueError, match="no comparison"):
        p_value(1.0, k, n, n0, df)
