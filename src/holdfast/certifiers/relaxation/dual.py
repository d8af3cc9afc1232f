"""The Lagrangian dual of a network's relaxation: a bound for any multipliers.

Write x_k = h(z_k) for an activation, with z_k an affine function of the x before it. Moving both equations into the
objective with multipliers lambda_k (of x_k = h(z_k)) and mu_k (of z_k = W x + b) leaves terms that separate:

    min <c, f>  >=  sum_k  min over x_k in its box of <W^T mu - lambda_k, x_k>
                  + sum_k  min over z_k in its box of <lambda_k, h(z_k)> - <mu_k, z_k>
                  + the least of the remaining affine function over the input region.

All are known: the first is a box, the second is one-dimensional for each neuron and takes its least at an end or where
h' = mu / lambda, the third is the dual norm. Weak duality makes every choice of multipliers sound (Dvijotham et al. 2018).
With lambda = W^T mu and mu on the lines around h it is the dual network of Wong and Kolter (2018). What separates over
several entries (a max pool) is pulled back by its lines, which are multipliers too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from holdfast.certifiers.propagation.operation import Operation
from holdfast.certifiers.propagation.operations.activations import Activation, PiecewiseLinear
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, box_minimum, gamma, norm
from holdfast.certifiers.proved import numbers
from holdfast.graph.model import Node

__all__ = ["Dual", "Multipliers", "separates"]


class Multipliers(NamedTuple):
    """Of one activation: ``value`` (lambda) and ``argument`` (mu), each (rows, n, \\*shape)."""

    value: Tensor
    argument: Tensor


class Dual:
    """The dual bound of ``C f + d`` over a propagation that has run.

    Args:
        found: the propagation; its boxes are those of the relaxation.
        c: (n, rows, classes) or (rows, classes).
        d: (rows,) or (n, rows), 0 if missing.
    """

    def __init__(self, found: Propagation, c: Tensor, d: Tensor | None = None) -> None:
        n, reference = len(found.region.x), found.region.x
        self.found = found
        self.rows = c.to(reference).expand(n, *c.shape[-2:]).transpose(0, 1)
        self.shift = None if d is None else d.to(reference).expand(n, c.shape[-2]).T

    def network(self, k: int, a: Tensor, slopes: Mapping[int, Tensor] | None = None) -> Multipliers | None:
        """The multipliers of the dual network: those of the propagation's lines; see `bound`."""
        return Multipliers(a, self.found.pull(k, a, slopes)[0][0]) if separates(self.found.operations[k]) else None

    def bound(self, choose: Callable[[int, Tensor], Multipliers | None]) -> Tensor:
        """The dual function.

        Args:
            choose: the multipliers of an activation k that `separates`, given what arrives at its value,
                (rows, n, \\*shape); None: those of its lines.

        Returns:
            (n, rows).
        """
        found, output = self.found, len(self.found.graph.nodes) - 1
        pending = {output: self.rows}
        total = self.rows.new_zeros(self.rows.shape[:2]) if self.shift is None else self.shift
        error = torch.zeros_like(total)
        for k in range(output, -1, -1):
            if k not in pending:
                continue
            a, node, op = pending.pop(k), found.graph.nodes[k], found.operations[k]
            if op is None:
                parts, (constant, slack) = (), found.region.minimum(a)
            elif isinstance(op, Activation) and (given := choose(k, a)) is not None:
                parts = (given.argument,)
                constant, slack = self._separate(k, op, a, given)
            else:
                parts, constant, slack = found.pull(k, a)
            for j, part in zip(node.inputs, parts, strict=True):
                if j in pending:
                    part = pending[j] + part
                    slack = slack + gamma(1) * norm(part, 2) * norm(found.boxes[j].magnitude, 1)
                pending[j] = part
            if constant is not None:
                total = total + constant
                slack = slack + gamma(1) * total.detach().abs()
            error = error + slack
        return (numbers(total - error) if found.sound else total).T

    def _separate(self, k: int, op: Activation, a: Tensor, given: Multipliers) -> tuple[Tensor, Tensor]:
        """Both least values at an activation (rows, n), and what rounding may have done."""
        node = self.found.graph.nodes[k]
        argument, value = self.found.boxes[node.inputs[0]], self.found.boxes[k]
        slackness = a - given.value
        first, slack = box_minimum(slackness, value)
        points = _candidates(op, node, argument, given)
        second = (given.value * op.value(node, points) - given.argument * points).amin(0).flatten(2).sum(2)
        size = norm(given.value, 2) * norm(value.magnitude, 1) + norm(given.argument, 2) * norm(argument.magnitude, 1)
        slack = slack + gamma(1) * norm(slackness, 2) * norm(value.magnitude, 1)
        return first + second, slack + gamma(a[0, 0].numel() + 32) * size


def separates(op: Operation | None) -> bool:
    """Whether the least of ``lambda h(z) - mu z`` over an interval is known in closed form."""
    return isinstance(op, PiecewiseLinear) or (isinstance(op, Activation) and hasattr(op, "stationary"))


def _candidates(op: Activation, node: Node, box: Box, given: Multipliers) -> Tensor:
    """Points of the interval among which ``lambda h(z) - mu z`` takes its least: (points, rows, n, \\*shape)."""
    low, high = (t.expand_as(given.value) for t in box)
    if isinstance(op, PiecewiseLinear):
        return torch.stack([low, high, torch.zeros_like(low).clamp(low, high)])
    slope = (given.argument / torch.where(given.value == 0, 1.0, given.value)).detach()
    # `separates` saw that it is there
    z = cast(Tensor, op.stationary(slope)).detach()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    return torch.stack([low, high, z.clamp(low, high), (-z).clamp(low, high)])
