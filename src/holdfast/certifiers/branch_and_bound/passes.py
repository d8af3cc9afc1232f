"""Passes over a reduced graph: back for bounds of rows, and forth for the points where these are attained."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.certifiers.branch_and_bound.reduced import Layer, LinearRows, NeuronState, Reduced
from holdfast.certifiers.propagation.operations.activations import Lines
from holdfast.certifiers.propagation.region import Box

__all__ = ["Pass", "chords", "evaluate"]


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


class _Smooth(NamedTuple):
    """The lines of a layer that is no ReLU, with the alpha (1, n, ...) that they depend on."""

    layer: Layer
    alpha: Tensor
    lines: Lines


class _Back(NamedTuple):
    """What a backward pass comes to.

    Attributes:
        bound: (n,).
        a: coefficients of the bent activations.
        negative: where they are below 0, so that the line above counts.
        intercepts: of the lines that count.
        x: the minimiser.
        entering: what enters there, the input or the hub.
    """

    bound: Tensor
    a: Tensor
    negative: Tensor
    intercepts: Tensor
    x: Tensor
    entering: Tensor


def chords(reduced: Reduced, state: NeuronState) -> Lines:
    """The lines of ReLUs over the parts' boxes; the first part says (1 or 0) where the slope below is free."""
    low, high = state.low, state.high
    either = ~((low >= 0) | (high <= 0))
    width = torch.where(either, high - low, 1.0)
    chord = torch.where(
        either, (high - reduced.flat * low) / width, torch.where(low >= 0, torch.ones_like(low), reduced.flat)
    )
    return Lines(either.to(low.dtype), None, chord, torch.where(either, high - chord * high, 0.0))


def evaluate(
    reduced: Reduced,
    rows: LinearRows,
    state: NeuronState,
    given: Lines | None = None,
    depth: int | None = None,
    *,
    gradients: bool = False,
    forth: bool = True,
) -> Pass:
    """Bounds rows from below in one pass back, and finds where they are attained in one pass forth.

    Args:
        reduced: the graph.
        rows: the functions, (n, ...).
        state: of n parts.
        given: the chords of the parts' boxes, if they are known.
        depth: how many layers the rows depend on; all if missing.
        gradients: whether they are wanted.
        forth: whether the minimiser's values are wanted; without, they are zeros.
    """
    layers = reduced.layers[:depth]
    lines, smooth = _lines(reduced, state, given or chords(reduced, state))
    back = _back(reduced, layers, rows, state, lines, forth=forth)
    z, r = torch.zeros_like(back.a), torch.zeros_like(back.a)
    if not forth:
        return Pass(back.bound, back.a, z, r, back.x, lines, [])
    _forth(reduced, layers, back, lines, z, r)
    changes = _gradients(state, back.a, z, smooth) if gradients else []
    return Pass(back.bound, back.a, z, r, back.x, lines, changes)


def _lines(reduced: Reduced, state: NeuronState, given: Lines) -> tuple[Lines, list[_Smooth]]:
    """The lines at the slopes as they are; those that are no ReLU's again, with the alpha that they depend on."""
    below = torch.where(given.lower_slope > 0, state.slope, given.upper_slope)
    if not reduced.smooth:
        return given._replace(lower_slope=below), []
    lines = Lines(below, torch.zeros_like(below), given.upper_slope.clone(), given.upper_intercept.clone())
    smooth: list[_Smooth] = []
    for layer, alpha in zip(reduced.smooth, state.alphas, strict=True):
        box = Box(state.low[:, layer.span], state.high[:, layer.span])
        with torch.enable_grad():
            leaf = alpha.unsqueeze(0).requires_grad_()
            own: Lines = layer.operation.prepare(reduced.activation(layer), [box], leaf)
        for whole, part in zip(lines[:4], own[:4], strict=True):
            if whole is not None and part is not None:
                whole[:, layer.span] = part.detach()
        smooth.append(_Smooth(layer, leaf, own))
    return lines, smooth


def _back(
    reduced: Reduced, layers: list[Layer], rows: LinearRows, state: NeuronState, lines: Lines, *, forth: bool
) -> _Back:
    """From the rows to the input, layer by layer."""
    below, lower_intercept, above, upper_intercept, *_ = lines
    cuts, values, hub = state.cuts, reduced.values, reduced.entrance.hub
    top = layers[-1].stop if layers else 0
    pull = cuts.side * cuts.multiplier
    shift = torch.zeros_like(rows.r).scatter_add_(1, cuts.unit, -pull) if pull.shape[1] else None
    a, back = rows.r.clone(), torch.zeros_like(rows.r)
    for layer in reversed(layers):
        span, before = layer.span, layer.before
        part = a[:, span]
        b = torch.where(part < 0, above[:, span], below[:, span]).mul_(part)
        back[:, span] = b if shift is None else b.add_(shift[:, span])
        if before.start < before.stop:
            a[:, before].addmm_(back[:, span], values.r[span, before])
    negative = a < 0
    entering = torch.addmm(rows.x, back[:, :top], values.x[:top])
    if hub is None:
        least, x = reduced.entrance.minimum(entering)
        y = x
    else:
        least, x = reduced.entrance.minimum(entering @ hub.x)
        least = least + entering @ hub.c
        y = torch.addmm(hub.c, x, hub.x.T) if forth else x
    bound = rows.c + least + back[:, :top] @ values.c[:top] + (pull * cuts.point).sum(1)
    intercepts = torch.where(negative, upper_intercept, 0.0 if lower_intercept is None else lower_intercept)
    bound = bound + (a[:, :top] * intercepts[:, :top]).sum(1)
    return _Back(bound, a, negative, intercepts, x, y)


def _forth(reduced: Reduced, layers: list[Layer], back: _Back, lines: Lines, z: Tensor, r: Tensor) -> None:
    """From the minimiser to the activations, whose arguments and values are written into ``z`` and ``r``."""
    values, top = reduced.values, layers[-1].stop if layers else 0
    z[:, :top] = torch.addmm(values.c[:top], back.entering, values.x[:top].T)
    slopes = torch.where(back.negative, lines.upper_slope, lines.lower_slope)
    for layer in layers:
        span, before = layer.span, layer.before
        if before.start < before.stop:
            z[:, span].addmm_(r[:, before], values.r[span, before].T)
        r[:, span] = torch.addcmul(back.intercepts[:, span], slopes[:, span], z[:, span])


def _gradients(state: NeuronState, a: Tensor, z: Tensor, smooth: list[_Smooth]) -> list[Tensor]:
    """How the bound changes with each of the state's variables, by what they are multiplied with at the minimiser."""
    cuts, positive = state.cuts, a.clamp(min=0)
    changes = [positive * z, cuts.side * (cuts.point - z.gather(1, cuts.unit))]
    for layer, alpha, own in smooth:
        s = layer.span
        with torch.enable_grad():
            lower, upper = own.lower_slope * z[:, s], own.upper_slope * z[:, s] + own.upper_intercept
            lower = lower if own.lower_intercept is None else lower + own.lower_intercept
            total = (positive[:, s] * lower + (a[:, s] - positive[:, s]) * upper).sum()
        changes.append(torch.autograd.grad(total, alpha)[0][0])
    return changes
