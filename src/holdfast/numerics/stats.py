"""Exact and approximate intervals and tests for counts; arrays in, arrays out, on the host."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from holdfast.core.errors import UsageError

__all__ = ["binomial_p_value", "clopper_pearson", "deviations_below_median", "one_sided_lower", "wilson"]

Array = NDArray[np.float64]

_NORMAL_MAD = 1.4826  # 1 / the upper quartile of a standard normal variable


def _special() -> Any:
    # Imported on first use: the command line's help must not pay for scipy.
    from scipy import special  # pyright: ignore[reportMissingTypeStubs]

    return special


def _counts(k: ArrayLike, n: ArrayLike, alpha: float | None = None) -> tuple[Array, Array]:
    some, all_ = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if np.any(some < 0) or np.any(some > all_):
        raise UsageError("a count must lie between 0 and the number of trials")
    if alpha is not None and not 0 < alpha < 1:
        raise UsageError(f"alpha must lie between 0 and 1, got {alpha}")
    return some, all_


def one_sided_lower(k: ArrayLike, n: ArrayLike, alpha: float) -> Array:
    """The Clopper-Pearson lower bound that holds with probability at least 1 - alpha (smoothing: Cohen et al. 2019).

    Args:
        k: successes, any shape.
        n: trials, broadcastable with k.
        alpha: the chance of being wrong.

    Returns:
        float64 of the broadcast shape; 0 where k is 0.

    Example:
        >>> round(float(one_sided_lower(100, 100, 0.001)), 6)  # alpha ** (1 / n)
        0.933254
    """
    some, all_ = _counts(k, n, alpha)
    one = np.maximum(some, 1)
    return np.where(some == 0, 0.0, _special().betaincinv(one, np.maximum(all_ - one + 1, 1), alpha))


def clopper_pearson(k: ArrayLike, n: ArrayLike, alpha: float = 0.05) -> tuple[Array, Array]:
    """The exact two-sided interval of a proportion, coverage at least 1 - alpha (Clopper & Pearson 1934).

    Args:
        k: successes, any shape.
        n: trials, broadcastable with k.
        alpha: one less the coverage; half of it at each end.

    Returns:
        (lower, upper), float64 of the broadcast shape; (0, 1) without trials.

    Example:
        >>> low, high = clopper_pearson(8, 10)
        >>> round(float(low), 4), round(float(high), 4)
        (0.4439, 0.9748)
    """
    some, all_ = _counts(k, n, alpha)
    # The upper end of k successes is one less the lower end of n - k failures.
    return one_sided_lower(some, all_, alpha / 2), 1.0 - one_sided_lower(all_ - some, all_, alpha / 2)


def wilson(k: ArrayLike, n: ArrayLike, alpha: float = 0.05) -> tuple[Array, Array]:
    """The score interval of a proportion (Wilson 1927): shorter than the exact one, its coverage holds on average.

    Returns:
        (lower, upper), float64 of the broadcast shape; (0, 1) without trials.

    Example:
        >>> low, high = wilson(8, 10)
        >>> round(float(low), 4), round(float(high), 4)
        (0.4902, 0.9433)
    """
    some, all_ = _counts(k, n, alpha)
    z2 = float(_special().ndtri(1 - alpha / 2)) ** 2
    trials = np.maximum(all_, 1)
    rate = some / trials
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = np.sqrt(z2) / (1 + z2 / trials) * np.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2))
    none = all_ == 0
    low, high = np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
    return np.where(none | (some == 0), 0.0, low), np.where(none | (some == all_), 1.0, high)


def binomial_p_value(
    k: ArrayLike, n: ArrayLike, p: float, alternative: Literal["two-sided", "greater", "less"] = "two-sided"
) -> Array:
    """The chance of a count at least as extreme as k among n when each succeeds with probability p.

    Args:
        k: successes, any shape.
        n: trials, broadcastable with k.
        p: the hypothesis.
        alternative: ``greater`` is P(X >= k), ``less`` P(X <= k), ``two-sided`` twice the smaller (at most 1), which
            for p = 1/2 is the exact test that smoothed prediction abstains by (Hung & Fithian 2019; Cohen et al. 2019).

    Returns:
        float64 of the broadcast shape.

    Example:
        >>> round(float(binomial_p_value(9, 10, 0.5)), 6)
        0.021484
    """
    some, all_ = _counts(k, n)
    special = _special()
    # Regularised incomplete beta functions: exact tails without a sum, and no cancellation at either end.
    # The clamps only keep the arguments legal where the answer is 1 anyway.
    one = np.maximum(some, 1)
    upper = np.where(some == 0, 1.0, special.betainc(one, np.maximum(all_ - one + 1, 1), p))
    lower = np.where(some == all_, 1.0, special.betainc(np.maximum(all_ - some, 1), some + 1, 1 - p))
    if alternative == "greater":
        return upper
    if alternative == "less":
        return lower
    return np.minimum(1.0, 2 * np.minimum(upper, lower))


def deviations_below_median(values: ArrayLike) -> Array:
    """How far each value lies below the median, in normal deviations; 0 for the others.

    The deviation is the median absolute one times 1.4826, which for a normal variable is its standard deviation; an even
    number of values has the mean of the two in the middle for its median.

    Args:
        values: (n,), n at least 1.

    Returns:
        (n,) float64, at least 0.

    Example:
        >>> deviations_below_median([1.0, 7.0, 8.0, 9.0, 10.0]).round(3).tolist()
        [4.721, 0.674, 0.0, 0.0, 0.0]
    """
    given = np.asarray(values, dtype=np.float64)
    below = np.median(given) - given
    deviation = _NORMAL_MAD * np.median(np.abs(below))
    return np.maximum(below / max(float(deviation), float(np.finfo(np.float64).eps)), 0)
