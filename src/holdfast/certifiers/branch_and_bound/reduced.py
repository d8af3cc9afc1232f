"""What is left of a graph once its boxes are known: only the activations that bend, and linear maps between them.

On a trained network most activations are dead or linear over the region. Substituting them leaves dense maps between the
few that bend, the input and the rows in question, and a backward pass becomes a handful of small matrix products. The
search of branch and bound runs on this, in float32: it finds slopes and multipliers. It proves nothing; what it finds is
put to `Propagation` on the whole graph, soundly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.propagation.operation import Operation, node_size
from holdfast.certifiers.propagation.operations.activations import LeakyRelu, Lines
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.core.errors import UnsupportedError
from holdfast.core.threat import Norm

__all__ = ["Cuts", "Layer", "Linear", "Pass", "Reduced", "State"]

_CHUNK = 1 << 26


@dataclass(frozen=True)
class Layer:
    """The entries of one activation that bend.

    Attributes:
        node: the activation.
        source: the node that it reads.
        index: (k,) int64, entries of its flattened value.
        start: position of the first of them among all that bend.
        stop: position after the last.
        operation: the activation's entry in the table.
    """

    node: int
    source: int
    index: Tensor
    start: int
    stop: int
    operation: Operation

    @property
    def span(self) -> slice:
        """Its positions among all that bend."""
        return slice(self.start, self.stop)


class Linear(NamedTuple):
    """Linear functions: ``<r, bent activations> + <x, input> + c``; (n, units), (n, inputs), (n,)."""

    r: Tensor
    x: Tensor
    c: Tensor

    @override
    def __getitem__(self, rows: Tensor) -> Linear:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Linear(self.r[rows], self.x[rows], self.c[rows])


class Cuts(NamedTuple):
    """Splits on the way to each part, (n, depth): padded with side 0.

    ``unit`` is the position of the activation, whose argument is at least ``point`` (side 1) or at most (side -1).
    """

    unit: Tensor
    side: Tensor
    point: Tensor
    multiplier: Tensor

    def pick(self, rows: Tensor) -> Cuts:
        """The splits of some parts."""
        return Cuts(*(t[rows] for t in self))


class State(NamedTuple):
    """Parts of the region, and what is optimised for each.

    Attributes:
        low: least arguments of the activations, (n, units).
        high: the largest.
        slope: lower slopes of ReLUs, (n, units).
        alphas: of each layer that is no ReLU what its operation may choose, (n, ..., entries of the layer).
        cuts: with the multipliers.
    """

    low: Tensor
    high: Tensor
    slope: Tensor
    alphas: list[Tensor]
    cuts: Cuts

    def pick(self, rows: Tensor) -> State:
        """Some of the parts, repeats allowed."""
        alphas = [t[rows] for t in self.alphas]
        return State(self.low[rows], self.high[rows], self.slope[rows], alphas, self.cuts.pick(rows))

    @classmethod
    def join(cls, states: Sequence[State]) -> State:
        """The parts of all, one after another; all have the same number of cuts."""
        low, high, slope, alphas, cuts = zip(*states, strict=True)
        joined = [torch.cat(t) for t in zip(*alphas, strict=True)]
        both = Cuts(*(torch.cat(t) for t in zip(*cuts, strict=True)))
        return cls(torch.cat(low), torch.cat(high), torch.cat(slope), joined, both)

    @property
    def variables(self) -> list[Tensor]:
        """All that is optimised."""
        return [self.slope, self.cuts.multiplier, *self.alphas]

    def replaced(self, variables: list[Tensor]) -> State:
        """The same parts with other variables."""
        slope, multiplier, *alphas = variables
        return State(self.low, self.high, slope, alphas, Cuts(*self.cuts[:3], multiplier))


class Pass(NamedTuple):
    """One backward pass and the forward pass of its dual: the point that attains the bound.

    Attributes:
        bound: (n,).
        a: coefficients of the bent activations, (n, units).
        z: arguments of the activations at the minimiser, in the relaxation.
        r: values of the activations there, in the relaxation.
        x: the minimiser, (n, inputs): the free entries of the flattened input.
        lines: of the activations.
        gradients: how the bound changes with each of the variables, if they were asked for.
    """

    bound: Tensor
    a: Tensor
    z: Tensor
    r: Tensor
    x: Tensor
    lines: Lines
    gradients: list[Tensor]

    def pick(self, rows: Tensor) -> Pass:
        """Some of the rows, without gradients."""
        below, lower, above, upper, _ = self.lines
        lines = Lines(below[rows], None if lower is None else lower[rows], above[rows], upper[rows])
        return Pass(self.bound[rows], self.a[rows], self.z[rows], self.r[rows], self.x[rows], lines, [])


class Reduced:
    """A graph over one region, reduced to its bent activations.

    Args:
        found: a propagation of one sample that has run.
        region: its region in float32.
        c: (rows, outputs).
        d: (rows,).
        memory: bytes that the maps may take.

    Attributes:
        layers: in topological order.
        low: least arguments of the bent activations, (units,).
        high: the largest.
        slope: their default lower slopes.
        rows: the specification.
        values: the arguments of the bent activations.

    Raises:
        UnsupportedError: a nonlinear operation that is no activation of single entries, or maps that are too large.
    """

    def __init__(self, found: Propagation, region: Region, c: Tensor, d: Tensor, memory: int) -> None:
        self._found, self._region = found, region
        self.layers: list[Layer] = []
        self._stable: dict[int, tuple[Tensor, Tensor, Layer]] = {}
        low: list[Tensor] = []
        high: list[Tensor] = []
        slope: list[Tensor] = []
        flat: list[Tensor] = []
        units = 0
        for k, op in enumerate(found.operations):
            if op is None or op.linear:
                continue
            node = found.graph.nodes[k]
            source = node.inputs[0]
            box = found.boxes[source]
            lines = op.prepare(node, [found.boxes[j] for j in node.inputs]) if op.elementwise else None
            if not isinstance(lines, Lines) or len(node.inputs) > 1:
                raise UnsupportedError(f"neurons are split at activations of one argument; '{node.op}' is none")
            wanted = op.unstable(node, box)
            bent = (torch.ones_like(box.lower, dtype=torch.bool) if wanted is None else wanted).flatten()
            index = bent.nonzero().squeeze(1)
            layer = Layer(k, source, index, units, units + len(index), op)
            units = layer.stop
            self.layers.append(layer)
            rest = lines.upper_slope.masked_fill(bent.view_as(lines.upper_slope), 0.0)
            self._stable[k] = (rest, lines.upper_intercept.masked_fill(bent.view_as(rest), 0.0), layer)
            low.append(box.lower.flatten()[index])
            high.append(box.upper.flatten()[index])
            slope.append(lines.lower_slope.flatten()[index])
            kink = float(node.attributes.get("slope", 0.0)) if isinstance(op, LeakyRelu) else torch.nan
            flat.append(torch.full_like(low[-1], kink))
        self.smooth = [y for y in self.layers if not isinstance(y.operation, LeakyRelu) and y.stop > y.start]
        box = found.boxes[0]
        self.boxed = region.norm is Norm.LINF and region.independent
        # an input that is a point is a constant
        free = box.upper > box.lower if self.boxed else torch.ones_like(box.lower, dtype=torch.bool)
        self.free = free.flatten().nonzero().squeeze(1)
        self.units = units
        if 4 * (units + len(c)) * (units + len(self.free)) > memory:
            raise UnsupportedError(f"{units} bent activations of {len(self.free)} inputs need more memory than given")
        none = box.lower.new_zeros(0)
        self._ends = Box(torch.cat([*low, none]), torch.cat([*high, none]))
        self.low, self.high, self.slope, self.flat = (torch.cat([*t, none]).float() for t in (low, high, slope, flat))
        self.source = torch.cat([torch.full_like(y.index, y.source) for y in self.layers] + [none.long()])
        self.entry = torch.cat([*(y.index for y in self.layers), none.long()])
        self._fixed = torch.where(free, 0.0, box.lower).flatten()
        centre = ((box.lower + box.upper) / 2).flatten()[self.free]
        self.centre, self.radius = centre.float(), (box.upper.flatten()[self.free] - centre).float()
        self._hub, self._hub_index, self._hub_map = None, self.free, None
        self._find_hub(len(c))
        output = len(found.graph.nodes) - 1
        r, x, const = self._linear(output, c.to(centre).view(len(c), 1, *found.graph.output_shape))
        self.rows = Linear(r, x, const + d.to(const))
        parts = [Linear(*(t[:0] for t in self.rows)), *(self._units(layer) for layer in self.layers)]
        self.values = Linear(*(torch.cat(t) for t in zip(*parts, strict=True)))
        # which earlier units each layer reads: none but the last few where nothing linear leads around them
        self._reach: dict[int, slice] = {}
        for layer in self.layers:
            used = self.values.r[layer.span, : layer.start].any(0).nonzero()
            self._reach[layer.node] = slice(int(used[0]) if len(used) else layer.start, layer.start)

    def _find_hub(self, rows: int) -> None:
        """Lets the input enter through the first activation's argument, if that is what all else reads and is small.

        A dense network often has few live neurons in its first layer: then that is the space to work in.
        """
        graph = self._found.graph
        if not self.layers:
            return
        source = self.layers[0].source
        before = set(range(source))
        entry = any(j in before for i, node in enumerate(graph.nodes) if i > source for j in node.inputs)
        if entry or not self._found.affine_in_input(source):
            return
        slope = self._stable[self.layers[0].node][0].flatten()
        live = slope != 0
        live[self.layers[0].index] = True
        if sum(source in node.inputs for node in graph.nodes) > 1:
            live = torch.ones_like(live)
        count, inputs = int(live.sum()), len(self.free)
        if count * (inputs + self.units + rows) >= (self.units + rows) * inputs:
            return
        index = live.nonzero().squeeze(1)
        shape = graph.nodes[source].shape
        unit = self._fixed.new_zeros(count, node_size(shape)).scatter_(1, index.unsqueeze(1), 1.0)
        linear = self._linear(source, unit.view(count, 1, *shape))
        self._hub, self._hub_index, self._hub_map = source, index, linear

    def _units(self, layer: Layer) -> Linear:
        """The arguments of a layer's activations."""
        shape = self._found.graph.nodes[layer.source].shape
        size = node_size(shape)
        parts: list[Linear] = []
        largest = max(node_size(n.shape) for n in self._found.graph.nodes)
        for chosen in torch.split(layer.index, max(_CHUNK // (8 * largest), 1)) if len(layer.index) else ():
            unit = self._found.boxes[0].lower.new_zeros(len(chosen), size).scatter_(1, chosen.unsqueeze(1), 1.0)
            parts.append(self._linear(layer.source, unit.view(-1, 1, *shape)))
        if not parts:
            return Linear(*(self.centre.new_zeros(0, *t) for t in ((self.units,), (len(self._hub_index),), ())))
        return Linear(*(torch.cat(t) for t in zip(*parts, strict=True)))

    def _linear(self, i: int, a: Tensor) -> Linear:
        """``<a, value of node i>`` in terms of bent activations and input; float32, and not sound."""
        found, pending = self._found, {i: a}
        constant = a.new_zeros(len(a))
        r, x = self.centre.new_zeros(len(a), self.units), self.centre.new_zeros(len(a), len(self._hub_index))
        if not len(a):  # a layer in which nothing is live
            return Linear(r, x, constant.float())
        for k in range(i, -1, -1):
            if k not in pending:
                continue
            a, node, op = pending.pop(k), found.graph.nodes[k], found.operations[k]
            if k == self._hub:
                x = a.flatten(1)[:, self._hub_index].float()
                continue
            if op is None:
                flat = a.flatten(1)
                constant = constant + flat @ self._fixed
                x = flat[:, self.free].float()
                continue
            if k in self._stable:
                slope, intercept, layer = self._stable[k]
                flat = a.flatten(1)
                r[:, layer.span] = flat[:, layer.index].float()
                constant = constant + flat @ intercept.flatten()
                pulled = [a * slope]
            else:
                pulled, more = op.pull(node, a, op.prepare(node, [found.boxes[j] for j in node.inputs]))
                constant = constant if more is None else constant + more.squeeze(1)
            for j, part in zip(node.inputs, pulled, strict=True):
                pending[j] = pending[j] + part if j in pending else part
        return Linear(r, x, constant.float())

    def state(self, n: int) -> State:
        """The whole region, n times, with default slopes."""
        empty = self.low.new_zeros(n, 0)
        cuts = Cuts(empty.long(), empty, empty, empty)
        alphas: list[Tensor] = []
        for layer in self.smooth:
            box = Box(self.low[None, layer.span], self.high[None, layer.span])
            lines: Lines = layer.operation.prepare(self._found.graph.nodes[layer.node], [box])
            alpha = layer.operation.alpha(lines)
            assert alpha is not None
            alphas.append(alpha.detach().repeat(n, *(1,) * (alpha.ndim - 1)))
        return State(self.low.expand(n, -1), self.high.expand(n, -1), self.slope.repeat(n, 1), alphas, cuts)

    def narrow(self, layer: Layer, box: Box) -> None:
        """Puts a better box of a layer's arguments, (1, \\*shape), in the place of the old one."""
        for t, new, whole in zip((self.low, self.high), box, self._ends, strict=True):
            whole[layer.span] = new.flatten()[layer.index]
            t[layer.span] = whole[layer.span].float()
        lines: Lines = layer.operation.prepare(self._found.graph.nodes[layer.node], [box])
        self.slope[layer.span] = lines.lower_slope.flatten()[layer.index].float()

    def cut(self, cuts: Cuts) -> Box:
        """Least and largest arguments in each part, (n, units) float64: sound if the boxes were."""
        n, spare = len(cuts.unit), torch.full_like(cuts.unit, self.units)
        low, high = (torch.cat([t, t.new_zeros(1)]).repeat(n, 1) for t in self._ends)
        point = cuts.point.double()
        low.scatter_reduce_(1, torch.where(cuts.side > 0, cuts.unit, spare), point, "amax")
        high.scatter_reduce_(1, torch.where(cuts.side < 0, cuts.unit, spare), point, "amin")
        return Box(low[:, :-1], high[:, :-1])

    def minimum(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The least of ``<a, input>`` for rows (n, inputs), and where: (n,), (n, inputs)."""
        if self.boxed:
            x = torch.where(a > 0, self.centre - self.radius, self.centre + self.radius)
            return (a * x).sum(1), x
        with torch.enable_grad():
            whole = a.unsqueeze(1).requires_grad_()
            value = self._region.minimum(whole.view(len(a), 1, *self._region.x.shape[1:]))[0]
            (x,) = torch.autograd.grad(value.sum(), whole)
        return value.detach().squeeze(1), x.squeeze(1)

    def point(self, x: Tensor) -> Tensor:
        """Inputs of the model (n, \\*features), float64, from their free entries (n, inputs)."""
        whole = self._fixed.repeat(len(x), 1)
        whole[:, self.free] = x.double()
        return whole.view(-1, *self._region.x.shape[1:])

    def entering(self, rows: Linear) -> tuple[Any, Any]:
        """The part of linear functions that is of the input and of nothing that bends: arrays (n, inputs), (n,)."""
        x, c = rows.x.double(), rows.c.double()
        if self._hub_map is not None:
            x, c = x @ self._hub_map.x.double(), c + x @ self._hub_map.c.double()
        return x.numpy().copy(), c.numpy().copy()

    def _chords(self, low: Tensor, high: Tensor) -> Lines:
        """The lines of ReLU; the first part says (1 or 0) where the slope below is free."""
        either = ~((low >= 0) | (high <= 0))
        width = torch.where(either, high - low, 1.0)
        chord = torch.where(
            either, (high - self.flat * low) / width, torch.where(low >= 0, torch.ones_like(low), self.flat)
        )
        return Lines(either.to(low.dtype), None, chord, torch.where(either, high - chord * high, 0.0))

    def _lines(self, state: State, chords: Lines) -> tuple[Lines, list[tuple[Tensor, Lines]]]:
        """The lines at the slopes as they are; those that are no ReLU's again, with the choice that they depend on."""
        below = torch.where(chords.lower_slope > 0, state.slope, chords.upper_slope)
        if not self.smooth:
            return chords._replace(lower_slope=below), []
        lines = Lines(below, torch.zeros_like(below), chords.upper_slope.clone(), chords.upper_intercept.clone())
        found: list[tuple[Tensor, Lines]] = []
        for layer, alpha in zip(self.smooth, state.alphas, strict=True):
            node, box = self._found.graph.nodes[layer.node], Box(state.low[:, layer.span], state.high[:, layer.span])
            with torch.enable_grad():
                leaf = alpha.unsqueeze(0).requires_grad_()
                own: Lines = layer.operation.prepare(node, [box], leaf)
            for whole, part in zip(lines[:4], own[:4], strict=True):
                if whole is not None and part is not None:
                    whole[:, layer.span] = part.detach()
            found.append((leaf, own))
        return lines, found

    def evaluate(
        self,
        rows: Linear,
        state: State,
        chords: Lines | None = None,
        depth: int | None = None,
        *,
        gradients: bool = False,
        forth: bool = True,
    ) -> Pass:
        """Bounds rows from below in one pass back, and finds where they are attained in one pass forth.

        Args:
            rows: the functions, (n, ...).
            state: of n parts.
            chords: of the parts' boxes, if they are known.
            depth: how many layers the rows depend on; all if missing.
            gradients: whether they are wanted.
            forth: whether the minimiser's values are wanted; without, they are zeros.
        """
        layers = self.layers[:depth]
        top = layers[-1].stop if layers else 0
        lines, smooth = self._lines(state, chords or self._chords(state.low, state.high))
        below, lower_intercept, above, upper_intercept, *_ = lines
        cuts, values = state.cuts, self.values
        pull = cuts.side * cuts.multiplier
        shift = torch.zeros_like(rows.r).scatter_add_(1, cuts.unit, -pull) if pull.shape[1] else None
        a, back = rows.r.clone(), torch.zeros_like(rows.r)
        for layer in reversed(layers):
            span = layer.span
            part = a[:, span]
            b = torch.where(part < 0, above[:, span], below[:, span]).mul_(part)
            back[:, span] = b if shift is None else b.add_(shift[:, span])
            reach = self._reach[layer.node]
            if reach.start < reach.stop:
                a[:, reach].addmm_(back[:, span], values.r[span, reach])
        negative = a < 0
        entering = torch.addmm(rows.x, back[:, :top], values.x[:top])
        if self._hub_map is None:
            least, x = self.minimum(entering)
            y = x
        else:
            least, x = self.minimum(entering @ self._hub_map.x)
            least = least + entering @ self._hub_map.c
            y = torch.addmm(self._hub_map.c, x, self._hub_map.x.T) if forth else x
        bound = rows.c + least + back[:, :top] @ values.c[:top] + (pull * cuts.point).sum(1)
        intercepts = torch.where(negative, upper_intercept, 0.0 if lower_intercept is None else lower_intercept)
        bound = bound + (a[:, :top] * intercepts[:, :top]).sum(1)
        z, r = torch.zeros_like(a), torch.zeros_like(a)
        if not forth:
            return Pass(bound, a, z, r, x, lines, [])
        z[:, :top] = torch.addmm(values.c[:top], y, values.x[:top].T)
        slopes = torch.where(negative, above, below)
        for layer in layers:
            span = layer.span
            reach = self._reach[layer.node]
            if reach.start < reach.stop:
                z[:, span].addmm_(r[:, reach], values.r[span, reach].T)
            r[:, span] = torch.addcmul(intercepts[:, span], slopes[:, span], z[:, span])
        wanted: list[Tensor] = []
        if gradients:
            positive = a.clamp(min=0)
            wanted = [positive * z, cuts.side * (cuts.point - z.gather(1, cuts.unit))]
            for layer, (leaf, own) in zip(self.smooth, smooth, strict=True):
                s = layer.span
                with torch.enable_grad():
                    lower, upper = own.lower_slope * z[:, s], own.upper_slope * z[:, s] + own.upper_intercept
                    lower = lower if own.lower_intercept is None else lower + own.lower_intercept
                    total = (positive[:, s] * lower + (a[:, s] - positive[:, s]) * upper).sum()
                wanted.append(torch.autograd.grad(total, leaf)[0][0])
        return Pass(bound, a, z, r, x, lines, wanted)

    def ascend(
        self,
        rows: Linear,
        state: State,
        steps: int,
        *,
        step: float,
        decay: float,
        depth: int | None = None,
        target: float = torch.inf,
        until: float = torch.inf,
    ) -> tuple[Tensor, State]:
        """Adam on slopes and multipliers, upwards; the best of each row is kept.

        Args:
            rows: (n, ...).
            state: of n parts; where it starts.
            steps: passes back and forth, at least 0; one more says how good the last one was.
            step: of slopes; multipliers take as large a part of their activation's coefficient.
            decay: what it is multiplied by at each step.
            depth: see `evaluate`.
            target: rows beyond it are left alone.
            until: on the clock of `time.monotonic`.

        Returns:
            Bounds (n,) and the state that they were found at.
        """
        n = len(rows.c)
        best = rows.c.new_full((n,), -torch.inf)
        index = torch.arange(n, device=rows.c.device)
        kept, whole = [t.clone() for t in state.variables], state
        state = state.replaced([t.clone() for t in state.variables])
        chords = self._chords(state.low, state.high)
        moments = [(torch.zeros_like(t), torch.zeros_like(t)) for t in kept]
        scale, floor = torch.zeros_like(state.cuts.multiplier), self.flat.nan_to_num(0.0)
        for t in range(1, steps + 2):
            found = self.evaluate(rows, state, chords, depth, gradients=t <= steps)
            better = found.bound > best[index]
            risen = index[better]
            best[risen] = found.bound[better]
            for mine, now in zip(kept, state.variables, strict=True):
                mine[risen] = now[better]
            if t > steps or monotonic() > until:
                break
            if t == 1:  # a multiplier is worth as much as the coefficient of its activation
                size = found.a.abs()
                scale = torch.maximum(size.gather(1, state.cuts.unit), 0.1 * size.mean(1, keepdim=True))
            for k, variable in enumerate(state.variables):
                if not variable.numel():
                    continue
                gradient, (mean, square) = found.gradients[k], moments[k]
                mean.lerp_(gradient, 0.1)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                move = mean / (square / (1 - 0.999**t)).sqrt_().add_(1e-12)
                if k == 1:
                    move *= scale
                variable.add_(move, alpha=step * decay ** (t - 1) / (1 - 0.9**t))
                if k == 0:
                    torch.maximum(variable.clamp_(max=1), floor, out=variable)
                elif k == 1:
                    variable.clamp_(min=0)
                else:
                    variable.clamp_(0, 1)
            if t % 4 == 0 and t < steps and target < torch.inf:
                left = (~(best[index] > target)).nonzero().squeeze(1)
                if not len(left):
                    break
                if 4 * len(left) < 3 * len(index):
                    index, rows, scale, state = index[left], rows[left], scale[left], state.pick(left)
                    chords = self._chords(state.low, state.high)
                    moments = [(mean[left], square[left]) for mean, square in moments]
        return best, whole.replaced(kept)
