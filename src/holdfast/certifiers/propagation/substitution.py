"""Backward substitution: linear functions of a node's value become linear functions of the input, nowhere larger.

What is known of each node (a box, what rounding is relative to, two lines) is found front to back by `Propagation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from holdfast.certifiers.propagation.operation import Operation, node_size
from holdfast.certifiers.propagation.region import Box, Region, box_minimum, gamma, norm
from holdfast.certifiers.propagation.structure import Structure
from holdfast.certifiers.proved import numbers
from holdfast.graph.model import Graph

__all__ = ["Alphas", "Coefficients", "LinearBound", "Pulled", "Step", "Substitution", "finite_samples"]

Alphas = Mapping[int, Tensor]
"""For some nodes what is chosen in their relaxation, see `Operation.alpha`."""

Coefficients = Mapping[int, Tensor]
"""For some nodes what their values are multiplied by, (rows or 1, n, \\*shape)."""


class LinearBound(NamedTuple):
    """Lower bounds over a region, and the linear functions of the input that are nowhere above what is bounded.

    Attributes:
        least: (rows, n).
        coefficients: of the linear functions, (rows, n, features); None: the pass ended before the input.
    """

    least: Tensor
    coefficients: Tensor | None


class Pulled(NamedTuple):
    """One step back from a node.

    Attributes:
        parts: coefficients of each of its inputs, (rows, n, \\*shape).
        constant: (rows, n); None: 0.
        slack: what rounding may have done, (rows, n).
    """

    parts: Sequence[Tensor]
    constant: Tensor | None
    slack: Tensor


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step back over a node needs.

    Attributes:
        size: the sum over the value of what rounding is relative to, (n,); None: nothing rounds.
        run_error: what the tolerance of weights and the network's own arithmetic may add, (n, \\*shape); None: nothing.
        prepared: see `Operation.prepare`.
        lost: -inf for the samples of which an argument has an end that is not a number, (n,); None: there are none.
    """

    size: Tensor | None = None
    run_error: Tensor | None = None
    prepared: Any = None
    lost: Tensor | None = None


