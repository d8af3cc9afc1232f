"""One pixel: a few pixels found by differential evolution (Su, Vargas, Sakurai 2019).

A member of the population is a list of pixels, each with its place and a value for each channel. A generation proposes
for each member ``a + F (b - c)`` of three others and keeps whichever of the two is better. Inputs that are no images
have one feature a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.image_view import image_view
from holdfast.attacks.families.zeroth import askable, edges, soft_loss
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.distance import box

__all__ = ["OnePixel", "OnePixelState"]

_NUMBERS = 1 << 17  # values of a block of members of one sample: what bounds the memory of a generation
_LEAST = 4  # members: each, and three others
_SMALL = 16  # members of the least population that few queries lead to
_GENERATIONS = 50


@dataclass(frozen=True)
class OnePixelState(State):
    """The population; ``x`` is the clean input.

    Attributes:
        genes: (n, members, pixels, 2 + channels) row, column and values, all in [0, 1].
        value: (n, members) the loss of each, which grows; -inf where it was not asked.
        span: (n, 4) first and number of rows, then of columns, that hold the features that may change.
    """

    genes: Tensor
    value: Tensor
    span: Tensor

    @override
    def join(self, other: Self) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A sample has as many pixels as its own eps allows; what others have more of is padding that nobody reads.
        most = max(self.genes.shape[2], other.genes.shape[2])
        mine, theirs = (replace(s, genes=_padded(s.genes, most)) for s in (self, other))
        return super(OnePixelState, mine).join(theirs)


@dataclass(frozen=True, kw_only=True)
class OnePixel(Attack[SoftLabelAsk, OnePixelState]):
    """DE/rand/1 without crossover over pixels; a child competes with the parent of its place in the population."""

    queries: int = parameter(
        40_000, "most queries of a sample, at least 1", "Su et al. 2019: 400 members, 100 generations"
    )
    pixels: int | None = parameter(
        None, "pixels to change, at least 1; None: as many as eps allows", "ours; 1, 3 and 5 in Su et al. 2019"
    )
    population: int = parameter(
        400,
        "most members, at least 4; fewer where the queries are less than 50 generations of them, but 16",
        "Su et al. 2019, section 3.2; with few queries a small population finds more",
    )
    factor: float = parameter(0.5, "F: share of the difference of two members that is added", "Su et al. 2019")

    card: ClassVar[Card] = Card(
        title="One pixel",
        rows=("E28", "T03"),
        paper="Su, Vargas, Sakurai 2019, One Pixel Attack for Fooling Deep Neural Networks, arXiv:1710.08864",
        section="2.2",
        summary="Differential evolution over the places and values of a few pixels; needs scores, no gradient.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        norms=(Norm.L0,),
        failure_modes=(
            "eps counts features: a pixel of c channels costs c of them, so eps = 1 allows no pixel of a colour image.",
            "A search over places grows fast with the number of pixels: with many, gradients or Sparse-RS are stronger.",
            "It needs a box with finite edges, from which the values are drawn.",
        ),
        checked_by="a planted pixel that alone breaks a model; brute force over all single pixels",
    )

    @property
    @override
    def iterations(self) -> int:
        return max(1, -(-self.queries // self._members))

    @property
    def _members(self) -> int:
        return min(self.population, max(_SMALL, self.queries // _GENERATIONS))

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.population < _LEAST or (self.pixels is not None and self.pixels < 1):
            raise UsageError("One pixel needs a population of at least 4 and at least 1 pixel")
        if not all(bool(edge.isfinite().all()) for edge in box(problem.set, problem.x)):
            raise UnsupportedError("One pixel draws values from the box, so the box must have finite edges")

    @override
    def start(self, ask: SoftLabelAsk) -> OnePixelState:
        problem = ask.problem
        x, draws = problem.x, problem.keyed
        c, *_ = image_view(problem)
        count = self._pixels(problem)
        # Pixel by pixel, so that what a sample draws does not depend on how many pixels its neighbours have.
        members = self._members
        most = int(count.max()) if len(x) else 0
        genes = x.new_zeros(len(x), members, most, 2 + c)
        for j in range(most):
            genes[:, :, j, :2] = draws.uniform("place", (members, 2), step=j).to(x)
            # The paper's N(128, 127) of 0 to 255.
            genes[:, :, j, 2:] = (0.5 + 0.5 * draws.normal("value", (members, c), step=j).to(x)).clamp(0, 1)
        span = _span(problem)
        value = self._ask(ask, genes, span)
        return OnePixelState.at(x, genes=genes, value=value.nan_to_num(nan=-torch.inf), span=span)

    @override
    def step(self, ask: SoftLabelAsk, state: OnePixelState) -> OnePixelState:
        problem = ask.problem
        a, b, c = (
            state.genes.gather(1, other[:, :, None, None].expand_as(state.genes))
            for other in _three_others(problem.keyed.uniform("others", (self._members, 3), state.step))
        )
        child = _folded(a + self.factor * (b - c))
        value = self._ask(ask, child, state.span)
        better = value > state.value  # not a number, an unanswered row, is not
        return replace(
            state,
            genes=torch.where(better[:, :, None, None], child, state.genes),
            value=torch.where(better, value, state.value),
        )

    def _pixels(self, problem: Problem) -> Tensor:
        """(n,) int64 how many pixels each sample may change."""
        c, h, w = image_view(problem)
        allowed = (problem.set.eps / c).floor().clamp_max(h * w).long()
        return allowed if self.pixels is None else allowed.clamp_max(self.pixels)

    def _ask(self, ask: SoftLabelAsk, genes: Tensor, span: Tensor) -> Tensor:
        """(n, members) the margin of each member, not a number where there is none; block by block."""
        problem = ask.problem
        x, (low, high) = problem.x, edges(problem)
        c, h, w = image_view(problem)
        loss, clip = soft_loss(problem.goal), askable(problem, low, high)
        active = torch.arange(genes.shape[2], device=x.device) < self._pixels(problem).unsqueeze(1)
        strips = (len(x), 1, c, h * w)
        clean, least, width = (t.reshape(strips) for t in (x, low, high - low))
        length = max(1, _NUMBERS // max(1, prod(x.shape[1:])))
        values: list[Tensor] = []
        for k in range(0, genes.shape[1], length):
            subset = genes[:, k : k + length]
            at, colour = _decoded(subset, span, w)
            points = clean.expand(-1, subset.shape[1], -1, -1).clone()
            # A later pixel at the same place paints over an earlier one; those beyond a sample's eps paint x.
            for j in range(subset.shape[2]):
                where = at[:, :, j, None, None].expand(-1, -1, c, 1)
                picked = where.expand(len(x), subset.shape[1], c, 1)
                new = least.expand_as(points).gather(3, picked) + colour[:, :, j].unsqueeze(3) * width.expand_as(
                    points
                ).gather(3, picked)
                old = points.gather(3, picked)
                points.scatter_(3, picked, torch.where(active[:, j].view(-1, 1, 1, 1), new, old))
            values.append(ask.as_given.losses(clip(points.view(len(x), -1, *x.shape[1:])), loss))
        return torch.cat(values, dim=1)


def _padded(genes: Tensor, pixels: int) -> Tensor:
    n, members, have, length = genes.shape
    return torch.cat([genes, genes.new_zeros(n, members, pixels - have, length)], dim=2)


def _folded(genes: Tensor) -> Tensor:
    """Places that left the image come back as from a mirror; values stop at their edge, where the strongest are."""
    place, value = genes[..., :2].abs(), genes[..., 2:]
    place = (1 - (1 - place).abs()).clamp(0, 1)
    return torch.cat([place, value.clamp(0, 1)], dim=-1)


def _decoded(genes: Tensor, span: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(n, members, pixels) int64 places in the flattened image, and (n, members, pixels, channels) values in [0, 1]."""
    first, count = span[:, None, None, 0::2], span[:, None, None, 1::2]
    place = first + torch.minimum((genes[..., :2] * count).long(), count - 1)
    return place[..., 0] * width + place[..., 1], genes[..., 2:]


