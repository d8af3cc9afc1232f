"""What a certifier that asks the model must keep: the guarantee of its card on a half-plane, and draws of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from holdfast.core.threat import Guarantee
from holdfast.numerics.distance import dual_norm
from holdfast.testing._certifier_case import CertifierCase, half_plane
from holdfast.testing.contract import require

__all__ = ["ORACLE_CHECKS"]


def _linear(case: CertifierCase) -> None:
    """On a half-plane g = f and the radius is known; an estimate must come within 5 %, a chance must stay below."""
    model, x, y, margins, direction = half_plane()
    for norm in case.norms:
        exact = margins / dual_norm(norm, direction.expand_as(x))
        found = case.ask(model, x, y, norm, radius_max=float(2 * exact.max()))
        require(any(found), f"{norm}: nothing is certified on a linear model")
        for c, e in zip(found, map(float, exact.numpy()), strict=True):
            if c is None:
                require(case.card.guarantee is not Guarantee.ESTIMATE, f"{norm}: no estimate where {e} is exact")
            elif case.card.guarantee is Guarantee.ESTIMATE:
                require(abs(c.radius - e) <= 0.05 * e, f"{norm}: estimates {c.radius} on a linear model, exactly {e}")
            else:
                require(c.radius < e * (1 + 1e-6), f"{norm}: radius {c.radius} beyond the true one, {e}")


def _abstains(case: CertifierCase) -> None:
    if case.card.guarantee is Guarantee.ESTIMATE:
        return
    model, x, y, margins, direction = half_plane()
    toward = (direction / direction.square().sum()).float()
    sign = torch.where(y == 0, 1.0, -1.0)
    edge = x - ((margins.float() - 1e-5) * sign).unsqueeze(1) * toward
    with torch.no_grad():
        still = model(edge).argmax(1) == y
    found = case.ask(model, edge[still], y[still], case.norms[0])
    require(still.any() and not any(found), "beside the boundary it must abstain: the draws prove nothing there")


def _seeds(case: CertifierCase) -> None:
    if case.card.guarantee is not Guarantee.PROBABILISTIC:
        return
    model, x, y, *_ = half_plane()
    one, two = (case.ask(model, x, y, case.norms[0], seed=s) for s in (0, 1))
    require(one != two, "another seed gives the same draws: key them by the seed")


ORACLE_CHECKS: dict[str, Callable[[CertifierCase], None]] = {"linear": _linear, "abstains": _abstains, "seeds": _seeds}
