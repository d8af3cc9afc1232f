"""ZOO: Carlini & Wagner's penalty attack without a gradient, coordinate by coordinate (Chen et al. 2017).

A step asks symmetric differences along a few coordinates and lets Adam move those, each with a time of its own. On large
images the search starts in a small attack space, lifted bilinearly, and grows it; in a grown space, coordinates where
much has changed are drawn more often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.space import Bilinear, Pixels, Space
from holdfast.attacks.families.zeroth import askable, coarse, soft_losses
from holdfast.core.arrays import on_device
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.judge.asks import SoftLabelAsk
from holdfast.numerics.distance import between, box, distance, per_sample
from holdfast.numerics.project import project
from holdfast.numerics.zeroth import Coordinates, Values

__all__ = ["ZOO", "ZOOState"]

_NUMBERS = 1 << 15  # of a block of coordinates of one sample: what bounds the memory of a step
_BETAS = 0.9, 0.999
_SPACES = 32, 64, 128  # sides of the attack spaces
_GROW = 0.1, 0.5  # shares of a search after which the space grows
_SMALL = 64  # images up to this side are searched as they are
_REGIONS = 8  # along each side, for the importance of coordinates
_TRAVEL = 0.5  # widths of the box that a coordinate could go in a search
_LARGEST = 0.25  # step of a coordinate, in widths of the box
_FINAL = 0.05  # what is left of the step at the end of a search
_TIMES = 10.0


@dataclass(frozen=True, kw_only=True)
class ZOOState(State):
    """A binary search over the weight of the loss, and Adam inside it; ``x`` is what was asked last.

    Attributes:
        u: (n, \\*coordinates) the perturbation, in the largest attack space; a smaller one fills the first corner.
        first: Adam's first moment of each coordinate.
        second: its second moment.
        times: how often each coordinate was moved since the last reset.
        weight: (n,) float64 c, of the loss.
        least: (n,) float64 the largest weight that did not suffice.
        most: (n,) float64 the least that did.
        broke: (n,) bool: adversarial in this search.
    """

    u: Tensor
    first: Tensor
    second: Tensor
    times: Tensor
    weight: Tensor
    least: Tensor
    most: Tensor
    broke: Tensor


@dataclass(frozen=True, kw_only=True)
class ZOO(Attack[SoftLabelAsk, ZOOState]):
    """Minimises ``|delta|_2^2 + c * max(margin, -kappa)`` of log-probabilities by coordinate-wise Adam."""

    queries: int = parameter(
        200_000, "most queries of a sample, at least 1", "ours; Chen et al. 2017 ask up to 768,000 in a search on MNIST"
    )
    searches: int = parameter(4, "values of c tried, at least 1", "ours: 9 from c = 0.01 in Chen et al. 2017")
    weight: float = parameter(1.0, "the first c, above 0", "ours: where most searches of Chen et al. 2017 end")
    coordinates: int = parameter(
        128, "most coordinates of a step, at least 1; no more than an eighth of all", "Chen et al. 2017, section 3.3"
    )
    h: float = parameter(1e-4, "step of the symmetric difference, above 0", "Chen et al. 2017, section 3.3")
    rate: float = parameter(
        0.01,
        "Adam's first step in a search, above 0; up to a quarter of the box where coordinates have few visits; it falls "
        "to a 20th",
        "Chen et al. 2017 on MNIST and CIFAR-10; the fall is ours: the last step is what the distance is known to",
    )
    kappa: float = parameter(0.0, "confidence that the loss asks for, at least 0", "Chen et al. 2017")
    spaces: tuple[int, ...] | None = parameter(
        None,
        "sides of the attack spaces of images, growing; None: 32, 64, 128 for images above 64, else the image itself",
        "Chen et al. 2017, section 3.4",
    )
    importance: bool = parameter(
        True, "draw coordinates by the change around them once the space has grown", "Chen et al. 2017, section 3.6"
    )

    card: ClassVar[Card] = Card(
        title="ZOO",
        rows=("E19", "T03"),
        paper="Chen, Zhang, Sharma, Yi, Hsieh 2017, ZOO: Zeroth Order Optimization based Black-box Attacks to Deep Neural "
        "Networks without Training Substitute Models, arXiv:1708.03999",
        section="2.2",
        summary="The penalty attack of Carlini and Wagner on gradients from symmetric differences, by coordinate.",
        access=Access.SOFT_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.PENALTY,
        norms=(Norm.L2,),
        failure_modes=(
            "Two queries a coordinate and step: by far the most queries of the soft-label attacks.",
            "Float32 scores of a model with large logits are too coarse for h = 1e-4.",
            "With few queries the steps are long and the perturbation stays far from the least one.",
        ),
        checked_by="partial derivatives against autograd; C&W on a real network",
    )

    @override
    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.searches < 1 or self.coordinates < 1:
            raise UsageError("ZOO needs at least 1 search and at least 1 coordinate a step")
        if self.spaces is not None and list(self.spaces) != sorted({s for s in self.spaces if s > 0}):
            raise UsageError(f"the attack spaces must grow from at least 1, got {self.spaces}")

    @override
    def start(self, ask: SoftLabelAsk) -> ZOOState:
        problem = ask.problem
        x, eps = problem.x, problem.set.eps
        features = tuple(x.shape[1:])
        zero = x.new_zeros(len(x), *self._spaces(features)[-1].shape(features))
        return ZOOState.at(
            x,
            u=zero,
            first=zero,
            second=zero,
            times=zero,
            weight=torch.full_like(eps, self.weight),
            least=torch.zeros_like(eps),
            most=torch.full_like(eps, float("inf")),
            broke=torch.zeros_like(eps, dtype=torch.bool),
        )

    @override
    def step(self, ask: SoftLabelAsk, state: ZOOState) -> ZOOState:
        problem = ask.problem
        features = tuple(problem.x.shape[1:])
        spaces = self._spaces(features)
        if len(spaces) == 1:
            return self._step(ask, state, spaces[0], grown=False)
        level = self._level(features, state.step, len(spaces))
        parts: list[ZOOState] = []
        rows = [np.flatnonzero(level == k) for k in range(len(spaces))]
        for k, at in enumerate(rows):
            if len(at):
                subset = _grow(
                    state.select(at), spaces, k, self._level(features, state.step[at] - 1, len(spaces)), features
                )
                parts.append(self._step(ask.at(at), subset, spaces[k], grown=k > 0))
        joined = parts[0]
        for subset in parts[1:]:
            joined = joined.join(subset)
        return joined.select(np.argsort(np.concatenate(rows)))

    def _step(self, ask: SoftLabelAsk, state: ZOOState, space: Space, *, grown: bool) -> ZOOState:
        problem = ask.problem
        x0, features = problem.x, tuple(problem.x.shape[1:])
        shape = space.shape(features)
        corner = tuple(slice(0, k) for k in shape)
        state = self._next_search(problem, state, features)
        u, first, second, times = (t[:, *corner].flatten(1) for t in (state.u, state.first, state.second, state.times))
        clip = askable(problem, *(edge.expand_as(x0) for edge in box(problem.set, x0)))

        def points(v: Tensor) -> Tensor:
            """What the coordinates (n, q, \\*shape) stand for, in the box."""
            delta = space.lift(v.flatten(0, 1), features)
            return clip(x0.unsqueeze(1) + delta.view(*v.shape[:2], *features))

        # The iterate itself: does it break the model?
        here = points(u.view(-1, 1, *shape))
        x = project(problem.set, here[:, 0], x0)
        holds = ask.as_given.scores(x).adversarial
        new = (holds & ~state.broke).unsqueeze(1)
        # Adam was led by the loss until now; from here the distance leads.
        first, second, times = (t.masked_fill(new, 0.0) for t in (first, second, times))

        k = self._count(shape)
        which = self._which(problem, state, u.view(-1, *shape), k, grown=grown)
        # One edge of the box may cut a difference; in pixels it is known by how much.
        cut = _cut(problem) if isinstance(space, Pixels) else None
        g = self._partials(ask, state.weight, points, u.view(-1, *shape), which, cut)
        rate = self._rate(problem, state, prod(shape), k)
        u, first, second, times = _adam_at(which, g, rate, u, first, second, times)
        # Shrunk into the ball, if there is one: what is outside does not count.
        far = distance(Norm.L2, space.lift(u.view(-1, *shape), features))
        u = u * (problem.set.eps / far).nan_to_num(1.0).clamp_max(1.0).unsqueeze(1).to(u.dtype)
        if cut is not None:
            u = cut(u.view(-1, 1, *shape)).flatten(1)

        def put(whole: Tensor, subset: Tensor) -> Tensor:
            out = whole.clone()
            out[:, *corner] = subset.view(-1, *shape)
            return out

        return replace(
            state,
            x=x,
            u=put(state.u, u),
            first=put(state.first, first),
            second=put(state.second, second),
            times=put(state.times, times),
            broke=state.broke | holds,
        )

    def _partials(
        self, ask: SoftLabelAsk, weight: Tensor, points: Values, u: Tensor, which: Tensor, cut: Values | None
    ) -> Tensor:
        """(n, k) the slopes of the objective along the coordinates ``which`` (n, k) at u (n, \\*shape)."""
        x0, loss = ask.problem.x, soft_losses(ask, kappa=self.kappa)

        def cost(v: Tensor) -> Tensor:
            z = points(v)
            q = z.shape[1]
            far = between(Norm.L2, z.flatten(0, 1), x0.repeat_interleave(q, dim=0)).view(-1, q)
            return far.square() - weight.unsqueeze(1) * loss(z)

        length = max(1, _NUMBERS // max(1, prod(x0.shape[1:])))
        partial = Coordinates(coarse(ask.problem, self.h))
        blocks = (which[:, j : j + length] for j in range(0, which.shape[1], length))
        return torch.cat([partial.partials(cost, u, block, cut) for block in blocks], dim=1)

    def _next_search(self, problem: Problem, state: ZOOState, features: tuple[int, ...]) -> ZOOState:
        """The next weight where a search is up: halfway where two are known, else ten times more or less. The
        perturbation stays: with what is left of the queries a search from 0 would not get as far.
        """
        inside = self._inside(features, state.step)
        up = on_device((inside == 0) & (state.step > 0), state.x.device)
        least = torch.where(up & ~state.broke, state.weight, state.least)
        most = torch.where(up & state.broke, torch.minimum(state.most, state.weight), state.most)
        between_ = torch.where(least > 0, (least + most) / 2, most / _TIMES)
        weight = torch.where(up, torch.where(most.isfinite(), between_, state.weight * _TIMES), state.weight)
        fresh = problem.flat(up)
        reset = {k: getattr(state, k).masked_fill(fresh, 0.0) for k in ("first", "second", "times")}
        return replace(state, weight=weight, least=least, most=most, broke=state.broke & ~up, **reset)

    def _spaces(self, features: tuple[int, ...]) -> tuple[Space, ...]:
        """The attack spaces for inputs of a shape, the smallest first."""
        if len(features) != 3 or (self.spaces is None and max(features[1:]) <= _SMALL):
            return (Pixels(),)
        return tuple(Bilinear(size) for size in self.spaces or _SPACES)

    def _count(self, shape: tuple[int, ...]) -> int:
        """Coordinates of a step."""
        return max(1, min(self.coordinates, prod(shape) // 8))

    def _steps(self, features: tuple[int, ...]) -> int:
        """Steps of a search."""
        spaces = self._spaces(features)
        return max(1, self.queries // self.searches // (2 * self._count(spaces[0].shape(features)) + 1))

    def _inside(self, features: tuple[int, ...], step: np.ndarray) -> np.ndarray:
        """(n,) steps that each sample has made in its search."""
        return step % self._steps(features)

    def _level(self, features: tuple[int, ...], step: np.ndarray, spaces: int) -> np.ndarray:
        """(n,) the attack space of each sample. It grows in the first search and then stays."""
        limits = [max(1, int(fraction * self._steps(features))) for fraction in _GROW[: spaces - 1]]
        return np.minimum(np.searchsorted(np.array(limits), step, side="right"), spaces - 1)

    def _rate(self, problem: Problem, state: ZOOState, d: int, k: int) -> Tensor:
        """Adam's step (n, 1): first at least `rate`, and enough to cross the box in the visits that a search allows."""
        features = tuple(problem.x.shape[1:])
        steps = self._steps(features)
        visits = max(1.0, steps * k / d)
        left = on_device(1 - (1 - _FINAL) * self._inside(features, state.step) / steps, problem.x.device)
        low, high = box(problem.set, problem.x)
        width = (high - low).expand_as(problem.x).flatten(1).amax(1)
        width = torch.where(width.isfinite(), width, 1.0)
        first = (width * min(_LARGEST, _TRAVEL / visits)).clamp_min(self.rate)
        return (first * left).unsqueeze(1).to(problem.x.dtype)

    def _which(self, problem: Problem, state: ZOOState, u: Tensor, k: int, *, grown: bool) -> Tensor:
        """(n, k) int64 different coordinates, uniform or by importance."""
        key = problem.keyed.uniform("coordinates", (u[0].numel(),) if len(u) else (1,), state.step).to(u.device)
        if grown and self.importance:
            # The largest of uniform^(1 / weight) are a draw without replacement.
            key = key.clamp_min(1e-12).log() / _importance(u).flatten(1)
        return key.topk(k, dim=1).indices


