"""Losses of evasion attacks (survey, section 2.2).

A loss reads scores (m, K), labels y (m,) and targets t (m,) and answers (m,) values. The attack MAXIMISES it: the
survey writes the attacker's loss g as something to minimise, here its negative is returned, up to a constant. An absent
class (a soft-label oracle that tells the top k only) has the score -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.core.criterion import best_other
from holdfast.core.errors import UsageError, did_you_mean
from holdfast.core.threat import Goal

__all__ = [
    "LOSSES",
    "Loss",
    "OnFeatures",
    "clipped",
    "complete",
    "cross_entropy",
    "cross_entropy_targeted",
    "dlr",
    "dlr_targeted",
    "joint",
    "joint_targeted",
    "log_margin",
    "log_margin_targeted",
    "margin",
    "margin_targeted",
    "pick_loss",
]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

_SMALL = 1e-12  # as in AutoAttack, so that the published figures stay comparable


def _at(scores: Tensor, label: Tensor) -> Tensor:
    return scores.gather(1, label.unsqueeze(1)).squeeze(1)


def _surprise(scores: Tensor, label: Tensor) -> Tensor:
    """-log softmax(scores)[label], as softplus of the log-odds against it, so that 1 - f_y is never rounded to 0."""
    others = scores.scatter(1, label.unsqueeze(1), -inf).logsumexp(1)
    return F.softplus(others - _at(scores, label))


def cross_entropy(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``-log f_y``.

    Its gradient is proportional to ``1 - f_y`` and underflows to exactly 0 in float32 once the logit margin passes
    about 100: a model with large logits looks robust to it. Use `dlr` or `margin` there.

    Example:
        >>> cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([0]), torch.tensor([-1])).item()  # log 2
        0.6931471824645996
    """
    return _surprise(scores, y)


