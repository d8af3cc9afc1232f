"""Certified radius of a randomly smoothed classifier (Cohen, Rosenfeld & Kolter 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import special  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.oracle_certifier import Ask, CertificateRequest, OracleCertifier, refuse_random
from holdfast.certifiers.smoothed import REACH, Smoothed, missed
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.threat import Guarantee, Norm
from holdfast.core.verdict import Certificate
from holdfast.numerics.stats import one_sided_lower

__all__ = ["Cohen", "betting_lower", "log_wealth"]

_FIRST_LOOK, _LOOK_GROWTH = 32, 1.25
_GROUP_BATCHES = 8  # samples are settled in groups of about so many batches: often enough for progress, batches full
_special: Any = special


@dataclass(frozen=True)
class Cohen(OracleCertifier):
    """Cohen et al.'s CERTIFY, and a sequential form of it that decides one radius with far fewer draws.

    The certificate is about g, not f: with a chance of at most alpha for each sample it is wrong that
    ``g(x + delta) = y`` for all ``|delta|_2 < sigma Phi^-1(pA)``, where pA is the lower confidence bound of
    ``P(f(x + noise) = y)``. Noisy inputs are not clipped: g is defined on all of space.

    Fixed: n0 draws choose the class; a sample whose class is y gets n further draws, of another stream, for the bound
    (Clopper-Pearson, one-sided). No certificate where the bound is 1/2 or less (abstention) or the class is not y.

    Sequential: see ``_sequential``. The class is y, fixed before any draw, so that none are spent on choosing it.
    """

    card: ClassVar[Card] = Card(
        title="Randomised smoothing",
        rows=("C04",),
        paper="Cohen, Rosenfeld & Kolter 2019, Certified Adversarial Robustness via Randomized Smoothing, ICML, "
        "arXiv 1902.02918",
        section="3.2",
        summary="Certifies the classifier that takes a majority vote over Gaussian noise, by the Neyman-Pearson lemma.",
        norms=(Norm.L2, Norm.LINF, Norm.L1),
        guarantee=Guarantee.PROBABILISTIC,
        failure_modes=(
            "the subject is the smoothed classifier g, not the model itself: only attacks on g are comparable",
            "a model that was not trained with noise loses accuracy under it, and then abstains",
            "n draws certify at most sigma Phi^-1(alpha^(1/n)): 2.46 sigma for 10^3, 3.20 for 10^4, 3.81 for 10^5",
            "alpha holds for each sample; a statement about all N together needs alpha / N",
            "linf is the l2 radius over sqrt(d), l1 the l2 radius itself: sound but small in high dimension",
            "noise comes from a generator in float64, whose tail ends at 8.57 sigma: what it cannot reach is taken off pA",
            "the base classifier must answer alike when asked alike: one that draws at random itself is refused",
        ),
        checked_by="linear classifiers, whose radius is known: coverage over simulated runs, and the limit in n",
    )
    sigma: float = parameter(
        0.25,
        "standard deviation of the noise, in the input's unit; > 0",
        "Cohen et al. 2019, section 4: .12, .25, .5, 1 for inputs in [0, 1]; .25 keeps most accuracy at l2 0.25",
    )
    n0: int = parameter(100, "draws that choose the class; >= 1", "Cohen et al. 2019, section 4")
    n: int = parameter(
        10_000,
        "draws for the bound, at most so many if sequential; >= 1",
        "ours: Cohen et al. take 10^5, ten times the cost for a cap of 3.81 sigma instead of 3.20",
    )
    alpha: float = parameter(
        0.001, "chance that a sample's certificate is wrong; in (0, 1)", "Cohen et al. 2019, section 4"
    )
    sequential: bool = parameter(
        False,
        "stop a sample as soon as it is known whether its radius reaches radius_max",
        "ours: off, since a radius as large as can be had is Cohen's question",
    )

    def __post_init__(self) -> None:
        if self.n0 < 1 or self.n < 1:
            raise UsageError(f"n0 and n must be at least 1, got {self.n0} and {self.n}")
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha must lie between 0 and 1, got {self.alpha}")

    @override
    def _certify(self, ask: Ask, request: CertificateRequest) -> list[Certificate | None]:
        x, radius_max = request.x, request.radius_max
        if not len(x):
            return []
        g = Smoothed(ask, self.sigma, request.seed)
        refuse_random(ask, x)
        # |delta|_2 <= sqrt(d) |delta|_inf and |delta|_2 <= |delta|_1
        share = 1 / sqrt(x[0].numel()) if request.norm is Norm.LINF else 1.0
        if self.sequential:
            if radius_max is None:
                raise UsageError("the sequential mode decides whether a radius is reached; give radius_max")
            p = self._sequential(g, request, radius_max / share)
        else:
            p = self._fixed(g, request)
        beyond = missed(x[0].numel())
        radii = self.sigma * _special.ndtri(np.maximum(p - beyond, 0)) * share
        arithmetic = (
            f"noise drawn and added in float64 (its tail ends at {REACH:.2f} sigma; the {beyond:.1g} of noise beyond is "
            f"taken off pA), the sum rounded to {x.dtype} as a part of f, f as it runs"
        ).replace("torch.", "")
        return [
            Certificate(
                radius=float(r if radius_max is None else min(r, radius_max)),
                guarantee=Guarantee.PROBABILISTIC,
                method="cohen",
                arithmetic=arithmetic,
                alpha=self.alpha,
            )
            if r > 0
            else None
            for r in radii
        ]

    def _fixed(self, g: Smoothed, request: CertificateRequest) -> NDArray[np.float64]:
        """Lower bounds (m,) of pA; 0 where the chosen class is not y."""
        x, y, progress = request.x, request.y, request.progress
        names = np.asarray(request.ids)
        p = np.zeros(len(x))
        chosen = g.votes(x, request.ids, self.n0, "select").argmax(dim=1)
        rows = np.flatnonzero((chosen == y).cpu().numpy())
        settled = len(x) - len(rows)
        progress(settled)
        size = max(1, _GROUP_BATCHES * g.ask.batch // self.n)
        for group in (rows[i : i + size] for i in range(0, len(rows), size)):
            votes = g.votes(x[group], names[group].tolist(), self.n, "estimate")
            p[group] = one_sided_lower(_of_class(votes, y[group]), self.n, self.alpha)
            settled += len(group)
            progress(settled)
        return p

    def _sequential(self, g: Smoothed, request: CertificateRequest, radius: float) -> NDArray[np.float64]:
        """Lower bounds (m,) of pA from as few draws as settle whether pA reaches Phi(radius / sigma).

        Half of alpha goes to the bound by betting, which holds at all times together (``betting_lower``), so a sample
        may stop at any look; the other half to one Clopper-Pearson bound, for samples that are still open after n
        draws. By the union bound the chance that any statement about a sample is wrong is at most alpha. A sample also
        stops once the bet *against* it is won: pA is too small and only its effort is at stake.
        """
        x, y = request.x, request.y
        level = self.alpha / 2
        goal = float(_special.ndtr(radius / self.sigma))
        p = np.zeros(len(x))
        streams = g.streams(request.ids, "sequential", x.device)
        rows, k, n = np.arange(len(x)), np.zeros(len(x)), 0
        while len(rows) and n < self.n:
            more = min(self.n, max(_FIRST_LOOK, ceil(n * _LOOK_GROWTH))) - n
            n += more
            k = k + _of_class(g.count(x[rows], [streams[i] for i in rows], more), y[rows])
            p[rows] = betting_lower(k, n, level)
            if n == self.n:
                p[rows] = np.maximum(p[rows], one_sided_lower(k, n, level))
            hopeless = (k < n * goal) & (log_wealth(k, n, goal) >= np.log(1 / level))
            still = ~(hopeless | (p[rows] >= goal))
            rows, k = rows[still], k[still]
            request.progress(len(x) - (len(rows) if n < self.n else 0))
        return p


def _of_class(votes: Tensor, y: Tensor) -> NDArray[np.int64]:
    """Votes (m, K) of the classes y (m,), on the host: (m,)."""
    return votes.gather(1, y[:, None])[:, 0].cpu().numpy()


def log_wealth(k: NDArray[Any], n: int, p: NDArray[Any] | float) -> NDArray[np.float64]:
    """log of the wealth after n tosses, k of them heads, of who bets against a coin whose chance of heads is p.

    The bet mixes all coins by Jeffreys' prior (Krichevsky & Trofimov 1981):
    ``W = B(k + 1/2, n - k + 1/2) / B(1/2, 1/2) / (p^k (1 - p)^(n - k))``. Under p, W is a non-negative martingale that
    starts at 1, so by Ville's inequality ``P(W >= 1 / alpha at any time) <= alpha``.

    Example:
        >>> round(float(np.exp(log_wealth(np.array(9), 10, 0.5))), 3)  # nine heads of ten
        9.496
    """
    mixture = _special.betaln(k + 0.5, n - k + 0.5) - np.log(np.pi)
    return mixture - _special.xlogy(k, p) - _special.xlog1py(n - k, -np.asarray(p))


def betting_lower(k: NDArray[Any], n: int, alpha: float) -> NDArray[np.float64]:
    """A lower bound of a proportion that holds at all times n together with a chance of at least 1 - alpha.

    It is the least p that the bet of ``log_wealth`` has not refuted. Wealth falls in p on (0, k / n), so whenever the
    bound exceeds the true p, the wealth against that p has reached 1 / alpha: Ville's inequality bounds the chance.

    Args:
        k: (m,) successes.
        n: trials.
        alpha: the chance that the bound is ever wrong.

    Returns:
        (m,) float64, at most k / n.

    Example:
        >>> betting_lower(np.array([0, 50, 100]), 100, 0.001).round(4).tolist()
        [0.0, 0.2926, 0.9068]
    """
    refuted, open_ = np.zeros(np.shape(k)), np.asarray(k, dtype=np.float64) / n
    for _ in range(60):
        middle = (refuted + open_) / 2
        won = log_wealth(k, n, middle) >= np.log(1 / alpha)
        refuted, open_ = np.where(won, middle, refuted), np.where(won, open_, middle)
    return refuted
