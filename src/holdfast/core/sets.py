"""The sets that a perturbed input may lie in. A set is data; `holdfast.numerics` measures and projects by dispatch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf, log2

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.core.errors import UsageError
from holdfast.core.threat import Norm, parse_eps

__all__ = ["AffineImage", "FeatureGrid", "LpBall", "PerturbationSet"]


class PerturbationSet(ABC):
    """A set of inputs around each sample of a batch; the first dimension of all its tensors is the sample."""

    @abstractmethod
    def select(self, rows: Tensor) -> PerturbationSet:
        """The sets of the samples at ``rows`` (int64, any order, repeats allowed)."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """The exact set in plain values, for hashes and reports."""


@dataclass(frozen=True)
class FeatureGrid:
    """Valid values by feature of a vector: whole multiples of ``1 / steps`` above ``lower``, any value where 0.

    Attributes:
        steps: for each feature the number of steps in a unit (a whole number), or 0.
    """

    steps: tuple[float, ...]

    def __float__(self) -> float:
        """The longest step."""
        return 1 / min(s for s in self.steps if s > 0)

    @override
    def __str__(self) -> str:
        return f"of {sum(s > 0 for s in self.steps)} integer columns"


@dataclass(frozen=True, kw_only=True)
class LpBall(PerturbationSet):
    """``{x' : ||x' - x||_p <= eps, lower <= x' <= upper, x' = x where mask is 0}``, on a grid if there is one.

    Attributes:
        norm: p.
        eps: (n,) float64, at least 0; infinite for a minimal-distortion search that is bounded by the box alone.
        lower: least feature values: a scalar tensor, or (n or 1, \\*features).
        upper: largest feature values, likewise.
        mask: None, or bool (n or 1, \\*features): True where a feature may change.
        grid: None, or the exact distance of neighbouring valid feature values, counted from ``lower``, or steps by feature.

    Example:
        >>> ball = LpBall.uniform(Norm.LINF, 0.1, 3)
        >>> ball.eps.tolist()
        [0.1, 0.1, 0.1]
    """

    norm: Norm
    eps: Tensor
    lower: Tensor
    upper: Tensor
    mask: Tensor | None = None
    grid: Fraction | FeatureGrid | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", Norm(self.norm))  # a text would fail every comparison with `is`
        if self.eps.ndim != 1 or self.eps.dtype != torch.float64:
            raise UsageError(
                f"eps must be a float64 tensor of shape (n,), got {self.eps.dtype} {tuple(self.eps.shape)}"
            )
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise UsageError(f"a mask must be boolean (True: the feature may change), got {self.mask.dtype}")
        for name in ("lower", "upper", "mask"):
            value = getattr(self, name)
            if value is not None and value.ndim:
                if value.shape[0] not in (1, len(self.eps)):
                    raise UsageError(
                        f"{name} of shape {tuple(value.shape)} fits no batch of {len(self.eps)} samples; "
                        f"give a scalar, or a first dimension of 1 or {len(self.eps)}"
                    )
                object.__setattr__(self, name, value.expand(len(self.eps), *value.shape[1:]))

    @classmethod
    def uniform(
        cls,
        norm: Norm | str,
        eps: float | Fraction | str,
        n: int,
        low: float = 0.0,
        high: float = 1.0,
        *,
        grid: Fraction | None = None,
        mask: Tensor | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LpBall:
        """The same ball and box for each of ``n`` samples; the radius may be written as a plan writes it, ``8/255``.

        Raises:
            UsageError: no such norm, a radius that is no number of at least 0, or an empty box.
        """
        if not low < high:
            raise UsageError(f"the box is empty: low {low} is not below high {high}")
        return cls(
            norm=Norm(norm),
            eps=torch.full((n,), _radius(eps), dtype=torch.float64, device=device),
            lower=torch.tensor(low, dtype=dtype, device=device),
            upper=torch.tensor(high, dtype=dtype, device=device),
            mask=mask,
            grid=grid,
        )

    @override
    def select(self, rows: Tensor) -> LpBall:
        def pick(t: Tensor) -> Tensor:
            return t[rows] if t.ndim else t

        return replace(
            self,
            eps=self.eps[rows],
            lower=pick(self.lower),
            upper=pick(self.upper),
            mask=None if self.mask is None else pick(self.mask),
        )

    def join(self, other: LpBall) -> LpBall:
        """The sets of both batches, these first; both come from one batch."""

        def both(a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([a, b]) if a.ndim else a

        return replace(
            self,
            eps=torch.cat([self.eps, other.eps]),
            lower=both(self.lower, other.lower),
            upper=both(self.upper, other.upper),
            mask=None if self.mask is None or other.mask is None else both(self.mask, other.mask),
        )

    def with_eps(self, eps: Tensor | float | str) -> LpBall:
        """The same set with another radius: a scalar, or (n,) one for each sample."""
        size = eps if isinstance(eps, Tensor) else _radius(eps)
        value = torch.as_tensor(size, dtype=torch.float64, device=self.eps.device)
        return replace(self, eps=value.expand_as(self.eps).clone())

    def hull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest box around the sets of all samples: (\\*features) float64, its least and its largest inputs.

        Args:
            x: (n, \\*features), the clean inputs.
        """
        ends: list[tuple[Tensor, Tensor]] = []
        for rows in torch.split(torch.arange(len(x), device=x.device), 256):  # in float64, a few at a time
            part, at = self.select(rows), x[rows].double()
            low, high = (end.to(at).expand(at.shape) for end in (part.lower, part.upper))
            if self.norm is not Norm.L0:
                size = part.eps.to(at.device).view(-1, *(1,) * (at.ndim - 1))
                low, high = torch.maximum(low, at - size), torch.minimum(high, at + size)
            if part.mask is not None:
                low, high = torch.where(part.mask, low, at), torch.where(part.mask, high, at)
            ends.append((low.amin(0), high.amax(0)))
        return torch.stack([low for low, _ in ends]).amin(0), torch.stack([high for _, high in ends]).amax(0)

    def to(self, device: torch.device) -> LpBall:
        """The same set with its tensors on another device."""
        if self.eps.device == device:
            return self
        return replace(
            self,
            eps=self.eps.to(device),
            lower=self.lower.to(device),
            upper=self.upper.to(device),
            mask=None if self.mask is None else self.mask.to(device),
        )

    @property
    def unit(self) -> float:
        """The power of two next to the width of the box, half of whose features are wider; 1 where it has no edges.

        Counted in it, inputs in [0, 255] or [-1, 1] are about as wide as in [0, 1], to the bit.
        """
        if isinstance(self.grid, FeatureGrid):
            return 1.0  # its steps are those of units already
        width = (self.upper.double() - self.lower.double()).abs()
        width = torch.where((width > 0) & width.isfinite(), width, torch.nan).flatten(1 if width.ndim else 0)
        middle = (
            float((width.nanmedian(-1).values if width.numel() else width).nan_to_num(0.0).amax())
            if width.numel()
            else 0.0
        )
        return 2.0 ** round(log2(middle)) if middle > 0 else 1.0

    def scaled(self, factor: float) -> LpBall:
        """The same set in another unit, to the bit if the factor is a power of two; l0 counts features in any."""
        return replace(
            self,
            eps=self.eps if self.norm is Norm.L0 else self.eps * factor,
            lower=self.lower * factor,
            upper=self.upper * factor,
            grid=self.grid * Fraction(factor) if isinstance(self.grid, Fraction) else self.grid,
        )

    def unbounded(self) -> LpBall:
        """The box alone: what a minimal-distortion search may use."""
        return self.with_eps(float("inf"))

    @override
    def describe(self) -> dict[str, object]:
        return {
            "set": "lp-ball",
            "norm": str(self.norm),
            "eps": sorted({float(e) for e in self.eps.cpu().numpy()}),
            "lower": [float(self.lower.min()), float(self.lower.max())],
            "upper": [float(self.upper.min()), float(self.upper.max())],
            "masked": self.mask is not None,
            "grid": None if self.grid is None else str(self.grid),
        }


