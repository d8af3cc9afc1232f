"""What the l0 attacks share: the box that they need, and the final searches that drop changed features."""

from __future__ import annotations

from torch import Tensor

from holdfast.attacks.common.minimum_norm import finish, walk_back
from holdfast.core.errors import UnsupportedError
from holdfast.core.problem import Problem
from holdfast.judge.asks import WhiteBoxAsk

__all__ = ["finite_box", "settle"]


def finite_box(title: str, problem: Problem) -> None:
    """Refuses a box without edges: a changed feature would have no value to go to.

    Raises:
        UnsupportedError: a feature is unbounded.
    """
    if not bool((problem.set.lower.isfinite() & problem.set.upper.isfinite()).all()):
        raise UnsupportedError(f"{title} moves features by shares of the box; give finite least and largest values")


def settle(ask: WhiteBoxAsk, x_adv: Tensor, crossed: Tensor, steps: int) -> None:
    """The end of an l0 search: two searches for features that need not change.

    The first starts at the attack's own best point, which may lie outside the ball; the second at the nearest witness,
    where the effect of each feature is measured anew. Samples without any adversarial point get a start.

    Args:
        ask: about the samples.
        x_adv: (n, \\*features) adversarial points.
        crossed: (n,) bool: which of them are.
        steps: forwards of each search; 0 leaves both out.
    """
    if steps:
        walk_back(ask, x_adv, crossed, steps)
        finish(ask, steps)