def cross_entropy_targeted(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``log f_t``."""
    return -_surprise(scores, target)


def margin(kappa: float = inf) -> Loss:
    """``min(max_{k != y} logit_k - logit_y, kappa)``, which is kappa - g of the survey (Carlini & Wagner 2017).

    Args:
        kappa: the confidence at which the loss, and its gradient, stop; never by default.

    Example:
        >>> margin(0.5)(torch.tensor([[1.0, 3.0], [2.0, 1.0]]), torch.tensor([0, 0]), torch.tensor([-1, -1])).tolist()
        [0.5, -1.0]
    """

    def loss(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        value = best_other(scores, y) - _at(scores, y)
        return value if kappa == inf else value.clamp_max(kappa)

    return loss


def margin_targeted(kappa: float = inf) -> Loss:
    """``min(logit_t - max_{k != t} logit_k, kappa)``."""

    def loss(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        value = _at(scores, target) - best_other(scores, target)
        return value if kappa == inf else value.clamp_max(kappa)

    return loss


def clipped(loss: Loss, kappa: float) -> Loss:
    """``min(loss, kappa)``: the loss, and its gradient, stop at kappa.

    Example:
        >>> told = torch.tensor([[1.0, 3.0], [2.0, 1.0]])
        >>> clipped(margin(), 0.5)(told, torch.tensor([0, 0]), torch.tensor([-1, -1])).tolist()
        [0.5, -1.0]
    """
    return loss if kappa == inf else lambda scores, y, target: loss(scores, y, target).clamp_max(kappa)


def _ratio(value: Tensor, scale: Tensor) -> Tensor:
    # Absent classes make the scale infinite: the plain margin then keeps the sign and the order.
    return value / torch.where(scale.isfinite(), scale + _SMALL, 1.0)


def dlr(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``-(z_y - max_{k != y} z_k) / (z_(1) - z_(3))``: blind to shift and scale of the logits (Croce & Hein 2020).

    Needs at least 3 classes.

    Example:
        >>> dlr(torch.tensor([[4.0, 1.0, 2.0]]), torch.tensor([0]), torch.tensor([-1])).item()  # -(4 - 2) / (4 - 1)
        -0.6666666865348816
    """
    top = scores.topk(3, dim=1).values
    return _ratio(best_other(scores, y) - _at(scores, y), top[:, 0] - top[:, 2])


def dlr_targeted(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`` (Croce & Hein 2020). Needs at least 4 classes."""
    top = scores.topk(4, dim=1).values
    # Both absent: the target is as far as can be.
    value = (_at(scores, target) - _at(scores, y)).nan_to_num(-inf, inf, -inf)
    return _ratio(value, top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def complete(scores: Tensor) -> Tensor:
    """(m, K) log-probabilities in which absent classes share evenly what the others leave.

    No absent class can then pass one that is told, and every change of what is told shows in all of them.
    """
    logs = scores.log_softmax(1) if scores.requires_grad else scores
    absent = logs == -inf
    left = torch.log1p(-logs.exp().sum(1).clamp_max(1 - torch.finfo(logs.dtype).eps / 2))
    each = left - absent.sum(1).clamp_min(1).to(logs.dtype).log()
    return torch.where(absent, each.unsqueeze(1), logs)


def log_margin(kappa: float = inf) -> Loss:
    """`margin` of log-probabilities, the form for black-box attacks (survey, 2.2; Chen et al. 2017).

    For a full answer it equals the logit margin. Classes that a top-k answer leaves out share what is left,
    so the value stays finite and still tells which of two inputs is nearer to another class.

    Example:
        >>> told = torch.tensor([[0.9, 0.0], [0.8, 0.0]]).log()  # only the top class
        >>> a, b = log_margin()(told, torch.tensor([0, 0]), torch.tensor([-1, -1])).tolist()
        >>> round(a, 4), round(b, 4)
        (-2.1972, -1.3863)
    """
    inner = margin(kappa)
    return lambda scores, y, target: inner(complete(scores), y, target)


def log_margin_targeted(kappa: float = inf) -> Loss:
    """`margin_targeted` of log-probabilities, completed as in `log_margin`."""
    inner = margin_targeted(kappa)
    return lambda scores, y, target: inner(complete(scores), y, target)


def joint(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """What is missing to be misclassified, and to stay under a detector whose score is the last column; 0 if nothing is.

    The sum of both margins, each cut at 0, so that a step serves both where both are open and spends nothing on one that
    is reached (Carlini & Wagner 2017, Adversarial Examples Are Not Easily Detected, attack both at once). To follow only the
    larger of the two swings from one to the other: on 40 digits PGD found fewer that way at each of 8 settings.

    Example:
        >>> both = torch.tensor([[3.0, 1.0, 0.5], [1.0, 3.0, 0.5], [1.0, 3.0, -0.5]])
        >>> joint(both, torch.tensor([0, 0, 0]), torch.tensor([-1, -1, -1])).tolist()
        [-2.5, -0.5, 0.0]
    """
    value = best_other(scores[:, :-1], y) - _at(scores, y)
    return value.clamp_max(0) - scores[:, -1].clamp_min(0)


def joint_targeted(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """`joint` with the margin of the target."""
    value = _at(scores, target) - best_other(scores[:, :-1], target)
    return value.clamp_max(0) - scores[:, -1].clamp_min(0)


@dataclass(frozen=True)
class OnFeatures:
    """A loss of an adaptive attack that reads the outputs of inner layers too; goes wherever a gradient attack takes a loss.

    Attributes:
        function: ``function(scores, features, y, target)`` -> (m,), which the attack maximises; ``features`` has the
            output (m, ...) of each layer by name. Each row's value must depend on that row alone.
        layers: names of the model's modules, as ``model.named_modules()`` has them.

    Example:
        >>> from holdfast.core.registry import method
        >>> calm = OnFeatures(lambda scores, features, y, target: -features["0"].flatten(1).norm(dim=1), ("0",))
        >>> method("pgd")(loss=calm).loss.layers
        ('0',)
    """

    function: Callable[[Tensor, Mapping[str, Tensor], Tensor, Tensor], Tensor]
    layers: tuple[str, ...]

    def __call__(self, *args: Any) -> Tensor:
        """The value (m,) of scores, features, labels and targets; the oracle adds the features."""
        return self.function(*args)


# Name -> (untargeted, targeted, least classes untargeted, least classes targeted).
LOSSES: dict[str, tuple[Loss, Loss, int, int]] = {
    "ce": (cross_entropy, cross_entropy_targeted, 2, 2),
    "margin": (margin(), margin_targeted(), 2, 2),
    "dlr": (dlr, dlr_targeted, 3, 4),
    "log-margin": (log_margin(), log_margin_targeted(), 2, 2),
    "joint": (joint, joint_targeted, 3, 3),
}


def pick_loss(name: str | Loss, goal: Goal, classes: int) -> tuple[Loss, str | None]:
    """The loss of a name for a goal, and a note where another had to stand in.

    Args:
        name: ``ce``, ``margin``, ``dlr``, ``log-margin`` or ``joint``, or a loss itself, which is taken as it is.
        goal: untargeted or targeted.
        classes: K.

    Returns:
        The loss and None, or the margin loss and the sentence that a report prints.

    Raises:
        UsageError: no such loss.

    Example:
        >>> pick_loss("dlr", Goal.UNTARGETED, 2)[1]
        'dlr needs 3 classes untargeted and the model has 2: the margin loss was used'
    """
    if not isinstance(name, str):
        return name, None
    if name not in LOSSES:
        raise UsageError(f"no loss '{name}'. {did_you_mean(name, LOSSES)}")
    untargeted, targeted, least, least_targeted = LOSSES[name]
    aimed = goal is Goal.TARGETED
    needed = least_targeted if aimed else least
    if classes >= needed:
        return (targeted if aimed else untargeted), None
    note = f"{name} needs {needed} classes {goal} and the model has {classes}: the margin loss was used"
    return (margin_targeted() if aimed else margin()), note
