"""The attacks that a hardened model has not seen, in its set and in sets of other norms.

Sets of other norms are matched by volume: a ball of norm p with the volume of the known ball. No size of one norm equals
one of another; equal volume is a convention that names no direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma, log
from typing import Any

from holdfast.attacks.attack import Attack
from holdfast.attacks.evasion.hard.hopskipjump import HopSkipJump
from holdfast.attacks.evasion.soft.square import Square
from holdfast.attacks.evasion.transfer.surrogate_transfer import SurrogateTransfer
from holdfast.attacks.evasion.white.apgd_ce import APGDCE
from holdfast.attacks.evasion.white.apgd_dlr import APGDDLR
from holdfast.attacks.evasion.white.cosine_margin import CosineMargin
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.cards import parameters_of
from holdfast.core.errors import UsageError
from holdfast.core.registry import name_of
from holdfast.core.threat import Norm

__all__ = ["UnseenTrial", "matched_eps", "unseen_attacks"]

_NORMS = (Norm.LINF, Norm.L2, Norm.L1)
_SIDES = 2.0  # of a cube of radius 1


@dataclass(frozen=True, kw_only=True, eq=False)
class UnseenTrial:
    """One attack of the study.

    Attributes:
        attack: with its parameters.
        kind: ``known``, ``other method``, ``other loss``, ``black-box``, ``transfer`` or ``other norm``.
        norm: of its set.
    """

    attack: Attack[Any, Any]
    kind: str
    norm: Norm

    @property
    def method(self) -> str:
        """Name of the method."""
        return name_of(self.attack)

    @property
    def title(self) -> str:
        """As the paper writes it, with the loss where it is not the usual one."""
        usual = {p.name: p.default for p in parameters_of(type(self.attack))}
        loss = getattr(self.attack, "loss", None) if "loss" in usual else None
        return self.attack.card.title if loss in (None, usual.get("loss")) else f"{self.attack.card.title}, {loss} loss"


def matched_eps(norm: Norm, eps: float, other: Norm, features: int) -> float:
    """The radius at which the ball of another norm has the same volume.

    Raises:
        UsageError: l0, whose sets have no volume.

    Example:
        >>> round(matched_eps(Norm.LINF, 0.5, Norm.L2, 2), 4)  # a disc with the area of the unit square
        0.5642
    """
    if not eps:
        return 0.0
    return exp(log(eps) + _log_volume(norm, features) / features - _log_volume(other, features) / features)


def _log_volume(norm: Norm, d: int) -> float:
    """Of the unit ball in d dimensions: ``(2 Gamma(1 + 1/p))^d / Gamma(1 + d/p)``."""
    if norm is Norm.L0:
        raise UsageError("an l0 set has no volume to match; take linf, l2 or l1")
    p = {Norm.L1: 1.0, Norm.L2: 2.0, Norm.LINF: float("inf")}[norm]
    return d * (log(_SIDES) + lgamma(1 + 1 / p)) - lgamma(1 + d / p)


def unseen_attacks(
    norm: Norm, known: UnseenTrial, *, transfer: bool = False, queries: int = 1000
) -> tuple[UnseenTrial, ...]:
    """The attacks that a model hardened against ``known`` has not seen: other losses and methods, queries alone, other norms.

    Args:
        norm: of the known set.
        known: is left out, should it be among them.
        transfer: there is a surrogate to search.
        queries: most queries for a sample of a black-box attack.

    Example:
        >>> known = UnseenTrial(attack=PGD(), kind="known", norm=Norm.LINF)
        >>> {t.kind for t in unseen_attacks(Norm.LINF, known)} >= {"other loss", "other norm"}
        True
    """
    attacks: list[tuple[str, Attack[Any, Any], Norm]] = [
        ("other loss", PGD(loss="margin", restarts=2), norm),
        ("other method", APGDCE(steps=50), norm),
        ("other loss", APGDDLR(steps=50), norm),
        ("other method", CosineMargin(steps=30, targets=3), norm),
        ("black-box", Square(queries=queries), norm),
        ("black-box", HopSkipJump(queries=queries), norm),
    ]
    if transfer:
        attacks.append(("transfer", SurrogateTransfer(), norm))
    if norm is not Norm.L0:  # whose sets have no volume to match
        attacks += [("other norm", APGDCE(steps=50), other) for other in _NORMS if other is not norm]
    trials = [UnseenTrial(attack=attack, kind=kind, norm=of) for kind, attack, of in attacks]
    return tuple(
        t for t in trials if t.norm in t.attack.card.norms and (t.attack, t.norm) != (known.attack, known.norm)
    )
