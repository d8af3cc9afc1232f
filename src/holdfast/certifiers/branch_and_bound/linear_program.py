"""The linear and the integer program of a graph over a box, for HiGHS. Nothing here is sound: it holds up to tolerances.

Columns are the variables of the relaxation, then t, the largest of the rows in question, which is minimised, then a
slack that every line and split may use at a price: a part of the set that is empty still has an optimum and multipliers.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse  # pyright: ignore[reportMissingTypeStubs]

from holdfast.certifiers.relaxation.relaxation import Relaxation

__all__ = ["Floats", "Optimum", "Program"]

Floats = NDArray[np.float64]
_highs: Any = optimize
_csr_array: Any = sparse.csr_array
_Rows = tuple[Floats, Floats]  # matrix and limits of ``matrix . columns <= limits``
_ON = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Optimum:
    """What HiGHS says of a linear program.

    Attributes:
        value: the least t.
        variables: where, (v,).
        weights: multipliers of the rows, (rows,), at least 0 and about 1 in sum.
        slopes: (k,) lower slopes of the kinks, as their multipliers mix the two lines below.
        multipliers: (k,) of the splits, at least 0.
        gain: (k,) what closing the gap of a kink between its lines is worth; 0 where there is none.
    """

    value: float
    variables: Floats
    weights: Floats
    slopes: Floats
    multipliers: Floats
    gain: Floats


class Program:
    """Minimises the largest of some rows.

    Args:
        relaxation: the graph over the box.
        rows: (rows, 1 + v) expressions.
    """

    def __init__(self, relaxation: Relaxation, rows: Floats) -> None:
        kinks = relaxation.kinks
        self.least, self.most = (t.numpy() for t in relaxation.box)
        self.z, self.low, self.high = kinks.z.numpy(), kinks.low.numpy(), kinks.high.numpy()
        self.below, self.above, self.flat = kinks.below.numpy(), kinks.above.numpy(), kinks.flat.numpy()
        self.rows, count = rows, len(self.least)
        self.own = len(relaxation.inputs) + np.arange(len(self.z))  # the column of each kink
        self.bends = ~np.isnan(self.flat)
        # the line a >= 0 of a ReLU is a bound of its variable and needs no row
        self.lined = ~(self.bends & (self.flat == 0))
        self.price = 1e5 * (1.0 + float(np.abs(rows[:, 1:]).max(initial=0.0)))
        self.width = count + 2
        numbers = (self.least, self.most, self.z, self.below, self.above, rows)
        self.finite = all(bool(np.isfinite(part).all()) for part in numbers)

    def _line(self, line: Floats, sign: int, which: Any = slice(None)) -> _Rows:
        """``sign * (a - slope z - intercept) <= 0`` for some kinks."""
        z, (slope, intercept) = self.z[which], line[which].T
        matrix = np.zeros((len(z), self.width))
        matrix[:, :-2] = -sign * slope[:, None] * z[:, 1:]
        matrix[np.arange(len(z)), self.own[which]] += sign
        return matrix, sign * (slope * z[:, 0] + intercept)

    def _lines(self) -> tuple[Floats, Floats, Floats]:
        return self.below[:, 0], self.below[:, 1], self.above

    def _rows(self) -> _Rows:
        matrix = np.zeros((len(self.rows), self.width))
        matrix[:, :-2], matrix[:, -2] = self.rows[:, 1:], -1.0
        return matrix, -self.rows[:, 0]

    def relaxed(self, splits: NDArray[np.int8], seconds: float) -> Optimum | None:
        """The linear program of a part of the set.

        Args:
            splits: (k,): 1 where a kink's argument is at least 0, -1 where it is at most 0, 0 where it is open.
            seconds: that HiGHS may take.

        Returns:
            None where HiGHS has no answer.
        """
        free = splits == 0
        side = np.where(splits == _ON, 1.0, self.flat)  # the slope on the side of a split
        lines = [np.where(free[:, None], line, np.stack([side, 0 * side], 1)) for line in self._lines()]
        held = np.flatnonzero(~free)
        sign = splits[held].astype(float)
        split = np.zeros((len(held), self.width))
        split[:, :-2] = -sign[:, None] * self.z[held, 1:]
        lined = self.lined | ~free
        parts: list[_Rows] = [
            self._rows(),
            self._line(lines[0], -1, lined),
            self._line(lines[1], -1),
            self._line(lines[2], 1),
            (split, sign * self.z[held, 0]),
        ]
        matrix = np.concatenate([p[0] for p in parts])
        matrix[len(self.rows) :, -1] = -1.0
        cost = np.zeros(self.width)
        cost[-2:] = 1.0, self.price
        bounds = np.full((self.width, 2), (-np.inf, np.inf))
        inputs = self.own[0] if len(self.own) else self.width - 2
        bounds[:inputs, 0], bounds[:inputs, 1] = self.least[:inputs], self.most[:inputs]
        bounds[self.own[~lined], 0] = bounds[-1, 0] = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _highs.OptimizeWarning)
            found: Any = _highs.linprog(
                cost,
                A_ub=_csr_array(matrix),
                b_ub=np.concatenate([p[1] for p in parts]),
                bounds=bounds,
                method="highs",
                options={"time_limit": max(seconds, 0.01)},
            )
        if found.status != 0:
            return None
        cuts = np.cumsum([len(p[1]) for p in parts])[:-1]
        weights, flat, steep, over, beta = np.split(np.maximum(-found.ineqlin.marginals, 0.0), cuts)
        gentle = np.maximum(found.lower.marginals[self.own], 0.0)
        gentle[lined] = flat
        return self._optimum(found, splits, weights, gentle, steep, over, beta, held)

    def _optimum(
        self,
        found: Any,
        splits: NDArray[np.int8],
        weights: Floats,
        gentle: Floats,
        steep: Floats,
        over: Floats,
        beta: Floats,
        held: NDArray[np.int64],
    ) -> Optimum:
        variables = found.x[:-2]
        z, flat = self.z[:, 0] + self.z[:, 1:] @ variables, np.where(self.bends, self.flat, 0.0)
        total = gentle + steep
        middle = np.where(self.high > -self.low, 1.0, flat)
        slopes = np.where(total > 0, (gentle * flat + steep) / np.where(total > 0, total, 1.0), middle)
        gap = np.maximum(variables[self.own] - np.maximum(z, flat * z), 0.0) * (self.bends & (splits == 0))
        multipliers = np.zeros(len(self.z))
        multipliers[held] = beta
        return Optimum(
            value=float(found.fun),
            variables=variables,
            weights=weights,
            slopes=slopes,
            multipliers=multipliers,
            gain=gap * (over + 1e-9),
        )

    def exact(self, seconds: float) -> tuple[float, Floats | None]:
        """The least t of the integer program and the variables there, None where HiGHS is not done in time."""
        status, variables = self._integer(seconds, None)
        if status != 0 or variables is None:
            return np.nan, None
        return float((self.rows[:, 0] + self.rows[:, 1:] @ variables).max()), variables

    def point_below(self, target: float, seconds: float) -> Floats | None:
        """Variables at which t is at most a target, by the integer program, or None where it knows of none."""
        return self._integer(seconds, target)[1]

    def _integer(self, seconds: float, target: float | None) -> tuple[int, Floats | None]:
        """One binary for each kink, which must all be of (leaky) ReLUs; minimises t or seeks any t below a target."""
        count, flat = len(self.z), self.flat
        one, zero, none = np.ones(count), np.zeros(count), np.zeros((count, count))
        reach = (1 - flat) * self.low, (1 - flat) * self.high
        # a >= flat z, a >= z, a <= z - reach_0 (1 - on), a <= flat z + reach_1 on
        parts: list[tuple[_Rows, Floats]] = [
            (self._rows(), np.zeros((len(self.rows), count))),
            (self._line(np.stack([flat, zero], 1), -1), none),
            (self._line(np.stack([one, zero], 1), -1), none),
            (self._line(np.stack([one, -reach[0]], 1), 1), -np.diag(reach[0])),
            (self._line(np.stack([flat, zero], 1), 1), -np.diag(reach[1])),
        ]
        matrix = np.concatenate([np.concatenate([rows[0], binary], 1) for rows, binary in parts])
        limit = np.concatenate([rows[1] for rows, _ in parts])
        least = np.concatenate([self.least, [-np.inf, 0.0], zero])
        most = np.concatenate([self.most, [np.inf if target is None else target, 0.0], one])
        cost = np.zeros(self.width + count)
        cost[self.width - 2] = 1.0 if target is None else 0.0
        found: Any = _highs.milp(
            cost,
            constraints=_highs.LinearConstraint(_csr_array(matrix), -np.inf, limit),
            bounds=_highs.Bounds(least, most),
            integrality=np.concatenate([np.zeros(self.width), one]),
            options={"time_limit": max(seconds, 0.01), "mip_rel_gap": 0.0},
        )
        return int(found.status), None if found.x is None else found.x[: self.width - 2]
