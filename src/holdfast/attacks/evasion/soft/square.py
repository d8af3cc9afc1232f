"""Square: random search with square windows that shrink (Andriushchenko et al. 2020), as AutoAttack runs it.

A query changes one window of the incumbent and keeps the change if the loss grew. Each sample has windows of its own
place and size; inputs that are no images are strips of height 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.image_view import image_view
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.distance import vector_norm
from holdfast.numerics.losses import complete, pick_loss
from holdfast.numerics.project import linf_bounds, project

__all__ = ["Square"]

_HALVINGS = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])  # in queries of a budget of 10,000
_TILES = 5  # along each side, at the start in l1 and l2


@dataclass(frozen=True)
class SquareState(State):
    """The incumbent x and its loss.

    Attributes:
        value: (n,) the loss of x, which grows.
        low: (n, \\*features) least values of the linf set; (n, 0) for the other norms.
        high: largest values, likewise.
    """

    value: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Square(Attack[SoftLabelAsk, SquareState]):
    """Random search: linf windows take one of the two extreme values in each channel; l1 and l2 windows gather the
    perturbation of another window, on a pattern of two opposite pyramids.
    """

    queries: int = parameter(
        5000, "queries for a sample, the clean one included if it is asked, at least 1", "AutoAttack"
    )
    p: float = parameter(
        0.8,
        "share of the features in the first window, in (0, 1]; halved nine times",
        "AutoAttack; 0.05 to 0.1 in the paper",
    )

    card: ClassVar[Card] = Card(
        title="Square",
        rows=("E29", "T03"),
        paper="Andriushchenko, Croce, Flammarion, Hein 2020, Square Attack: a query-efficient black-box adversarial "
        "attack via random search, arXiv:1912.00049",
        section="2.2",
        summary="Random search over windows at the edge of the set; needs scores, no gradient.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L1, Norm.L2, Norm.LINF),
        affine_ratio={},
        failure_modes=(
            "Windows suit images, whose neighbouring features act alike; on other inputs they are arbitrary groups.",
            "Finds that a budget breaks a sample, not the least budget: it stays at the edge of the set.",
        ),
        checked_by="robust counts of AutoAttack where gradients are masked",
    )

    @property
    @override
    def iterations(self) -> int:
        return self.queries - 1

    @override
    def start(self, ask: SoftLabelAsk) -> SquareState:
        problem = ask.problem
        x0, ball = problem.x, problem.ball
        if ball.norm is Norm.LINF:
            low, high = linf_bounds(ball, x0)
            x = _stripes(problem, low, high)
        else:
            low = high = x0.new_empty(len(x0), 0)
            x = project(ball, x0 + _tiles(problem), x0)
        value, _ = self._ask(ask, x)
        return SquareState(x, np.zeros(len(x0), dtype=np.int64), value=value, low=low, high=high)

    @override
    def step(self, ask: SoftLabelAsk, state: SquareState) -> SquareState:
        problem = ask.problem
        x = self._flip(problem, state) if problem.set.norm is Norm.LINF else self._gather(problem, state)
        value, answered = self._ask(ask, x)
        better = answered & (value > state.value)
        return replace(
            state,
            x=torch.where(problem.flat(better), x, state.x),
            value=torch.where(better, value, state.value),
        )

    def _ask(self, ask: SoftLabelAsk, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss: the margin, or the log-probability of the target."""
        problem = ask.problem
        answer = ask.scores(x)
        if problem.goal is Goal.TARGETED:
            return complete(answer.scores).gather(1, problem.target.unsqueeze(1)).squeeze(1), answer.answered
        loss, _ = pick_loss("log-margin", problem.goal, ask.classes)
        return loss(answer.scores, problem.y, problem.target), answer.answered

    def _window(self, problem: Problem, step: np.ndarray) -> tuple[tuple[tuple[int, int], ...], np.ndarray]:
        """The window sizes of the whole search, and which of them each sample is at."""
        _, h, w = image_view(problem)
        euclidean = problem.set.norm is not Norm.LINF
        sizes = tuple(_extent(self.p / 2**k, h, w, odd=euclidean) for k in range(len(_HALVINGS) + 1))
        return sizes, np.searchsorted(_HALVINGS, (step + 1) * 10_000 // self.queries)

    def _flip(self, problem: Problem, state: SquareState) -> Tensor:
        """The linf move: one random window to its largest or least values, channel by channel."""
        c, h, w = image_view(problem)
        sizes, level = self._window(problem, state.step)
        a, b = on_device(np.array(sizes)[level].T, state.x.device)
        u = problem.keyed.uniform("move", (2 + c,), state.step)
        inside = _inside(_place(u[:, 0], h, a), a, h, _place(u[:, 1], w, b), b, w)
        up = u[:, 2:].view(-1, c, 1, 1) < 0.5
        shape = (-1, c, h, w)
        extreme = torch.where(up, state.high.view(shape), state.low.view(shape))
        return torch.where(inside, extreme, state.x.view(shape)).view_as(state.x)

    def _gather(self, problem: Problem, state: SquareState) -> Tensor:
        """The l1 and l2 move: window 1 takes what window 2 holds and what eps leaves, and adds a signed pattern."""
        x0, ball = problem.x, problem.ball
        c, h, w = image_view(problem)
        sizes, level = self._window(problem, state.step)
        a, b = on_device(np.array(sizes)[level].T, x0.device)
        u = problem.keyed.uniform("move", (5 + c,), state.step).to(x0.dtype)
        top, left = _place(u[:, 0], h, a), _place(u[:, 1], w, b)
        here = _inside(top, a, h, left, b, w)
        there = _inside(_place(u[:, 2], h, a), a, h, _place(u[:, 3], w, b), b, w)
        patterns = _patterns(sizes, ball.norm, x0.dtype, x0.device)
        which = 2 * on_device(level, x0.device) + (u[:, 4] < 0.5)
        i = (torch.arange(h, device=x0.device) - top.view(-1, 1)).clamp(0, patterns.shape[1] - 1)
        j = (torch.arange(w, device=x0.device) - left.view(-1, 1)).clamp(0, patterns.shape[2] - 1)
        pattern = patterns[which.view(-1, 1, 1), i.unsqueeze(2), j.unsqueeze(1)].unsqueeze(1)

        def size(t: Tensor) -> Tensor:
            return vector_norm(t, 1 if ball.norm is Norm.L1 else 2, dim=(2, 3), keepdim=True)

        tiny = torch.finfo(x0.dtype).tiny
        delta = (state.x - x0).view(-1, c, h, w)
        mine = delta * here
        sign = torch.where(u[:, 5:].view(-1, c, 1, 1) < 0.5, -1.0, 1.0)
        new = (pattern * sign + mine / size(mine).clamp_min(tiny)) * here
        eps = ball.eps.to(x0.dtype).view(-1, 1, 1, 1)
        both, whole = size(delta * (here | there)), _lp(ball.norm, delta)
        if ball.norm is Norm.L1:  # too much where there are several channels: the projection keeps the largest features
            allowed = c * both + (eps - whole).clamp_min(0)
        else:
            allowed = (both.square() + (eps.square() - whole.square()).clamp_min(0) / c).sqrt()
        new = new / size(new).clamp_min(tiny) * allowed
        delta = torch.where(here, new, delta.masked_fill(there, 0.0))
        if ball.norm is Norm.L2:
            delta = delta * (eps / _lp(ball.norm, delta).clamp_min(tiny))
        return project(ball, x0 + delta.view_as(x0), x0)


def _extent(fraction: float, h: int, w: int, *, odd: bool) -> tuple[int, int]:
    """Height and width of the window that covers this share of the features: a square if it fits.

    Example:
        >>> _extent(0.8, 28, 28, odd=False), _extent(0.8, 1, 100, odd=False), _extent(0.01, 28, 28, odd=True)
        ((25, 25), (1, 80), (3, 3))
    """
    side = max(round(sqrt(fraction * h * w)), 3 if odd else 1)
    side += odd and side % 2 == 0
    a = side if side <= w else round(fraction * h)
    b = side if side <= h else round(fraction * w)
    return min(max(a, 1), h), min(max(b, 1), w)


def _place(u: Tensor, length: int, extent: Tensor) -> Tensor:
    """(n,) int64 first index of a window, uniform over the places where it fits."""
    free = length - extent
    return torch.minimum((u * (free + 1)).long(), free)


def _inside(top: Tensor, a: Tensor, h: int, left: Tensor, b: Tensor, w: int) -> Tensor:
    """(n, 1, h, w) bool: the windows."""
    i = torch.arange(h, device=top.device) - top.view(-1, 1)
    j = torch.arange(w, device=top.device) - left.view(-1, 1)
    rows, columns = (i >= 0) & (i < a.view(-1, 1)), (j >= 0) & (j < b.view(-1, 1))
    return rows.view(-1, 1, h, 1) & columns.view(-1, 1, 1, w)


def _lp(norm: Norm, delta: Tensor) -> Tensor:
    """(n, 1, 1, 1) size of the whole perturbation."""
    return vector_norm(delta, 1 if norm is Norm.L1 else 2, dim=(1, 2, 3), keepdim=True)


def _stripes(problem: Problem, low: Tensor, high: Tensor) -> Tensor:
    """The linf start: each column of each channel at its largest or least values."""
    c, h, w = image_view(problem)
    up = problem.keyed.uniform("start", (c, w)).view(-1, c, 1, w) < 0.5
    shape = (-1, c, h, w)
    return torch.where(up, high.view(shape), low.view(shape)).view_as(problem.x)


def _tiles(problem: Problem) -> Tensor:
    """The l1 and l2 start: tiles with a pattern each, of random sign and direction, of size eps together.

    In l1 they are larger where their own sizes add up to more: the projection then leaves their largest features.
    """
    x0, norm = problem.x, problem.set.norm
    c, h, w = image_view(problem)
    a, b = max(h // _TILES, 1), max(w // _TILES, 1)
    down, across = h // a, w // b
    u = problem.keyed.uniform("start", (1 + c, down, across)).to(x0.dtype)
    patterns = _patterns(((a, b),), norm, x0.dtype, x0.device)
    tiles = patterns[(u[:, 0] < 0.5).long()].unsqueeze(1) * torch.where(u[:, 1:] < 0.5, -1.0, 1.0)[..., None, None]
    delta = x0.new_zeros(len(x0), c, h, w)
    top, left = (h - a * down) // 2, (w - b * across) // 2
    delta[:, :, top : top + a * down, left : left + b * across] = tiles.transpose(3, 4).reshape(
        len(x0), c, a * down, b * across
    )
    eps = problem.set.eps.to(x0.dtype).view(-1, 1, 1, 1)
    scale = eps / _lp(norm, delta).clamp_min(torch.finfo(x0.dtype).tiny)
    return (delta * (scale.clamp_min(1.0) if norm is Norm.L1 else scale)).view_as(x0)


@lru_cache(maxsize=16)
def _patterns(sizes: tuple[tuple[int, int], ...], norm: Norm, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2 k, rows, columns): for each of k window sizes the pattern split in rows, then the one split in columns."""
    rows, columns = max(a for a, _ in sizes), max(b for _, b in sizes)
    table = torch.zeros(2 * len(sizes), rows, columns, dtype=torch.float64)
    for k, (a, b) in enumerate(sizes):
        by_rows, by_columns = _opposite(norm, a, b), _opposite(norm, b, a).T
        table[2 * k, :a, :b] = by_columns if a == 1 else by_rows
        table[2 * k + 1, :a, :b] = by_rows if b == 1 else by_columns
    size = vector_norm(table, 1 if norm is Norm.L1 else 2, dim=(1, 2), keepdim=True)
    return (table / size).to(device, dtype)


def _opposite(norm: Norm, a: int, b: int) -> Tensor:
    """(a, b) a pyramid in the upper half and a negative one in the lower, each of unit size."""
    half = a // 2
    return torch.cat([_pyramid(norm, half, b), -_pyramid(norm, a - half, b)])


def _pyramid(norm: Norm, a: int, b: int) -> Tensor:
    """(a, b) with ``sum_{r >= d} 1 / (r + 1)^k`` at distance d from the middle: k is 2 in l2 (the paper's eta), and 4 in
    l1, where few features hold the perturbation (Croce & Hein 2021, arXiv:2103.01208, authors' code).
    """
    i, j = (torch.arange(a) - a // 2).abs(), (torch.arange(b) - b // 2).abs()
    layers = 1.0 / torch.arange(1, max(a, b) // 2 + 2, dtype=torch.float64) ** (4 if norm is Norm.L1 else 2)
    height = layers.flip(0).cumsum(0).flip(0)[torch.maximum(i.view(-1, 1), j.view(1, -1))]
    return height / vector_norm(height, 1 if norm is Norm.L1 else 2).clamp_min(1e-300)
