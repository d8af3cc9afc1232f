"""Bounds of every node of a graph over a region: boxes forwards, linear functions backwards, the best of both kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from holdfast.certifiers.propagation.deployment import run_error, weight_error
from holdfast.certifiers.propagation.lowering import lowered
from holdfast.certifiers.propagation.operation import Operation, node_size
from holdfast.certifiers.propagation.region import Box, Region, box_minimum, gamma, norm
from holdfast.certifiers.propagation.table import entry
from holdfast.certifiers.proved import numbers
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.graph.model import Graph, Node
from holdfast.graph.operations import OPERATIONS

__all__ = [
    "Alphas",
    "Entries",
    "LinearBound",
    "Propagation",
    "check_constants",
    "linear_specification",
    "specification",
]

Alphas = Mapping[int, Tensor]
"""For some nodes what is chosen in their relaxation, see `Operation.alpha`."""

Coefficients = Mapping[int, Tensor]
"""For some nodes what their values are multiplied by, (rows or 1, n, \\*shape)."""


def check_constants(graph: Graph) -> None:
    """Refuses weights and other constants that are not finite numbers: no bound can be made of them.

    Raises:
        UnsupportedError: the message names the first.
    """
    for i, node in enumerate(graph.nodes):
        for name, t in node.tensors.items():
            if t.is_floating_point() and not bool(t.detach().isfinite().all()):
                raise UnsupportedError(
                    f"the {name} of operation {i} ('{node.op}') has NaN or infinite entries; bounds are proved for finite "
                    "constants only: repair the model, or write a mask as a large finite number"
                )


def _finite(boxes: Sequence[Box]) -> Tensor:
    """(n,): the samples of which all ends are finite."""
    ends = [end.detach().flatten(1).isfinite().all(1) for box in boxes for end in box]
    return torch.stack(ends).all(0)


class LinearBound(NamedTuple):
    """Lower bounds over a region, and the linear functions of the input that are nowhere above what is bounded.

    Attributes:
        least: (rows, n).
        coefficients: of the linear functions, (rows, n, features); None: the pass ended before the input.
    """

    least: Tensor
    coefficients: Tensor | None


class Entries(NamedTuple):
    """What a backward pass found of some entries of a node.

    Over the region, entry ``chosen`` is at least ``least`` and at most ``most``. Each of these bounds grows along the
    input at least as ``coefficients`` do: those of the least values, and then of the negated largest.

    Attributes:
        node: the node.
        chosen: (rows, n) int64, entries of its flattened value.
        least: (rows, n).
        most: (rows, n).
        coefficients: (2 rows, n, features).
    """

    node: int
    chosen: Tensor
    least: Tensor
    most: Tensor
    coefficients: Tensor


class Propagation:
    """Boxes around all values of a graph over a region.

    Args:
        graph: the model, its tensors in the region's arithmetic.
        region: the inputs.
        sound: pay for rounding (float64 only). Without it bounds are those of the formulas alone: for training.
        memory: bytes that the coefficients of one backward pass may take; more rows go in several passes. 16 MB on a
            CPU (beyond its cache everything takes two to three times as long, measured), 1 GB elsewhere.
        lines: entries that stand in for those of the table: a method's own lines.
        arrived: is told what each backward pass of `run` found, for who keeps the linear functions behind the boxes.

    Attributes:
        graph: the graph that is propagated: the one given, or, if that has a softmax, one with other node numbers.
        boxes: of each node, once `run` is done.

    **Where floats end.** A box has no NaN: an end that is not known is infinite. Nothing is concluded of a function whose
    argument has an infinite end, not even that a tanh is below 1 (the argument may not exist): its box is infinite, and
    `pull` gives -inf.

    Raises:
        UnsupportedError: an operation without an entry in the table, parameters outside of what its entry declares, or
            constants that are not finite numbers.
        UsageError: sound bounds were asked of an arithmetic other than float64.
    """

    def __init__(
        self,
        graph: Graph,
        region: Region,
        *,
        sound: bool = True,
        memory: int | None = None,
        lines: Mapping[str, Operation] | None = None,
        arrived: Callable[[Entries], None] | None = None,
    ) -> None:
        if sound and {region.x.dtype, graph.dtype} != {torch.float64}:
            raise UsageError("rounding is accounted for in float64 only")
        graph = lowered(graph)
        if sound:
            check_constants(graph)
        self.graph = graph
        self.region = region
        self.sound = sound
        self.memory = memory or (1 << 24 if region.x.device.type == "cpu" else 1 << 30)
        self.arrived = arrived
        self.boxes: list[Box] = []
        self.operations: list[Operation | None] = [
            None,
            *(entry(n, lines) for n in graph.nodes[1:]),
        ]
        self._consumers = graph.consumers()
        self._sizes: dict[int, Tensor] = {}
        self._run_errors: dict[int, Tensor] = {}
        self._prepared: dict[int, Any] = {}
        self._lost: dict[int, Tensor] = {}
        # some function is not of all numbers, so that the sign of an end counts
        self._rooted = any(not OPERATIONS[node.op].total for node in graph.nodes[1:])
        self._separable, self._settled, self._affine = self._classify()
        # whether entries of a node, or increasing functions of them, are compared with each other in a max pool
        self._compared = [False] * len(graph.nodes)
        for i in range(len(graph.nodes) - 1, -1, -1):
            readers = ((self.operations[j], self._compared[j]) for j in self._consumers[i])
            self._compared[i] = any(op and (not op.linear if not op.elementwise else later) for op, later in readers)

    def _classify(self) -> tuple[list[bool], list[bool], list[bool]]:
        """For each node: its entries range independently; no backward pass can improve its box; it is affine in x."""
        separable, settled, affine = [self.region.independent], [True], [True]
        for node, op in zip(self.graph.nodes[1:], self.operations[1:], strict=True):
            assert op is not None
            free = len(node.inputs) == 1 and separable[node.inputs[0]]
            separable.append(free and op.elementwise)
            settled.append(free or not op.linear or (op.elementwise and settled[node.inputs[0]]))
            affine.append(op.linear and all(affine[i] for i in node.inputs))
        return separable, settled, affine

    def run(
        self,
        refine: Callable[[int], bool],
        alphas: Mapping[int, Alphas] | None = None,
        known: Sequence[Box] | None = None,
        *,
        every: bool = False,
    ) -> None:
        """Finds the boxes front to back.

        Args:
            refine: whether the box of this node may be tightened by backward passes.
            alphas: for a node that is tightened, what is chosen in the relaxations before it, see `minimum`.
            known: boxes from an earlier propagation over the same region, to intersect with.
            every: tighten every entry of such a node, not only those that a nonlinear reader gains by.
        """
        self.boxes = [self.region.box]
        for i, node in enumerate(self.graph.nodes[1:], 1):
            op = self.operations[i]
            assert op is not None
            inputs = [self.boxes[j] for j in node.inputs]
            box, size = self.enclosed(i, inputs)
            if size is not None:
                self._sizes[i] = norm(size, 1)
            box = self._as_run(i, node, op, inputs, box)
            if known:
                box = Box(torch.maximum(box.lower, known[i].lower), torch.minimum(box.upper, known[i].upper))
            self._ready(i, inputs)
            self.boxes.append(box.known if self.sound else box)
            self._settled[i] |= op.elementwise and self._settled[node.inputs[0]]
            if not self._settled[i] and refine(i):
                self.boxes[i] = self._tighten(i, alphas.get(i, {}) if alphas else {}, every)
                self._settled[i] = every

    def enclosed(self, i: int, inputs: Sequence[Box]) -> tuple[Box, Tensor | None]:
        """The box of a value in real numbers, and what rounding is relative to (None: nothing is paid for it).

        Rounding never takes a value out of the function's own range, nor sums of what is not negative below 0.
        """
        node, op = self.graph.nodes[i], self.operations[i]
        assert op is not None
        box = op.interval(node, inputs)
        if not self.sound:
            return box, None
        with torch.no_grad():
            size = op.size(node, inputs, box)
            floor = op.floor(node, inputs) if self._rooted and size is not None else None
        lower, upper = box
        if size is not None:
            slack = gamma(self.terms(i)) * size
            least, most = op.range(node)
            lower, upper = (lower - slack).clamp(min=least), (upper + slack).clamp(max=most)
        box = Box(lower if floor is None else torch.maximum(lower, floor), upper).known
        if op.linear:
            return box, size
        lost = torch.where(_finite(inputs), 0.0, torch.inf).to(lower).view(-1, *(1,) * len(node.shape))
        if op.elementwise:  # entry by entry
            lost = torch.where(inputs[0].lower.isfinite() & inputs[0].upper.isfinite(), 0.0, torch.inf).to(lower)
        return Box(box.lower - lost, box.upper + lost), size

    def _ready(self, i: int, inputs: Sequence[Box]) -> None:
        """Prepares an operation, and notes the samples of which an argument has an end that is not a number."""
        node, op = self.graph.nodes[i], self.operations[i]
        assert op is not None
        self._prepared[i] = op.prepare(node, inputs)
        self._lost.pop(i, None)
        if self.sound and not op.linear:
            self._lost[i] = torch.where(_finite(inputs), 0.0, -torch.inf)

    def _as_run(self, i: int, node: Node, op: Operation, inputs: Sequence[Box], box: Box) -> Box:
        """The box of a value with what the tolerance of the weights and the network's own arithmetic may add."""
        errors: list[Tensor] = []
        if node.tolerance:
            errors.append(weight_error(node, op, inputs, box))
            box = Box(box.lower - errors[0], box.upper + errors[0])
        if self.graph.deployed is not None:
            with torch.no_grad():
                shapes = [self.graph.nodes[j].shape for j in node.inputs]
                error = run_error(node, op, inputs, shapes, box, self.graph.deployed)
            if error is not None:
                errors.append(error.expand_as(box.lower))
                box = Box(box.lower - errors[-1], box.upper + errors[-1])
        if errors:
            self._run_errors[i] = sum(errors[1:], errors[0])
        return box

    def alphas(self, i: int) -> dict[int, Tensor]:
        """What may be chosen in the relaxations that node ``i`` depends on: its defaults, see `Operation.alpha`."""
        needed = {i}
        for k in range(i, 0, -1):
            if k in needed:
                needed.update(self.graph.nodes[k].inputs)
        found: dict[int, Tensor] = {}
        for k, prepared in self._prepared.items():
            op = self.operations[k]
            alpha = op.alpha(prepared) if op and k in needed else None
            if alpha is not None:
                found[k] = alpha
        return found

    def parts(self, region: Region, boxes: Mapping[int, Box]) -> Propagation:
        """This propagation for parts of its region, which somebody else cut: boxes are replaced, none is found anew.

        Sizes (what rounding is relative to) stay those of the whole region, which are no smaller.

        Args:
            region: of the parts, n of them; this propagation must be of one sample.
            boxes: of some nodes, inside this propagation's own boxes: (n, \\*shape).
        """
        found = copy(self)
        found.region = region
        found.boxes = [boxes.get(i, box) for i, box in enumerate(self.boxes)]
        found._prepared, found._lost = dict(self._prepared), dict(self._lost)
        for i, node in enumerate(self.graph.nodes):
            if any(j in boxes for j in node.inputs):
                found._ready(i, [found.boxes[j] for j in node.inputs])
        return found

    def tightened(self) -> list[int]:
        """The nodes whose boxes backward passes may improve: those that a nonlinear operation reads."""
        readers = ((i, self.operations[j]) for i, found in enumerate(self._consumers) for j in found)
        return sorted({i for i, op in readers if op and not op.linear and not self._settled[i]})

    def affine_in_input(self, i: int) -> bool:
        """Whether a node is an affine function of the input, so that one backward pass bounds it exactly."""
        return self._affine[i]

    def terms(self, i: int) -> int:
        """How many roundings a node's output may have seen: the k of gamma_k."""
        node = self.graph.nodes[i]
        return 16 + node_size(node.shape) + sum(node_size(self.graph.nodes[j].shape) for j in node.inputs)

    def _tighten(self, i: int, alphas: Alphas, every: bool) -> Box:
        """Backward bounds of the entries of a node that its nonlinear readers want, where better than the box."""
        box, wanted = self.boxes[i], None
        for j in self._consumers[i]:
            op = self.operations[j]
            assert op is not None
            more = op.unstable(self.graph.nodes[j], box)
            wanted = more if wanted is None else wanted if more is None else wanted | more
        if every or self._compared[i]:
            wanted = ~(box.lower >= box.upper)
        if wanted is None or not (most := int(wanted.flatten(1).sum(1).max())):
            return box
        chosen = wanted.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        found: list[Tensor] = []
        for part in torch.split(chosen.T, self._rows(i, len(wanted))):
            if (
                torch.is_grad_enabled()
            ):  # what a pass computed is computed again when gradients need it: memory stays bounded
                least, most, coefficients = checkpoint(self._both_ends, i, part, alphas, use_reentrant=False)
            else:
                least, most, coefficients = self._both_ends(i, part, alphas)
            if self.arrived is not None:
                self.arrived(Entries(i, part, least, most, coefficients))
            found.append(torch.stack([least, most]))
        lower, upper = torch.cat(found, 1).transpose(1, 2)
        flat = Box(box.lower.flatten(1), box.upper.flatten(1))
        # a sample with fewer wanted entries keeps the others, so that its bounds do not depend on the batch
        least, largest, asked = (
            flat.lower.gather(1, chosen),
            flat.upper.gather(1, chosen),
            wanted.flatten(1).gather(1, chosen),
        )
        lower = torch.where(asked, torch.maximum(least, lower), least)
        upper = torch.where(asked, torch.minimum(largest, upper), largest)
        return Box(
            flat.lower.scatter(1, chosen, lower).view_as(box.lower),
            flat.upper.scatter(1, chosen, upper).view_as(box.upper),
        )

    def _both_ends(self, i: int, chosen: Tensor, alphas: Alphas) -> tuple[Tensor, Tensor, Tensor]:
        """The least and the largest value of chosen entries of a node, each (rows, n), and the coefficients of both."""
        node, op, (rows, n) = self.graph.nodes[i], self.operations[i], chosen.shape
        start = op.pull_units(node, chosen, self._prepare(i, alphas)) if op else None
        if start is None:
            unit = self.boxes[i].lower.new_zeros(rows, n, node_size(node.shape)).scatter_(2, chosen.unsqueeze(2), 1.0)
            a = unit.view(rows, n, *node.shape)
            found = self.linear_bound(i, torch.cat([a, -a]), alphas)
        else:
            (a,), constant = start
            a = torch.cat([a, -a])
            total = a.new_zeros(a.shape[:2]) if constant is None else torch.cat([constant, -constant])
            # the look-up is exact; what folding did to the weights is not
            slack = gamma(self.terms(i)) * self._sizes[i] if self.sound else 0.0
            if i in self._run_errors:
                run = self._run_errors[i].flatten(1).gather(1, chosen.T).T
                total = total - torch.cat([run, run])
            found = self._descend({node.inputs[0]: a}, total, torch.zeros_like(total) + slack, alphas)
        least, negated = found.least.chunk(2)
        assert found.coefficients is not None
        return least, -negated, found.coefficients

    def _rows(self, i: int, n: int) -> int:
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

    def pull(self, k: int, a: Tensor, alphas: Alphas | None = None) -> tuple[Sequence[Tensor], Tensor | None, Tensor]:
        """One step back: ``<a, value of node k>`` is at least ``sum <parts, inputs> + constant - error``.

        Args:
            k: a node other than the input; the boxes of its inputs must be known.
            a: (rows, n, \\*shape).
            alphas: see `minimum`.

        Returns:
            The parts, one for each input, the constant (None: 0) and what rounding may have done, (rows, n).
        """
        op, slack = self.operations[k], a.new_zeros(a.shape[:2])
        assert op is not None
        parts, constant = op.pull(self.graph.nodes[k], a, self._prepare(k, alphas))
        if k in self._sizes:
            slack = gamma(self.terms(k)) * norm(a, 2) * self._sizes[k]
        if k in self._lost:
            never = self._lost[k].expand(a.shape[:2])
            constant = never if constant is None else constant + never
        if k in self._run_errors:
            run = torch.einsum("snd,nd->sn", a.flatten(2).abs(), self._run_errors[k].flatten(1))
            constant = -run if constant is None else constant - run
            slack = slack + gamma(a[0, 0].numel() + 1) * run.detach()
        return parts, constant, slack

    def _prepare(self, k: int, alphas: Alphas | None) -> Any:
        node, op = self.graph.nodes[k], self.operations[k]
        assert op is not None
        if alphas and k in alphas:
            return op.prepare(node, [self.boxes[j] for j in node.inputs], alphas[k])
        return self._prepared[k]


