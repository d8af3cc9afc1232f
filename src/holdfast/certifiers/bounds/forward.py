"""Forward mode: linear bounds in terms of the input, carried forwards with the values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.propagation.operation import Operation, node_size
from holdfast.certifiers.propagation.operations.activations import Lines
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region, box_minimum, gamma, norm
from holdfast.certifiers.propagation.specification import specification
from holdfast.certifiers.proved import numbers
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph, Node

__all__ = ["Forward"]

_CONSTANTS = ("bias", "shift", "size")


class _Functions(NamedTuple):
    """Two affine functions of the input around each entry of a value, ``slope x + constant``.

    Attributes:
        lower: slopes (n, inputs, \\*shape).
        low: constants (n, \\*shape); what rounding did to the slopes is already taken off.
        upper: slopes.
        high: constants.
    """

    lower: Tensor
    low: Tensor
    upper: Tensor
    high: Tensor


@dataclass(frozen=True)
class Forward(GraphCertifier):
    """Affine functions of the input below and above every value, from the first layer to the last (Xu et al. 2020).

    One pass gives the boxes of all values, where backward mode takes a pass for each layer; its cost grows with the number
    of inputs instead, so it is for networks with few of them. Boxes are intersected with intervals. The last linear
    layers are merged with the specification. Operations with two lines in one argument (activations) are followed, other
    nonlinear ones (pools, products) are cut off at their boxes.
    """

    card: ClassVar[Card] = Card(
        title="forward mode",
        rows=("V10",),
        paper="Xu et al. 2020, Automatic Perturbation Analysis for Scalable Certified Robustness, arXiv 2002.12920",
        section="3.3",
        summary="Carries affine functions of the input forwards through the network, for networks with few inputs.",
        norms=(Norm.LINF, Norm.L2, Norm.L1, Norm.L0),
        guarantee=Guarantee.SOUND,
        failure_modes=(
            "memory and time grow with the number of inputs",
            "looser than backward mode beyond the second layer; pools and products are no better than intervals",
        ),
        checked_by="auto_LiRPA's forward bounds, sampled points, exact optima of small networks, linear models",
    )

    memory: int = parameter(
        1 << 30,
        "bytes for the affine functions of the samples that are bounded at once",
        "ours: 4 of 784 inputs, 10^4 values",
    )

    @override
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """See `GraphCertifier.bounds`.

        Raises:
            UnsupportedError: one sample takes more than ``memory``.
        """
        self.check_deployed(graph)
        graph = graph.to(torch.float64)
        widest = sorted(node_size(node.shape) for node in graph.nodes)[-2:]
        one = 8 * node_size(graph.input_shape) * 4 * sum(widest)
        if one > self.memory:
            raise UnsupportedError(
                f"forward mode takes {one / 2**20:.1f} MB for one sample of this model: give it more `memory`, or use crown"
            )
        c = c.to(x.device, torch.float64).expand(len(x), *c.shape[-2:])
        shift = torch.zeros_like(c[..., 0]) if d is None else d.to(c).expand(c.shape[:2])
        parts: list[Tensor] = []
        for i in torch.split(torch.arange(len(x), device=x.device), max(self.memory // one, 1)):
            pass_ = _Pass(graph, Region(region.select(i), x[i]))
            parts.append(torch.maximum(pass_.minimum(c[i], shift[i]), pass_.intervals(c[i], shift[i])))
        return torch.cat(parts)


class _Pass:
    """One pass over a graph: the boxes stand in a propagation, the functions here."""

    def __init__(self, graph: Graph, region: Region) -> None:
        self.region = region
        self.found = Propagation(graph, region)
        self.graph = graph = self.found.graph
        known = [region.box]
        consumers = graph.consumers()
        self.functions: dict[int, _Functions] = {}
        wide = region.x.flatten(1)
        unit = torch.eye(wide.shape[1], dtype=wide.dtype, device=wide.device).expand(len(wide), -1, -1)
        unit, zero = unit.reshape(*unit.shape[:2], *region.x.shape[1:]), torch.zeros_like(region.x)
        self.functions[0] = _Functions(unit, zero, unit, zero)
        for i, node in enumerate(graph.nodes[1:], 1):
            op = self.found.operations[i]
            assert op is not None
            inputs = [known[j] for j in node.inputs]
            box, size = self.found.enclosed(i, inputs)
            slack = None if size is None else gamma(self.found.terms(i)) * size.detach()
            functions = self._next(i, node, op, inputs, slack)
            if functions is not None:
                self.functions[i] = functions
                if not op.elementwise:
                    box = self._concrete(functions, box)
            known.append(box)
            for j in node.inputs:
                if consumers[j][-1] == i and not self._merged(j):
                    self.functions.pop(j, None)
        self.found.run(refine=lambda _: False, known=known)

    def _merged(self, i: int) -> bool:
        """Whether the specification may be pulled back to this value."""
        op = self.found.operations[i]
        return op is None or not op.linear

    def _next(
        self, i: int, node: Node, op: Operation, inputs: Sequence[Box], slack: Tensor | None
    ) -> _Functions | None:
        if not node.inputs:
            box = op.interval(node, inputs)
            none = self.functions[0].lower.new_zeros(*self.functions[0].lower.shape[:2], *node.shape)
            zero = none[:, 0]
            return _Functions(none, zero + box.lower, none, zero + box.upper)
        if any(j not in self.functions for j in node.inputs):
            return None
        given = [self.functions[j] for j in node.inputs]
        if op.linear:
            return self._linear(i, node, op, given)
        lines = op.prepare(node, inputs)
        if len(given) > 1 or not isinstance(lines, Lines) or slack is None:
            return None
        return self._bent(given[0], lines, slack)

    def _reach(self, slope: Tensor, constant: Tensor) -> Tensor:
        """At most the sum of the magnitudes of an affine function's terms, (n, \\*shape)."""
        most = self.region.box.magnitude.flatten(1)
        return (1 + gamma(most.shape[1] + 2)) * (
            torch.einsum("nd,nds->ns", most, slope.detach().abs().flatten(2)).view_as(constant)
            + constant.detach().abs()
        )

    def _linear(self, i: int, node: Node, op: Operation, given: Sequence[_Functions]) -> _Functions:
        """Centres go through the layer, half the differences through its magnitudes; each of either sign."""
        count, n = given[0].lower.shape[1], len(given[0].low)

        def columns(f: _Functions, sign: int) -> Tensor:
            slopes = (f.upper + sign * f.lower).flatten(0, 1) / 2
            return torch.cat([slopes, (f.high + sign * f.low) / 2])

        centres = [columns(f, 1) for f in given]
        halves = [columns(f, -1) for f in given]
        bare = replace(node, tensors={k: t for k, t in node.tensors.items() if k not in _CONSTANTS})
        base = op.interval(node, [Box(zero, zero) for zero in (torch.zeros_like(t[:1]) for t in centres)])

        def spread(widths: list[Tensor]) -> Tensor:
            return op.interval(bare, [Box(-w, w) for w in widths]).upper

        middle = op.interval(bare, [Box(t, t) for t in centres]).lower
        half = spread([h.clamp(min=0) for h in halves]) - spread([(-h).clamp(min=0) for h in halves])
        lower, upper = middle - half, middle + half
        low, high = lower[count * n :] + base.lower, upper[count * n :] + base.upper
        lower, upper = (t[: count * n].view(n, count, *node.shape) for t in (lower, upper))
        with torch.no_grad():
            reaches = [torch.maximum(self._reach(f.lower, f.low), self._reach(f.upper, f.high)) for f in given]
            size = op.size(node, [Box(-r, r) for r in reaches], Box(low, high))
            after = torch.maximum(self._reach(lower, low), self._reach(upper, high)) + base.magnitude
            # an entry is put together from a centre and two halves
            error = gamma(8) * after if size is None else 4 * gamma(self.found.terms(i)) * (size + after)
        return _Functions(lower, low - error, upper, high + error)

    def _bent(self, given: _Functions, lines: Lines, slack: Tensor) -> _Functions:
        lower_slope, lower_intercept, upper_slope, upper_intercept, _ = lines
        ends: list[tuple[Tensor, Tensor]] = []
        for slope, intercept, falls in ((lower_slope, lower_intercept, False), (upper_slope, upper_intercept, True)):
            rising, falling = slope.clamp(min=0), slope.clamp(max=0)
            one, other = ((given.upper, given.high), (given.lower, given.low))[:: 1 if falls else -1]
            slopes = one[0] * rising.unsqueeze(1) + other[0] * falling.unsqueeze(1)
            constant = one[1] * rising + other[1] * falling
            ends.append((slopes, constant if intercept is None else constant + intercept))
        with torch.no_grad():
            reach = torch.maximum(self._reach(given.lower, given.low), self._reach(given.upper, given.high))
            steep = torch.maximum(lower_slope.abs(), upper_slope.abs())
            error = slack + gamma(16) * (steep * reach + upper_intercept.abs())
        (lower, low), (upper, high) = ends
        return _Functions(lower, low - error, upper, high + error)

    def _concrete(self, f: _Functions, box: Box) -> Box:
        """The box cut by what the functions say."""
        least, error = self._over(f.lower, f.low)
        most, slip = self._over(-f.upper, -f.high)
        return Box(torch.maximum(box.lower, numbers(least - error)), torch.minimum(box.upper, -numbers(most - slip)))

    def _over(self, slope: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        n = len(slope)
        rows = slope.flatten(2).permute(2, 0, 1).reshape(-1, n, *self.region.x.shape[1:])
        least, error = self.region.minimum(rows)
        least = least.T.reshape(constant.shape) + constant
        return least, error.T.reshape(constant.shape) + gamma(2) * (least.abs() + constant.abs()).detach()

    def intervals(self, c: Tensor, d: Tensor) -> Tensor:
        """The specification over the boxes."""
        return specification(self.found, c, d, at_boxes=True)

    def minimum(self, c: Tensor, d: Tensor) -> Tensor:
        """The specification pulled back through the last linear layers, and then by the functions."""
        found, output = self.found, len(self.graph.nodes) - 1
        if len(self.graph.output_shape) != 1:
            raise UnsupportedError(f"a specification needs a vector as output, not {self.graph.output_shape}")
        pending = {output: c.transpose(0, 1)}
        total = d.T
        error, whole = torch.zeros_like(total), torch.zeros_like(c[..., :1].transpose(0, 1) * 0)
        slopes = whole.expand(-1, -1, node_size(self.graph.input_shape))
        for k in range(output, -1, -1):
            if k not in pending:
                continue
            a, op, constant = pending.pop(k), found.operations[k], None
            if op is not None and op.linear:
                parts, constant, slack = found.pull(k, a)
                for j, part in zip(self.graph.nodes[k].inputs, parts, strict=True):
                    if j in pending:
                        part = pending[j] + part
                        slack = slack + gamma(1) * norm(part, 2) * norm(found.boxes[j].magnitude, 1)
                    pending[j] = part
            elif k in self.functions:
                f, flat = self.functions[k], a.flatten(2)
                rising, falling = flat.clamp(min=0), flat.clamp(max=0)
                slopes = (
                    slopes
                    + torch.einsum("sne,nde->snd", rising, f.lower.flatten(2))
                    + torch.einsum("sne,nde->snd", falling, f.upper.flatten(2))
                )
                constant = torch.einsum("sne,ne->sn", rising, f.low.flatten(1))
                constant = constant + torch.einsum("sne,ne->sn", falling, f.high.flatten(1))
                with torch.no_grad():
                    reach = torch.maximum(self._reach(f.lower, f.low), self._reach(f.upper, f.high)).flatten(1)
                    slack = gamma(flat.shape[2] + 8) * norm(flat, 2) * norm(reach, 1)
                    slack = slack + gamma(4) * norm(slopes, 2) * norm(self.region.box.magnitude, 1)
            else:  # cut off
                constant, slack = box_minimum(a, found.boxes[k])
            if constant is not None:
                total = total + constant
                slack = slack + gamma(1) * total.detach().abs()
            error = error + slack
        least, slack = self.region.minimum(slopes.reshape(*slopes.shape[:2], *self.region.x.shape[1:]))
        total = total + least
        return numbers(total - (error + slack + gamma(2) * total.detach().abs())).T