class Substitution:
    """A graph over a region whose boxes are known up to some node.

    Args:
        graph: the model.
        region: the inputs.
        operations: the entry of each node in the table; None for the input.
        sound: pay for rounding.
        memory: bytes that the coefficients of one backward pass may take; None: see `Propagation`.

    Attributes:
        boxes: of the nodes that are known.
        structure: of the graph.
    """

    def __init__(
        self, graph: Graph, region: Region, operations: list[Operation | None], *, sound: bool, memory: int | None
    ) -> None:
        self.graph, self.region, self.operations, self.sound = graph, region, operations, sound
        self.memory = memory or (1 << 24 if region.x.device.type == "cpu" else 1 << 30)
        self.structure = Structure(graph, operations, region.independent)
        self.boxes: list[Box] = []
        self._steps: dict[int, Step] = {}

    def alphas(self, i: int) -> dict[int, Tensor]:
        """What may be chosen in the relaxations that node ``i`` depends on: its defaults, see `Operation.alpha`."""
        needed = self.structure.ancestors(i)
        free: dict[int, Tensor] = {}
        for k, step in self._steps.items():
            op = self.operations[k]
            alpha = op.alpha(step.prepared) if op and k in needed else None
            if alpha is not None:
                free[k] = alpha
        return free

    def parts(self, region: Region, boxes: Mapping[int, Box]) -> Self:
        """The same for parts of the region, which somebody else cut: boxes are replaced, none is found anew.

        Sizes (what rounding is relative to) stay those of the whole region, which are no smaller.

        Args:
            region: of the parts, n of them; this must be of one sample.
            boxes: of some nodes, inside the boxes of these: (n, \\*shape).
        """
        cut = copy(self)
        cut.region = region
        cut.boxes = [boxes.get(i, box) for i, box in enumerate(self.boxes)]
        cut._steps = dict(self._steps)
        for i, node in enumerate(self.graph.nodes):
            if any(j in boxes for j in node.inputs):
                cut._steps[i] = cut._step(i, [cut.boxes[j] for j in node.inputs], self._steps[i])
        return cut

    def _step(self, i: int, inputs: Sequence[Box], known: Step) -> Step:
        """Prepares an operation, and notes the samples of which an argument has an end that is not a number."""
        node, op = self.graph.nodes[i], self.operations[i]
        assert op is not None
        prepared = op.prepare(node, inputs)
        lost = torch.where(finite_samples(inputs), 0.0, -torch.inf) if self.sound and not op.linear else None
        return replace(known, prepared=prepared, lost=lost)

    def affine_in_input(self, i: int) -> bool:
        """Whether a node is an affine function of the input, so that one backward pass bounds it exactly."""
        return self.structure.affine[i]

    def terms(self, i: int) -> int:
        """See `Structure.terms`."""
        return self.structure.terms(i)

    def _both_ends(self, i: int, chosen: Tensor, alphas: Alphas) -> tuple[Tensor, Tensor, Tensor]:
        """The least and the largest value of chosen entries of a node, each (rows, n), and the coefficients of both."""
        node, op, (rows, n) = self.graph.nodes[i], self.operations[i], chosen.shape
        step = self._steps[i]
        start = op.pull_units(node, chosen, self._prepared(i, alphas)) if op else None
        if start is None:
            unit = self.boxes[i].lower.new_zeros(rows, n, node_size(node.shape)).scatter_(2, chosen.unsqueeze(2), 1.0)
            a = unit.view(rows, n, *node.shape)
            bound = self.linear_bound(i, torch.cat([a, -a]), alphas)
        else:
            (a,), constant = start
            a = torch.cat([a, -a])
            total = a.new_zeros(a.shape[:2]) if constant is None else torch.cat([constant, -constant])
            # the look-up is exact; what folding did to the weights is not
            slack = gamma(self.terms(i)) * step.size if step.size is not None else 0.0
            if step.run_error is not None:
                run = step.run_error.flatten(1).gather(1, chosen.T).T
                total = total - torch.cat([run, run])
            bound = self._descend({node.inputs[0]: a}, total, torch.zeros_like(total) + slack, alphas)
        least, negated = bound.least.chunk(2)
        assert bound.coefficients is not None
        return least, -negated, bound.coefficients

    def _rows_at_once(self, i: int, n: int) -> int:
        """How many entries one backward pass may bound: two rows each, about four tensors of the largest value."""
        largest = max(node_size(node.shape) for node in self.graph.nodes[: i + 1])
        return max(self.memory // (2 * 4 * 8 * n * largest), 1)

    def minimum(
        self,
        i: int,
        a: Tensor,
        alphas: Alphas | None = None,
        *,
        extra: Coefficients | None = None,
        at_boxes: bool = False,
    ) -> Tensor:
        """A lower bound of ``<a, value of node i>`` over the region, less what rounding may have added.

        Args:
            i: the node; the boxes of its ancestors must be known.
            a: (rows, n, \\*shape).
            alphas: what is chosen in relaxations, (rows or 1, n, \\*its shape), for nodes that shall not have the default.
            extra: coefficients e of node values that are added on the way, (rows or 1, n, \\*shape) for each node. The
                result bounds ``<a, value of i> + sum <e, values>``; where the caller knows the sum to be at most 0
                (a multiplier times a split that holds), it bounds ``<a, value of i>``.
            at_boxes: stop at nonlinear operations and take the least over their boxes (interval arithmetic).

        Returns:
            (rows, n).
        """
        return self.linear_bound(i, a, alphas, extra=extra, at_boxes=at_boxes).least

    def linear_bound(
        self,
        i: int,
        a: Tensor,
        alphas: Alphas | None = None,
        *,
        extra: Coefficients | None = None,
        at_boxes: bool = False,
    ) -> LinearBound:
        """`minimum` with the linear functions of the input behind it."""
        total = a.new_zeros(a.shape[:2])
        return self._descend({i: a}, total, torch.zeros_like(total), alphas, extra, at_boxes)

    def _descend(
        self,
        pending: dict[int, Tensor],
        total: Tensor,
        error: Tensor,
        alphas: Alphas | None,
        extra: Coefficients | None = None,
        at_boxes: bool = False,
    ) -> LinearBound:
        """Substitutes backwards until only the input is left: a bound of ``sum <pending, values> + total``.

        Invariant: the bound sought is at least ``sum <pending, values> + total - error``, in real numbers.
        """
        coefficients: Tensor | None = None
        for k in range(max(pending), -1, -1):
            if k not in pending:
                continue
            a, node, op = pending.pop(k), self.graph.nodes[k], self.operations[k]
            if extra and k in extra:
                a = a + extra[k]
                error = error + gamma(1) * norm(a, 2) * norm(self.boxes[k].magnitude, 1)
            if op is None:
                coefficients = a.flatten(2)
                constant, slack = self.region.minimum(a)
            elif at_boxes and not op.linear:
                constant, slack = box_minimum(a, self.boxes[k])
            else:
                pulled, constant, slack = self.pull(k, a, alphas)
                for j, part in zip(node.inputs, pulled, strict=True):
                    if j in pending:
                        part = pending[j] + part
                        slack = slack + gamma(1) * norm(part, 2) * norm(self.boxes[j].magnitude, 1)
                    pending[j] = part
            if constant is not None:
                total = total + constant
                slack = slack + gamma(1) * total.detach().abs()
            error = error + slack
        return LinearBound(numbers(total - error) if self.sound else total, coefficients)

    def pull(self, k: int, a: Tensor, alphas: Alphas | None = None) -> Pulled:
        """One step back: ``<a, value of node k>`` is at least ``sum <parts, inputs> + constant - error``.

        Args:
            k: a node other than the input; the boxes of its inputs must be known.
            a: (rows, n, \\*shape).
            alphas: see `minimum`.

        """
        op, step, slack = self.operations[k], self._steps[k], a.new_zeros(a.shape[:2])
        assert op is not None
        parts, constant = op.pull(self.graph.nodes[k], a, self._prepared(k, alphas))
        if step.size is not None:
            slack = gamma(self.terms(k)) * norm(a, 2) * step.size
        if step.lost is not None:
            never = step.lost.expand(a.shape[:2])
            constant = never if constant is None else constant + never
        if step.run_error is not None:
            run = torch.einsum("snd,nd->sn", a.flatten(2).abs(), step.run_error.flatten(1))
            constant = -run if constant is None else constant - run
            slack = slack + gamma(a[0, 0].numel() + 1) * run.detach()
        return Pulled(parts, constant, slack)

    def _prepared(self, k: int, alphas: Alphas | None) -> Any:
        node, op = self.graph.nodes[k], self.operations[k]
        assert op is not None
        if alphas and k in alphas:
            return op.prepare(node, [self.boxes[j] for j in node.inputs], alphas[k])
        return self._steps[k].prepared


def finite_samples(boxes: Sequence[Box]) -> Tensor:
    """The samples of which all ends are finite: (n,)."""
    ends = [end.detach().flatten(1).isfinite().all(1) for box in boxes for end in box]
    return torch.stack(ends).all(0)