def specification(
    found: Propagation,
    c: Tensor,
    d: Tensor | None = None,
    alphas: Alphas | None = None,
    *,
    extra: Coefficients | None = None,
    at_boxes: bool = False,
) -> Tensor:
    """Lower bounds of ``C f(x') + d`` from a propagation that has run: `linear_specification` without the functions.

    Returns:
        (n, rows).
    """
    return linear_specification(found, c, d, alphas, extra=extra, at_boxes=at_boxes).least


def linear_specification(
    found: Propagation,
    c: Tensor,
    d: Tensor | None = None,
    alphas: Alphas | None = None,
    *,
    extra: Coefficients | None = None,
    at_boxes: bool = False,
) -> LinearBound:
    """Lower bounds of ``C f(x') + d`` from a propagation that has run, with linear functions of the input below it.

    Args:
        found: the propagation.
        c: (n, rows, classes) or (rows, classes).
        d: (rows,) or (n, rows), 0 if missing.
        alphas: see `Propagation.minimum`.
        extra: see `Propagation.minimum`.
        at_boxes: see `Propagation.minimum`.

    Returns:
        Samples first: (n, rows), and (n, rows, features).

    Raises:
        UnsupportedError: the output is not a vector.
    """
    output = len(found.graph.nodes) - 1
    if len(found.graph.output_shape) != 1:
        raise UnsupportedError(f"a specification needs a vector as output, not {found.graph.output_shape}")
    n, reference = len(found.region.x), found.region.x
    rows = c.to(reference).expand(n, *c.shape[-2:]).transpose(0, 1)
    bound = found.linear_bound(output, rows, alphas, extra=extra, at_boxes=at_boxes)
    lower = bound.least.T
    coefficients = None if bound.coefficients is None else bound.coefficients.transpose(0, 1)
    if d is not None:
        lower = lower + d.to(reference)
        lower = numbers(lower - gamma(1) * lower.abs()) if found.sound else lower
    return LinearBound(lower, coefficients)