def _radius(eps: float | Fraction | str) -> float:
    """A radius as a float; infinite is one too."""
    if isinstance(eps, str):
        return inf if eps.strip().lower() in ("inf", "infinity") else float(parse_eps(eps))
    size = float(eps)
    if not size >= 0:
        raise UsageError(f"a radius must be a number of at least 0, got {eps}")
    return size


@dataclass(frozen=True, kw_only=True)
class AffineImage(LpBall):
    """``{centre + sum_k t_k generators_k + e : |t_k| <= 1, |e| <= slack}`` inside the box lower..upper.

    Few parameters move all features together, as a rotation does. Who only knows balls sees the box, which holds the set.

    Attributes:
        centre: (n, \\*features) float64.
        generators: (n, k, \\*features) float64.
        slack: (n, \\*features) float64, at least 0.

    Example:
        >>> image = AffineImage.of(torch.zeros(1, 2), torch.tensor([[[1.0, -1.0]]]), torch.zeros(1, 2))
        >>> image.lower.round(decimals=6).tolist(), image.upper.round(decimals=6).tolist()
        ([[-1.0, -1.0]], [[1.0, 1.0]])
    """

    centre: Tensor
    generators: Tensor
    slack: Tensor

    @classmethod
    def of(cls, centre: Tensor, generators: Tensor, slack: Tensor, low: float = -inf, high: float = inf) -> AffineImage:
        """The set with the smallest box around it, cut to [low, high]."""
        centre, generators, slack = centre.double(), generators.double(), slack.double()
        # the sums of the box round: a few units outward
        reach = (generators.abs().sum(1) + slack) * (1 + 1e-14 * (generators.shape[1] + 2)) + 1e-15 * centre.abs()
        eps = torch.full((len(centre),), inf, dtype=torch.float64, device=centre.device)
        return cls(
            norm=Norm.LINF,
            eps=eps,
            lower=(centre - reach).clamp(low, high),
            upper=(centre + reach).clamp(low, high),
            centre=centre,
            generators=generators,
            slack=slack,
        )

    @override
    def select(self, rows: Tensor) -> AffineImage:
        box = super().select(rows)
        return replace(
            self,
            eps=box.eps,
            lower=box.lower,
            upper=box.upper,
            centre=self.centre[rows],
            generators=self.generators[rows],
            slack=self.slack[rows],
        )

    @override
    def scaled(self, factor: float) -> AffineImage:
        box = super().scaled(factor)
        return replace(
            self,
            eps=box.eps,
            lower=box.lower,
            upper=box.upper,
            grid=box.grid,
            centre=self.centre * factor,
            generators=self.generators * factor,
            slack=self.slack * factor,
        )

    @override
    def join(self, other: LpBall) -> AffineImage:
        raise UsageError("affine images are not joined")

    @override
    def describe(self) -> dict[str, object]:
        return {**super().describe(), "set": "affine-image", "parameters": self.generators.shape[1]}
