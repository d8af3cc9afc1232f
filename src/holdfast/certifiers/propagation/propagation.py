"""Bounds of every node of a graph over a region: boxes forwards, linear functions backwards, the best of both kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from holdfast.certifiers.propagation.deployment import run_error, weight_error
from holdfast.certifiers.propagation.lowering import lowered
from holdfast.certifiers.propagation.operation import Operation
from holdfast.certifiers.propagation.region import Box, Region, gamma, norm
from holdfast.certifiers.propagation.substitution import Alphas, Step, Substitution, finite_samples
from holdfast.certifiers.propagation.table import entry
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.sets import LpBall
from holdfast.graph.model import Graph, Node

__all__ = ["Entries", "Propagation", "check_constants", "propagated"]


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


class Propagation(Substitution):
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
        operations = [None, *(entry(n, lines) for n in graph.nodes[1:])]
        super().__init__(graph, region, operations, sound=sound, memory=memory)
        self.arrived = arrived
        self._settled = list(self.structure.settled)

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
            box, error = self._as_run(node, op, inputs, box)
            if known:
                box = Box(torch.maximum(box.lower, known[i].lower), torch.minimum(box.upper, known[i].upper))
            paid = Step(size=None if size is None else norm(size, 1), run_error=error)
            self._steps[i] = self._step(i, inputs, paid)
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
            floor = op.floor(node, inputs) if self.structure.partial and size is not None else None
        lower, upper = box
        if size is not None:
            slack = gamma(self.terms(i)) * size
            least, most = op.range(node)
            lower, upper = (lower - slack).clamp(min=least), (upper + slack).clamp(max=most)
        box = Box(lower if floor is None else torch.maximum(lower, floor), upper).known
        if op.linear:
            return box, size
        lost = torch.where(finite_samples(inputs), 0.0, torch.inf).to(lower).view(-1, *(1,) * len(node.shape))
        if op.elementwise:  # entry by entry
            lost = torch.where(inputs[0].lower.isfinite() & inputs[0].upper.isfinite(), 0.0, torch.inf).to(lower)
        return Box(box.lower - lost, box.upper + lost), size

    def _as_run(self, node: Node, op: Operation, inputs: Sequence[Box], box: Box) -> tuple[Box, Tensor | None]:
        """The box of a value with what the tolerance of the weights and the network's own arithmetic may add, and that."""
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
        return box, sum(errors[1:], errors[0]) if errors else None

    def tightened(self) -> list[int]:
        """The nodes whose boxes backward passes may improve: those that a nonlinear operation reads."""
        readers = ((i, self.operations[j]) for i, js in enumerate(self.structure.consumers) for j in js)
        return sorted({i for i, op in readers if op and not op.linear and not self._settled[i]})

    def _tighten(self, i: int, alphas: Alphas, every: bool) -> Box:
        """Backward bounds of the entries of a node that are unstable in a nonlinear reader, where better than the box."""
        box, unstable = self.boxes[i], None
        for j in self.structure.consumers[i]:
            op = self.operations[j]
            assert op is not None
            more = op.unstable(self.graph.nodes[j], box)
            unstable = more if unstable is None else unstable if more is None else unstable | more
        if every or self.structure.compared[i]:
            unstable = ~(box.lower >= box.upper)
        if unstable is None or not (most := int(unstable.flatten(1).sum(1).max())):
            return box
        chosen = unstable.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        ends: list[Tensor] = []
        for part in torch.split(chosen.T, self._rows_at_once(i, len(unstable))):
            if (
                torch.is_grad_enabled()
            ):  # what a pass computed is computed again when gradients need it: memory stays bounded
                least, most, coefficients = checkpoint(self._both_ends, i, part, alphas, use_reentrant=False)
            else:
                least, most, coefficients = self._both_ends(i, part, alphas)
            if self.arrived is not None:
                self.arrived(Entries(i, part, least, most, coefficients))
            ends.append(torch.stack([least, most]))
        lower, upper = torch.cat(ends, 1).transpose(1, 2)
        flat = Box(box.lower.flatten(1), box.upper.flatten(1))
        # a sample with fewer unstable entries keeps the others, so that its bounds do not depend on the batch
        least, largest, asked = (
            flat.lower.gather(1, chosen),
            flat.upper.gather(1, chosen),
            unstable.flatten(1).gather(1, chosen),
        )
        lower = torch.where(asked, torch.maximum(least, lower), least)
        upper = torch.where(asked, torch.minimum(largest, upper), largest)
        return Box(
            flat.lower.scatter(1, chosen, lower).view_as(box.lower),
            flat.upper.scatter(1, chosen, upper).view_as(box.upper),
        )


def propagated(
    graph: Graph,
    ball: LpBall,
    x: Tensor,
    *,
    memory: int | None = None,
    lines: Mapping[str, Operation] | None = None,
) -> Propagation:
    """A propagation in float64 that has run, with each box tightened that a backward pass may improve.

    Args:
        graph: the model, in any type.
        ball: the set around each sample.
        x: samples (n, \\*features).
        memory: see `Propagation`.
        lines: see `Propagation`.
    """
    run = Propagation(graph.to(torch.float64), Region(ball, x), memory=memory, lines=lines)
    run.run(refine=lambda _: True)
    return run


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
