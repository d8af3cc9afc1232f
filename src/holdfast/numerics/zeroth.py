"""Gradient estimates from values alone (survey, section 2.2, soft-label attacks).

An estimator asks a function at points around x and answers with an estimate of its gradient. The function takes points
(n, q, \\*shape) and answers (n, q) values, so that all points of a block are one call; where a point was not answered the
value is not a number, and the point counts for nothing. Estimators that draw random directions also take functions of
several values, (n, q, K): all K gradients come from the same points.

Directions come from keyed draws: the same step gives the same directions, wherever x is, which is what variance reduction
needs.

`clip` keeps the points where they may be asked. The estimate then uses the displacement that was made, not the one that
was drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from holdfast.core.draws import SampleDraws
from holdfast.core.errors import UsageError

__all__ = [
    "Antithetic",
    "Components",
    "Coordinates",
    "Estimate",
    "Estimator",
    "Groups",
    "OneSided",
    "Signed",
    "Values",
    "natural",
    "principal_components",
]

Values = Callable[[Tensor], Tensor]
Clip = Callable[[Tensor], Tensor]

# torch ships no types for it.
_solve: Callable[[Tensor, Tensor], Tensor] = torch.linalg.solve  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
_NUMBERS = 1 << 15  # of a block of directions of one sample: what bounds the memory of an estimate
_KINDS = ("gaussian", "sphere", "rademacher")


class Estimate(NamedTuple):
    """What an estimator found.

    Attributes:
        grad: (n, \\*shape), the dtype of x; 0 where nothing was answered.
        value: (n,) float64 the mean of the values around x, or the value at x if it was asked; 0 if none was answered.
    """

    grad: Tensor
    value: Tensor


class Estimator(ABC):
    """Asks a function around x and estimates its gradient there."""

    @abstractmethod
    def queries(self, shape: tuple[int, ...]) -> int:
        """Values that one estimate asks of each sample, exactly."""

    @abstractmethod
    def reach(self, shape: tuple[int, ...]) -> float:
        """How far from x the points lie in a feature, at most or (Gaussian) nearly always."""

    @abstractmethod
    def __call__(
        self, f: Values, x: Tensor, draws: SampleDraws, step: np.ndarray | int = 0, clip: Clip | None = None
    ) -> Estimate:
        """The gradient of f at x.

        Args:
            f: points (n, q, \\*shape) -> values (n, q), not a number where there is none.
            x: (n, \\*shape), a point that clip leaves alone.
            draws: of these samples.
            step: an int or (n,) host integers; equal steps draw equal directions.
            clip: points (n, q, \\*shape) -> the nearest points that may be asked; all may, if None.
        """


@dataclass(frozen=True)
class _Random(Estimator):
    """Random directions u with ``E[u u^T] = I / m``, drawn block by block; m is d on the sphere, else 1.

    Attributes:
        q: directions of an estimate.
        sigma: length of the step along a direction.
        kind: ``gaussian``, ``sphere`` (unit length) or ``rademacher`` (signs).
        stream: name of the draws.
    """

    q: int
    sigma: float
    kind: str = "gaussian"
    stream: str = "directions"

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise UsageError(f"no directions '{self.kind}'; use one of {', '.join(_KINDS)}")
        if self.q < 1 or self.sigma <= 0:
            raise UsageError(f"an estimate needs q >= 1 and sigma > 0, got q = {self.q} and sigma = {self.sigma}")

    @override
    def reach(self, shape: tuple[int, ...]) -> float:
        tail = {"gaussian": 3.0, "sphere": min(1.0, 3.0 / prod(shape) ** 0.5), "rademacher": 1.0}[self.kind]
        return self.sigma * tail

    def directions(self, x: Tensor, draws: SampleDraws, step: np.ndarray | int) -> Iterator[Tensor]:
        """The directions of a step in blocks (n, at most q, \\*shape)."""
        shape = tuple(x.shape[1:])
        length = _length(self.q, shape)
        blocks = -(-self.q // length)
        for j in range(blocks):
            at = np.asarray(step, dtype=np.int64) * blocks + j
            if self.kind == "rademacher":
                u = (draws.uniform(self.stream, (length, *shape), at) < 0.5).to(x) * 2 - 1
            else:
                u = draws.normal(self.stream, (length, *shape), at).to(x)
            u = u[:, : self.q - j * length]
            if self.kind == "sphere":
                size = u.flatten(2).square().sum(2).sqrt().clamp_min(torch.finfo(u.dtype).tiny)
                u = u / size.view(*size.shape, *[1] * len(shape))
            yield u

    def _mean(self, parts: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        """The mean of ``slope * u`` over the slopes that are known, times m; parts of the sum and the count."""
        total, known = (torch.stack(column).sum(0) for column in zip(*parts, strict=True))
        factor = prod(x.shape[1:]) if self.kind == "sphere" else 1
        return factor * total / _each(known.clamp_min(1).to(x.dtype), total)


@dataclass(frozen=True)
class OneSided(_Random):
    """Mean of ``(f(x + sigma u) - f(x)) / sigma * u`` over q directions, one value at x shared by all.

    On the sphere with q = 1 it is RandGradEst, with more AvgRandGradEst (Liu et al. 2018) and, in a reduced space, the
    estimate of AutoZOOM (Tu et al. 2019). For a linear f unbiased; else it is of f smoothed by sigma.

    Example:
        >>> from holdfast.core.draws import Draws
        >>> f = lambda z: 3 * z[..., 0] - z[..., 1]
        >>> g = OneSided(4000, 0.1)(f, torch.zeros(1, 2).double(), Draws(0, "doc").of([0])).grad
        >>> [round(v) for v in g[0].tolist()]
        [3, -1]
    """

    @override
    def queries(self, shape: tuple[int, ...]) -> int:
        return self.q + 1

    @override
    def __call__(
        self,
        f: Values,
        x: Tensor,
        draws: SampleDraws,
        step: np.ndarray | int = 0,
        clip: Clip | None = None,
        *,
        base: Tensor | None = None,
    ) -> Estimate:
        """As in `Estimator`; with ``base`` (n,), the value at x, that value is not asked."""
        here = x.unsqueeze(1)
        value = None if base is None else base.double()
        parts: list[tuple[Tensor, Tensor]] = []
        for u in self.directions(x, draws, step):
            z = here + self.sigma * u
            if clip is not None:
                z = clip(z)
                u = (z - here) / self.sigma
            if value is None:  # asked together with the first block
                values = f(torch.cat([here, z], dim=1)).double()
                value, values = values[:, 0], values[:, 1:]
            else:
                values = f(z).double()
            parts.append(_weigh((values - value.unsqueeze(1)) / self.sigma, u))
        grad = self._mean(parts, x)
        return Estimate(grad, x.new_zeros(len(x)) if value is None else value.nan_to_num(0.0))


@dataclass(frozen=True)
class Antithetic(_Random):
    """Mean of ``(f(x + sigma u) - f(x - sigma u)) / (2 sigma) * u`` over q directions: 2 q values.

    Gaussian it is NES (Ilyas et al. 2018), rademacher SPSA (Spall 1992). The antithetic half cancels the curvature, and
    all even terms. For a linear f its cosine to the gradient is about ``sqrt(q / (q + d))``.
    """

    @override
    def queries(self, shape: tuple[int, ...]) -> int:
        return 2 * self.q

    @override
    def __call__(
        self, f: Values, x: Tensor, draws: SampleDraws, step: np.ndarray | int = 0, clip: Clip | None = None
    ) -> Estimate:
        parts: list[tuple[Tensor, Tensor]] = []
        values: list[Tensor] = []
        for u in self.directions(x, draws, step):
            slope, u, asked = _symmetric(f, x, u, self.sigma, clip)
            parts.append(_weigh(slope, u))
            values.append(asked)
        return Estimate(self._mean(parts, x), _average(values))


class _Orthogonal(Estimator):
    """Symmetric differences along directions that are orthogonal to each other: ``sum_i <g, v_i> v_i / |v_i|^2``."""

    h: float

    @override
    def reach(self, shape: tuple[int, ...]) -> float:
        """The step: a direction has no entry above 1."""
        return self.h

    @abstractmethod
    def blocks(self, x: Tensor, draws: SampleDraws, step: np.ndarray | int) -> Iterator[Tensor]:
        """The directions in blocks (n or 1, k, \\*shape)."""

    @override
    def __call__(
        self, f: Values, x: Tensor, draws: SampleDraws, step: np.ndarray | int = 0, clip: Clip | None = None
    ) -> Estimate:
        grad, values = torch.zeros_like(x), list[Tensor]()
        for v in self.blocks(x, draws, step):
            slope, w, asked = _symmetric(f, x, v.expand(len(x), *v.shape[1:]), self.h, clip)
            size = w.flatten(2).square().sum(2)
            grad = grad + _weigh(slope / size.clamp_min(torch.finfo(size.dtype).tiny), w)[0]
            values.append(asked)
        return Estimate(grad, _average(values))


@dataclass(frozen=True)
class Coordinates(_Orthogonal):
    """Symmetric differences along every coordinate, CoordGradEst: 2 d values.

    Attributes:
        h: length of a step.
    """

    h: float = 1e-4

    @override
    def queries(self, shape: tuple[int, ...]) -> int:
        return 2 * prod(shape)

    @override
    def blocks(self, x: Tensor, draws: SampleDraws, step: np.ndarray | int) -> Iterator[Tensor]:
        shape = tuple(x.shape[1:])
        d = prod(shape)
        every = torch.arange(d, device=x.device)
        for k in range(0, d, _length(d, shape)):
            which = every[k : k + _length(d, shape)]
            yield (which.unsqueeze(1) == every).to(x.dtype).view(1, -1, *shape)

    def partials(self, f: Values, x: Tensor, which: Tensor, clip: Clip | None = None) -> Tensor:
        """(n, k) the partial derivatives at chosen coordinates; 2 k values. 0 where nothing was answered.

        Args:
            f: as in `Estimator`.
            x: (n, \\*shape).
            which: (n, k) int64 coordinates of the flattened x.
            clip: as in `Estimator`.

        Example:
            >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 3.0])).sum(-1)
            >>> Coordinates(0.5).partials(f, torch.zeros(1, 3), torch.tensor([[2, 0]])).tolist()
            [[3.0, 1.0]]
        """
        flat = x.flatten(1)
        v = flat.new_zeros((*which.shape, flat.shape[1])).scatter_(2, which.unsqueeze(2), 1.0)
        slope, w, _ = _symmetric(f, x, v.view(*which.shape, *x.shape[1:]), self.h, clip)
        made = w.flatten(2).abs().amax(2)  # 1, or less where the clip cut the step
        return torch.where(made > 0, slope / made.clamp_min(torch.finfo(made.dtype).tiny), 0.0).nan_to_num(0.0).to(x)


@dataclass(frozen=True)
class Groups(_Orthogonal):
    """Symmetric differences along random groups of coordinates, each of which gets the group's mean derivative:
    ``2 ceil(d / size)`` values (Bhagoji et al. 2018). With groups of one it is `Coordinates`.

    Attributes:
        size: coordinates in a group.
        h: length of a step of each coordinate.
        stream: name of the draws.
    """

    size: int
    h: float = 1e-2
    stream: str = "groups"

    @override
    def queries(self, shape: tuple[int, ...]) -> int:
        return 2 * -(-prod(shape) // self.size)

    @override
    def blocks(self, x: Tensor, draws: SampleDraws, step: np.ndarray | int) -> Iterator[Tensor]:
        shape = tuple(x.shape[1:])
        d = prod(shape)
        group = draws.permutation(self.stream, d, step).to(x.device) // self.size
        every = torch.arange(-(-d // self.size), device=x.device)
        for k in range(0, len(every), _length(len(every), shape)):
            which = every[k : k + _length(len(every), shape)].view(1, -1, 1)
            yield (group.unsqueeze(1) == which).to(x.dtype).view(len(x), -1, *shape)


@dataclass(frozen=True)
class Components(_Orthogonal):
    """Symmetric differences along given orthogonal directions, as a rule principal components: 2 k values.

    Attributes:
        components: (k, \\*shape).
        h: length of a step along a component of unit length.
    """

    components: Tensor
    h: float = 1e-2

    @override
    def queries(self, shape: tuple[int, ...]) -> int:
        return 2 * len(self.components)

    @override
    def blocks(self, x: Tensor, draws: SampleDraws, step: np.ndarray | int) -> Iterator[Tensor]:
        shape = tuple(x.shape[1:])
        if tuple(self.components.shape[1:]) != shape:
            raise UsageError(f"components of shape {tuple(self.components.shape[1:])} do not fit inputs of {shape}")
        length = _length(len(self.components), shape)
        for k in range(0, len(self.components), length):
            yield self.components[k : k + length].to(x).unsqueeze(0)


@dataclass(frozen=True)
class Signed(Estimator):
    """The sign of another estimate (Liu et al. 2019): what is left of it does not tell how sure it was.

    Attributes:
        inner: the estimator.
    """

    inner: Estimator

    @override
    def queries(self, shape: tuple[int, ...]) -> int:
        return self.inner.queries(shape)

    @override
    def reach(self, shape: tuple[int, ...]) -> float:
        return self.inner.reach(shape)

    @override
    def __call__(
        self, f: Values, x: Tensor, draws: SampleDraws, step: np.ndarray | int = 0, clip: Clip | None = None
    ) -> Estimate:
        grad, value = self.inner(f, x, draws, step, clip)
        return Estimate(grad.sign(), value)


def principal_components(data: Tensor, k: int) -> Tensor:
    """(k, \\*features) orthonormal directions in which the data (m, \\*features) vary most, the strongest first.

    Example:
        >>> data = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [4.0, 0.1, 1.0]])
        >>> [round(abs(v), 1) for v in principal_components(data, 1)[0].tolist()]
        [1.0, 0.0, 0.0]
    """
    flat = data.flatten(1).double().cpu().numpy()
    most = min(len(flat) - 1, flat.shape[1])
    if not 1 <= k <= most:
        raise UsageError(f"{len(flat)} inputs of {flat.shape[1]} features have at most {most} components, not {k}")
    rows = np.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh
    return torch.as_tensor(rows[:k]).to(data).view(k, *data.shape[1:])


def natural(grad: Tensor, scores: Tensor, weight: Tensor, damping: float) -> Tensor:
    """``(damping I + sum_k weight_k s_k s_k^T)^-1 grad``: the natural gradient, by Woodbury's identity in K dimensions.

    Args:
        grad: (n, \\*shape).
        scores: (n, K, \\*shape) gradients of the log-probabilities.
        weight: (n, K) at least 0, the probabilities: the sum is then Fisher's information of the input.
        damping: above 0.

    Returns:
        (n, \\*shape), the dtype of grad; grad / damping where the scores are 0.

    Example:
        >>> way = natural(torch.tensor([[1.0, 1.0]]), torch.tensor([[[3.0, 0.0]]]), torch.ones(1, 1), 1.0)
        >>> [round(v, 6) for v in way[0].tolist()]
        [0.1, 1.0]
    """
    g, low = grad.flatten(1).double(), scores.flatten(2).double() * weight.double().sqrt().unsqueeze(2)
    inner = low @ low.mT + damping * torch.eye(low.shape[1], dtype=low.dtype, device=low.device)
    share = _solve(inner, low @ g.unsqueeze(2))
    return ((g - (low.mT @ share).squeeze(2)) / damping).view_as(grad).to(grad.dtype)


def _length(q: int, shape: tuple[int, ...]) -> int:
    """Directions of a block."""
    return max(1, min(q, _NUMBERS // max(1, prod(shape))))


def _each(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _symmetric(f: Values, x: Tensor, u: Tensor, h: float, clip: Clip | None) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes (n, k, ...) float64 along the directions that were gone, those directions, and the values at both ends."""
    here, k = x.unsqueeze(1), u.shape[1]
    points = torch.cat([here + h * u, here - h * u], dim=1)
    if clip is not None:
        points = clip(points)
        u = (points[:, :k] - points[:, k:]) / (2 * h)
    values = f(points).double()
    return (values[:, :k] - values[:, k:]) / (2 * h), u, values


def _weigh(slope: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The sum (n, ..., \\*shape) of ``slope * u`` over the slopes (n, q, ...) that are known, and how many are."""
    n, q = slope.shape[:2]
    flat = slope.reshape(n, q, max(1, prod(slope.shape[2:])))
    known = flat.isfinite().all(2)
    weight = flat.masked_fill(~known.unsqueeze(2), 0.0).to(u.dtype)
    total = torch.einsum("nqk,nqf->nkf", weight, u.flatten(2))
    return total.reshape(n, *slope.shape[2:], *u.shape[2:]), known.sum(1)


def _average(values: list[Tensor]) -> Tensor:
    """(n, ...) the mean over q of the values (n, q, ...) that are known."""
    known = [v.isfinite() for v in values]
    total = torch.stack([v.masked_fill(~k, 0.0).sum(1) for v, k in zip(values, known, strict=True)]).sum(0)
    return total / torch.stack([k.sum(1) for k in known]).sum(0).clamp_min(1)