def _adam_at(
    which: Tensor, g: Tensor, rate: Tensor, u: Tensor, first: Tensor, second: Tensor, times: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of Adam at some coordinates, each with its own time; all (n, d), ``which`` and ``g`` (n, k)."""
    a, b = _BETAS
    time = times.gather(1, which) + 1
    m = a * first.gather(1, which) + (1 - a) * g
    v = b * second.gather(1, which) + (1 - b) * g.square()
    move = rate * (m / (1 - a**time)) / ((v / (1 - b**time)).sqrt() + 1e-8)
    return (
        u.scatter(1, which, u.gather(1, which) - move),
        first.scatter(1, which, m),
        second.scatter(1, which, v),
        times.scatter(1, which, time),
    )


def _importance(u: Tensor) -> Tensor:
    """(n, \\*shape) positive: the largest change in the region around each coordinate, in units of their mean."""
    side = max(1, -(-max(u.shape[2:]) // _REGIONS))
    pooled = F.max_pool2d(u.abs(), side, ceil_mode=True)
    near = pooled.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., : u.shape[2], : u.shape[3]]
    mean = near.flatten(1).mean(1)
    return torch.where(per_sample(mean, u) > 0, near / per_sample(mean.clamp_min(1e-12), u), 1.0).clamp_min(0.01)


def _cut(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Perturbations (n, q, \\*features) -> the nearest ones that stay in the box."""
    low, high = (edge.expand_as(problem.x) - problem.x for edge in box(problem.set, problem.x))

    def cut(delta: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(delta, low.unsqueeze(1)), high.unsqueeze(1))

    return cut


def _grow(
    state: ZOOState, spaces: tuple[Space, ...], level: int, before: np.ndarray, features: tuple[int, ...]
) -> ZOOState:
    """The state of samples that are at a level, resized for those that were at another a step before."""
    grow = np.flatnonzero((before < level) & (state.step > 0))
    if not len(grow):
        return state
    old, new = spaces[level - 1].shape(features), spaces[level].shape(features)
    at = on_device(grow, state.x.device)

    small = state.u[at][:, *(slice(0, k) for k in old)]
    large = F.interpolate(small, size=new[1:], mode="bilinear", align_corners=False)
    u = state.u.clone()
    u[at] = F.pad(large, (0, u.shape[3] - new[2], 0, u.shape[2] - new[1]))
    zero = {k: getattr(state, k).index_fill(0, at, 0.0) for k in ("first", "second", "times")}
    return replace(state, u=u, **zero)
