"""Whether a model does better than guessing on its data, and which usual slip would explain that it does not."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import torch
from scipy.special import bdtr  # pyright: ignore[reportMissingTypeStubs]  # SciPy comes without types
from torch import Tensor, nn

from holdfast.core.arrays import distinct
from holdfast.core.findings import Finding, Severity
from holdfast.core.words import counted
from holdfast.models.check_answers import BATCH
from holdfast.models.misconfiguration import Misconfiguration, likely_misconfiguration
from holdfast.numerics.stats import clopper_pearson

__all__ = ["CHANCE", "check_accuracy"]

Model = Callable[[Tensor], Tensor]

CHANCE = "model.chance"
"""The code of the finding that a model does no better than guessing."""

_ENOUGH = 20  # rows on which doing worse than guessing is no accident
_ALPHA = 0.01  # of both one-sided binomial tests


def check_accuracy(
    model: Model, x: Tensor, y: Tensor, out: Tensor, names: tuple[str, ...] | None = None
) -> list[Finding]:
    """Whether the model's clean accuracy is that of a model of these data.

    Args:
        model: a module is asked again, with inputs changed in the usual ways; anything else is not.
        x: (n, \\*features).
        y: (n,).
        out: (n, K), its answers to ``x``.
        names: the data's names of the classes.

    Returns:
        At most one finding: ``model.chance``, an error if it does worse than one answer for all rows, or
        ``model.preprocessing``, if it does clearly better after a usual slip is undone.
    """
    predicted, n, k = out.argmax(1), len(x), out.shape[1]
    accuracy = float((predicted == y).double().mean())
    measured: dict[str, float | int | str] = {"accuracy": accuracy, "samples": n}
    cause, remedy, mistake = "", "Check that weights, data and labels belong together.", None
    if isinstance(model, nn.Module):  # asking a module again costs only time; an API counts
        mistake = likely_misconfiguration(
            lambda t: torch.cat([model(part.clone()) for part in torch.split(t, BATCH)]), x, y, predicted, 1 / k + 0.2
        )
        cause = " No usual slip explains it."
    if mistake is not None:
        measured |= {
            "slip": mistake.name,
            "accuracy_then": mistake.accuracy,
            "flags": shlex.join(_flags(mistake, names)),
        }
        cause, remedy = f" {mistake.cause} With that changed: {mistake.accuracy:.1%}.", mistake.remedy
        if mistake.rivals:
            cause += f" As good, to within 3 points: {', '.join(mistake.rivals)}."
            remedy += " What counts is how the model was trained, not which change scores best."
    hits = round(accuracy * n)
    constant = float(torch.bincount(y, minlength=k).max()) / n  # the best that one answer for all rows would do
    worse = n >= _ENOUGH and float(bdtr(hits, n, constant)) < _ALPHA
    better = 1 - float(bdtr(hits - 1, n, 1 / k)) <= _ALPHA if hits else False  # than guessing
    most = float(clopper_pearson(hits, n, 0.1)[1])  # few rows show neither that it guesses nor that it does not
    if worse or not hits or (not better and most < (1 + 1 / k) / 2):
        if n > 1 and len(distinct(predicted)) == 1:
            cause = f" It gives every row the same label.{cause}"
        title, than = "no better than guessing", f"guessing gives {1 / k:.1%}"
        if worse:
            title, than = "worse than guessing", f"the same answer to all would reach {constant:.1%}"
        return [
            Finding(
                code=CHANCE,
                severity=Severity.ERROR if worse else Severity.WARNING,
                title=title,
                message=f"Clean accuracy is {accuracy:.1%} on {counted(n, 'row')}, and {than}.{cause}",
                remedy=remedy,
                data=measured,
            )
        ]
    if mistake is not None:
        return [
            Finding(
                code="model.preprocessing",
                severity=Severity.WARNING,
                title="the preprocessing seems to be off",
                message=f"Clean accuracy is {accuracy:.1%} on {counted(n, 'row')}.{cause}",
                remedy=remedy,
                data=measured,
            )
        ]
    return []


def _flags(mistake: Misconfiguration, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """What to add to the command line; classes in another order can be named where the data have names."""
    if names is not None and mistake.order and max(mistake.order) < len(names):
        return ("--class-names", ",".join(names[k] for k in mistake.order))
    return mistake.flags
