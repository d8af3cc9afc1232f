"""What rounding may add. Everything is computed in float64 and claimed in real numbers.

A dot product of k terms, summed in any order and with or without fused multiply-adds, errs by at most ``k u / (1 - k u)``
times the sum of its terms' magnitudes, u = 2^-53 (Higham 2002, section 3.1). `gamma` is twice that: the other half pays
for the rounding of the error terms themselves. That numpy and its BLAS keep to this bound is trusted.
"""

from fractions import Fraction
from typing import Any

import numpy as np

__all__ = ["LIMIT", "TINY", "Rejected", "gamma", "length", "outward"]

UNIT = 2.0**-53
LIMIT = 1e100  # larger numbers are rejected
TINY = 1e-200  # above all that underflow can hide in one step while numbers stay below LIMIT


class Rejected(Exception):
    """Why a proof is not accepted."""


def gamma(terms: int) -> float:
    """Twice the relative error bound of a dot product of so many terms."""
    return 2 * terms * UNIT / (1 - terms * UNIT)


def length(a: Any) -> Any:
    """At least the Euclidean norm of each row up to rounding: (rows, \\*shape) -> (rows,)."""
    flat = a.reshape(len(a), -1)
    return np.sqrt(np.einsum("ij,ij->i", flat, flat)) + 1e-140  # what squaring may have lost to underflow


def outward(number: Fraction, side: int) -> float:
    """The float64 at a number or next to it: at most it for side -1, at least it for side 1."""
    found = float(number)
    return float(np.nextafter(found, side * np.inf)) if (Fraction(found) - number) * side < 0 else found
