"""A part of the set in which every neuron is split: what is left is a linear program."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from holdfast.certifiers.branch_and_bound.reduced import LinearRows, NeuronState, Reduced
from holdfast.core.arrays import tensor_of

__all__ = ["cell"]

_highs: Any = optimize


def cell(reduced: Reduced, rows: LinearRows, state: NeuronState) -> tuple[Tensor, Tensor, Tensor]:
    """The least over the part of the largest row, by HiGHS. Nothing of it is relied on: it is where to look.

    Args:
        reduced: what the state refers to; over a box.
        rows: of one part.
        state: of the part, once for each row; its ReLUs are all split or stable.

    Returns:
        The minimiser (inputs,), weights of the rows (rows,) float64, and multipliers of the cuts (depth,): at them the
        weighted rows are least over the whole box, too. Where the part is empty they add up to a proof of that.
    """
    x, c = expressions(reduced, state)
    r = rows.r.double().numpy()
    slopes = _slopes(reduced, state)
    entering, more = reduced.entrance.direct(rows)
    a, b = entering + (r * slopes) @ x, more + (r * slopes) @ c
    unit, side = state.cuts.unit[0].numpy(), state.cuts.side[0].double().numpy()
    point = state.cuts.point[0].double().numpy()
    g, h = side[:, None] * x[unit], side * (c[unit] - point)  # at least 0 in the part
    centre, radius = (t.double().numpy() for t in (reduced.entrance.centre, reduced.entrance.radius))
    box = [*zip(centre - radius, centre + radius, strict=True), (None, None)]
    n = len(centre)
    cost = np.append(np.zeros(n), 1.0)
    top = np.hstack([a, -np.ones((len(a), 1))])
    for slack in (0.0, 1.0):
        lower = np.hstack([-g, np.full((len(g), 1), -slack)])
        matrix, bound = np.vstack([lower, top]), np.append(h, -b)
        if slack:  # is there a point at all? then how far is the nearest from it
            matrix, bound = lower, h
        if not (np.isfinite(matrix).all() and np.isfinite(bound).all()):
            break
        found: Any = _highs.linprog(cost, A_ub=matrix, b_ub=bound, bounds=box, method="highs")
        if found.status == 0:
            price = -np.asarray(found.ineqlin.marginals)
            multiplier, weights = price[: len(g)], price[len(g) :]
            if slack:
                weights = np.full(len(a), 1 / len(a))
                gap = float(np.abs(a).sum() * np.abs(centre).max() + np.abs(b).sum() + 1.0) + np.abs(a @ centre).sum()
                multiplier = multiplier * (gap + (np.abs(a) @ radius).sum()) / max(found.fun, 1e-9)
            return (
                tensor_of(found.x[:n]).float(),
                tensor_of(weights.copy()),
                tensor_of(multiplier * (side != 0)).float().clamp(min=0),
            )
    zero = state.cuts.multiplier[0]
    return reduced.entrance.centre, torch.full((len(a),), 1 / len(a), dtype=torch.float64), zero


def _slopes(reduced: Reduced, state: NeuronState) -> np.ndarray[Any, np.dtype[np.float64]]:
    flat = reduced.flat.nan_to_num(0.0)
    return torch.where(state.low[0] >= 0, torch.ones_like(flat), flat).double().numpy()


def expressions(reduced: Reduced, state: NeuronState) -> tuple[Any, Any]:
    """The arguments of the activations as affine functions of the input, where nothing bends: (units, inputs), (units,)."""
    x, c = reduced.entrance.direct(reduced.values)
    r, slopes = reduced.values.r.double().numpy(), _slopes(reduced, state)
    for layer in reduced.layers:
        if layer.start:
            own = r[layer.span, : layer.start] * slopes[: layer.start]
            x[layer.span] += own @ x[: layer.start]
            c[layer.span] += own @ c[: layer.start]
    return x, c
