"""Intervals and tests against scipy.stats."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from holdfast.core.errors import UsageError
from holdfast.numerics.stats import binomial_p_value, clopper_pearson, deviations_below_median, one_sided_lower, wilson

CASES = [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (500, 1000), (999, 1000), (99_000, 100_000), (100_000, 100_000)]


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
@pytest.mark.parametrize(("k", "n"), CASES)
def test_intervals(k: int, n: int, alpha: float) -> None:
    result = stats.binomtest(k, n)
    for ours, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
        low, high = ours(k, n, alpha)
        expected = result.proportion_ci(1 - alpha, method=method)
        np.testing.assert_allclose([low, high], [expected.low, expected.high], rtol=1e-8, atol=1e-14)
    one_sided = stats.binomtest(k, n, alternative="greater").proportion_ci(1 - alpha).low
    np.testing.assert_allclose(one_sided_lower(k, n, alpha), one_sided, rtol=1e-9)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
@pytest.mark.parametrize(("k", "n"), CASES)
def test_p_values(k: int, n: int, p: float) -> None:
    for side in ("greater", "less"):
        np.testing.assert_allclose(
            binomial_p_value(k, n, p, side), stats.binomtest(k, n, p, side).pvalue, rtol=1e-8, atol=1e-300
        )
    both = binomial_p_value(k, n, p)
    assert 0 <= both <= 1
    if p == 0.5:
        np.testing.assert_allclose(both, stats.binomtest(k, n, p).pvalue, rtol=1e-8, atol=1e-300)


def test_vectors_and_no_trials() -> None:
    k, n = np.array([[0, 5], [10, 0]]), np.array([[10, 10], [10, 0]])
    low, high = clopper_pearson(k, n)
    assert low.shape == (2, 2)
    assert (low[1, 1], high[1, 1]) == (0.0, 1.0)
    assert (low <= high).all()
    assert tuple(float(v) for v in wilson(0, 0)) == (0.0, 1.0)
    assert float(binomial_p_value(0, 0, 0.5)) == 1.0
    assert float(one_sided_lower(0, 0, 0.05)) == 0.0


def test_coverage_of_the_exact_interval() -> None:
    n, p, alpha = 30, 0.83, 0.05
    k = np.arange(n + 1)
    low, high = clopper_pearson(k, n, alpha)
    weight = stats.binom.pmf(k, n, p)
    assert weight[(low <= p) & (p <= high)].sum() >= 1 - alpha
    assert weight[one_sided_lower(k, n, alpha) <= p].sum() >= 1 - alpha


def test_impossible_counts() -> None:
    with pytest.raises(UsageError, match="between 0 and"):
        wilson(11, 10)
    with pytest.raises(UsageError, match="alpha"):
        clopper_pearson(1, 10, 0.0)


def test_scipy_is_imported_on_first_use() -> None:
    code = "import sys, holdfast.numerics.stats; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_deviations_below_the_median_are_scipy_s(n: int) -> None:
    values = np.random.default_rng(n).gamma(2.0, size=n)
    below = np.maximum(np.median(values) - values, 0)
    wanted = below if n == 1 else below / stats.median_abs_deviation(values, scale="normal")
    np.testing.assert_allclose(deviations_below_median(values), wanted, rtol=1e-5)


def test_an_outlier_among_equal_values_is_far_and_a_large_one_is_none() -> None:
    assert deviations_below_median([1.0, 9.0, 9.0, 9.0, 50.0])[0] > 1e6
    assert deviations_below_median([1.0, 9.0, 9.0, 9.0, 50.0])[4] == 0