def _span(problem: Problem) -> Tensor:
    """(n, 4) int64 first and number of the rows, then of the columns, that hold features that may change."""
    _, h, w = image_view(problem)
    low, high = edges(problem)
    free = (high > low).reshape(len(low), -1, h, w).any(1)
    columns = [_first_and_count(free.any(axis)) for axis in (2, 1)]
    return torch.cat(columns, dim=1)


def _first_and_count(free: Tensor) -> Tensor:
    """(n, 2) of (n, length) bool; (0, 1) where nothing is free."""
    index = torch.arange(free.shape[1], device=free.device)
    last = torch.where(free, index, 0).amax(1)
    first = torch.minimum(torch.where(free, index, free.shape[1]).amin(1), last)
    return torch.stack([first, last - first + 1], dim=1)


def _three_others(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three members for each member, all four different, from uniform numbers (n, members, 3).

    Example:
        >>> a, b, c = _three_others(torch.tensor([[[0.0, 0.0, 0.0]] * 5]))
        >>> a[0].tolist(), b[0].tolist(), c[0].tolist()
        ([1, 2, 3, 4, 0], [2, 3, 4, 0, 1], [3, 4, 0, 1, 2])
    """
    members = u.shape[1]
    a, b, c = ((u[..., j] * (members - 1 - j)).long().clamp_max(members - 2 - j) for j in range(3))
    b = b + (b >= a)
    c = c + (c >= torch.minimum(a, b))
    c = c + (c >= torch.maximum(a, b))
    own = torch.arange(members, device=u.device)
    a, b, c = ((own + 1 + other) % members for other in (a, b, c))
    return a, b, c
