"""CLEVER: an estimate of the least distortion from extreme values of the gradient (Weng et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.oracle_certifier import Ask, CertificateRequest, OracleCertifier
from holdfast.core.cards import Card, parameter
from holdfast.core.criterion import usable
from holdfast.core.draws import Draws
from holdfast.core.errors import UsageError
from holdfast.core.threat import Guarantee, Norm
from holdfast.core.verdict import Certificate
from holdfast.numerics.distance import distance, dual_norm

__all__ = ["Clever", "CleverEstimate", "reverse_weibull"]

Array = NDArray[np.float64]

_RADIUS = {Norm.L1: 40.0, Norm.L2: 2.0, Norm.LINF: 0.1}
_GAPS: Array = np.geomspace(1e-4, 1e2, 121)
_PENALTY = 0.01  # the authors' code, fmin_with_reg


@dataclass(frozen=True, kw_only=True)
class CleverEstimate:
    """What CLEVER says of a sample.

    Attributes:
        radius: the score, at most R.
        rival: the class that gives it.
        lipschitz: the estimated greatest dual norm of the gradient of ``logit[y] - logit[rival]`` within R.
        ks_p: p-value of the Kolmogorov-Smirnov test of the fit for that class, small for a bad one; NaN if the gradient
            is as good as constant and nothing was fitted. Since the fit saw the same data, it flatters.
    """

    radius: float
    rival: int
    lipschitz: float
    ks_p: float


@dataclass(frozen=True)
class Clever(OracleCertifier):
    """Weng et al.'s score ``min_j min((logit[y] - logit[j]) / a_j, R)``.

    ``a_j`` is the end point of the reverse Weibull distribution that fits the maxima, one for each batch, of the
    gradient's dual norm at points drawn uniformly from the ball of radius R. All rivals j share the points. R is
    ``radius_max`` where the caller gives one.
    """

    card: ClassVar[Card] = Card(
        title="CLEVER",
        rows=("V01",),
        paper="Weng, Zhang, Chen, Yi, Su, Gao, Hsieh & Daniel 2018, Evaluating the Robustness of Neural Networks: An "
        "Extreme Value Theory Approach, ICLR, arXiv 1801.10578",
        section="3.3",
        summary="Estimates the least distortion as margin over local Lipschitz constant, the latter by extreme values.",
        norms=(Norm.L2, Norm.LINF, Norm.L1),
        guarantee=Guarantee.ESTIMATE,
        failure_modes=(
            "an estimate, never a certificate: masked gradients inflate it (Goodfellow 2018, arXiv 1804.07870)",
            "in high dimension uniform points miss the steep regions, and the end point is underestimated",
            "where the maxima show no end point (a low ks_p, few batches) the fit is loose on either side",
            "the ball is not cut to the input range",
        ),
        checked_by="linear classifiers, where it is exact; synthetic Weibull samples with a known end point",
    )
    batches: int = parameter(
        50,
        "maxima that are fitted, Nb; >= 10",
        "ours: a tenth of the paper's 500, since 50 x 64 points cost 3,200 gradients a rival instead of 512,000",
    )
    points: int = parameter(
        64, "points whose largest gradient makes one maximum, Ns; >= 1", "ours: a sixteenth of the paper's 1024"
    )
    radius: float | None = parameter(
        None,
        "R, radius of the ball where the caller gives no radius_max; None is 40 / 2 / 0.1 for l1 / l2 / linf",
        "ART's tests of its CLEVER, for inputs in [0, 1]",
    )
    rivals: int | None = parameter(
        None, "only so many classes, nearest first; None is all", "Weng et al. 2018: the least over all classes"
    )

    def __post_init__(self) -> None:
        if self.batches < 10 or self.points < 1:
            raise UsageError(f"CLEVER needs 10 batches of at least 1 point, got {self.batches} of {self.points}")
        if self.radius is not None and not self.radius > 0:
            raise UsageError(f"the radius must be positive, got {self.radius}")
        if self.rivals is not None and self.rivals < 1:
            raise UsageError(f"CLEVER needs a rival class, got {self.rivals}")

    @override
    def _certify(self, ask: Ask, request: CertificateRequest) -> list[Certificate | None]:
        certificates: list[Certificate | None] = []
        for i in range(len(request.x)):
            one = slice(i, i + 1)
            (e,) = self.estimates(
                ask,
                request.x[one],
                request.y[one],
                request.ids[one],
                request.seed,
                request.norm,
                request.radius_max,
            )
            certificates.append(
                None
                if e is None
                else Certificate(radius=e.radius, guarantee=Guarantee.ESTIMATE, method="clever", fit=e.ks_p)
            )
            request.progress(i + 1)
        return certificates

    def estimates(
        self, ask: Ask, x: Tensor, y: Tensor, ids: Sequence[int], seed: int, norm: Norm, radius_max: float | None = None
    ) -> list[CleverEstimate | None]:
        """The score of each sample with how it came about, or None where the prediction is not y or not usable.

        Args:
            ask: the model.
            x: (n, \\*features).
            y: (n,) int64 labels.
            ids: n ids, which key the points.
            seed: seed of the plan.
            norm: l1, l2 or linf.
            radius_max: R.
        """
        radius = radius_max or self.radius or _RADIUS[norm]
        logits = ask.logits(x)
        margins = (logits.gather(1, y[:, None]).double() - logits).masked_fill(~usable(logits)[:, None], torch.nan)
        draws = Draws(seed, "clever", x.device)
        return [
            self._estimate(ask, x[i], int(y[i]), m, draws.generator(int(ids[i])), norm, radius)
            for i, m in enumerate(margins.cpu().numpy())
        ]

    def _estimate(
        self, ask: Ask, x: Tensor, y: int, margins: Array, stream: torch.Generator, norm: Norm, radius: float
    ) -> CleverEstimate | None:
        margins[y] = inf
        if not (margins > 0).all():  # before sorting, which puts a NaN behind all others
            return None
        rivals = np.argsort(margins, kind="stable")[: min(self.rivals or len(margins), len(margins) - 1)]
        maxima = self._maxima(ask, x, y, rivals.tolist(), stream, norm, radius)
        if not np.isfinite(maxima).all():
            return None
        scores: list[CleverEstimate] = []
        for rival, values in zip(rivals.tolist(), maxima, strict=True):
            a, ks_p = reverse_weibull(values)
            scores.append(
                CleverEstimate(
                    radius=min(float(margins[rival]) / a, radius) if a > 0 else radius,
                    rival=rival,
                    lipschitz=a,
                    ks_p=ks_p,
                )
            )
        return min(scores, key=lambda e: e.radius)

    def _maxima(
        self, ask: Ask, x: Tensor, y: int, rivals: list[int], stream: torch.Generator, norm: Norm, radius: float
    ) -> Array:
        """Largest dual norm of the gradient in each batch of points: (rivals, batches)."""
        together = max(1, ask.batch // self.points)
        maxima = np.empty((len(rivals), self.batches))
        for start in range(0, self.batches, together):
            count = min(together, self.batches - start)
            offsets = torch.cat([_uniform(norm, (self.points, *x.shape), stream) for _ in range(count)])
            points = x + radius * offsets.to(x.dtype)
            label = torch.full((len(points),), y, device=x.device)
            for r, rival in enumerate(rivals):
                gradient = ask.gradient(points, label, torch.full_like(label, rival))
                sizes = dual_norm(norm, gradient).view(count, self.points)
                maxima[r, start : start + count] = sizes.amax(dim=1).cpu()
        return maxima


def _uniform(norm: Norm, shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
    """Points of ``shape`` (m, \\*features) drawn uniformly from the unit ball."""
    m, device = shape[0], stream.device
    if norm is Norm.LINF:
        return torch.rand(shape, generator=stream, device=device) * 2 - 1
    # The first d of d + 1 exponentials over their sum (l1), of d + 2 normals over their length (l2), are uniform in the
    # ball (Barthe, Guedon, Mendelson & Naor 2005).
    d = torch.Size(shape[1:]).numel()
    if norm is Norm.L2:
        z = torch.randn((m, d + 2), generator=stream, device=device)
        return (z[:, :d] / distance(Norm.L2, z)[:, None]).view(shape)
    e = torch.empty((m, d + 1), device=device).exponential_(generator=stream)
    sign = torch.randint(0, 2, (m, d), generator=stream, device=device) * 2 - 1
    return (sign * e[:, :d] / e.sum(dim=1, keepdim=True)).view(shape)


def reverse_weibull(maxima: Array) -> tuple[float, float]:
    """End point of the reverse Weibull distribution that fits a sample of maxima, with the fit's p-value.

    The distribution function is ``exp(-((a - v) / b)^c)`` for v < a. For a given a, likelihood is maximised over b and
    c exactly; over a by a grid of gaps to the largest value, refined once. This finds the best of all local optima;
    the authors' code starts a simplex search from seven shapes, keeps the best p-value, and at times ends far away.
    Two limits: ``c >= 1``, since likelihood is unbounded below it, and the authors' small penalty on b, without which
    samples that show no end point send a to infinity.

    Args:
        maxima: (Nb,) at least 0.

    Returns:
        a, at least the largest value, and the Kolmogorov-Smirnov p-value. If all values agree to six digits there is
        nothing to fit: a is the largest and the p-value NaN.

    Example:
        >>> values = 10 - np.random.default_rng(0).weibull(2.0, 500)
        >>> a, p = reverse_weibull(values)
        >>> abs(a - 10) < 0.1, p > 0.05
        (True, True)
        >>> reverse_weibull(np.full(50, 3.0))
        (3.0, nan)
    """
    top, spread = float(maxima.max()), float(np.ptp(maxima))
    if spread <= 1e-6 * top:
        return top, nan
    below = (top - maxima) / spread
    best = int(np.argmax(_profile(below, _GAPS)[0]))
    first, last = float(_GAPS[max(best - 1, 0)]), float(_GAPS[min(best + 1, len(_GAPS) - 1)])
    gaps = np.geomspace(first, last, 33)
    likelihood, shape, log_scale = _profile(below, gaps)
    best = int(np.argmax(likelihood))
    z = np.sort(np.exp(shape[best] * (np.log(below + gaps[best]) - log_scale[best])))  # exponential, if the fit is good
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  # slow to import, and only needed here

    kstest: Any = stats.kstest  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return top + spread * float(gaps[best]), float(kstest(z, "expon").pvalue)


def _profile(below: Array, gaps: Array) -> tuple[Array, Array, Array]:
    """For end points at ``gaps`` (G,) above the largest value: penalised log-likelihood, shape, log scale, each (G,).

    ``below`` (Nb,) are the distances from the largest value. Values of ``gap + below`` follow a Weibull distribution,
    whose likelihood equation for the shape c is monotone in c: bisection.
    """
    y = np.log(below + gaps[:, None])
    mean, peak = y.mean(axis=1), y.max(axis=1)
    excess = y - peak[:, None]
    low, high = np.zeros(len(gaps)), np.full(len(gaps), np.log(1e5))
    for _ in range(45):
        c = np.exp(middle := (low + high) / 2)
        w = np.exp(c[:, None] * excess)
        too_large = (w * y).sum(axis=1) / w.sum(axis=1) - 1 / c > mean
        low, high = np.where(too_large, low, middle), np.where(too_large, middle, high)
    c = np.exp(low)  # at least 1
    log_scale = np.log(np.exp(c[:, None] * excess).mean(axis=1)) / c + peak
    z = c[:, None] * (y - log_scale[:, None])
    likelihood = (np.log(c)[:, None] + z - y - np.exp(z)).sum(axis=1)
    return likelihood - _PENALTY * np.exp(2 * log_scale), c, log_scale
