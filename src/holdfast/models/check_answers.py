"""What the answers of a model show: their form, their numbers, and whether they depend on anything but their own row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.arrays import dense, distinct
from holdfast.core.criterion import usable
from holdfast.core.findings import Finding, Severity
from holdfast.core.words import counted

__all__ = ["BATCH", "answers", "check_form", "check_numbers", "check_steadiness"]

BATCH = 64
"""Rows that are asked about at once."""

_REPEATS = 5
_FEW = 8
_RANDOM = 1e-4
_BATCH_NOISE = 1e-3


def answers(model: Callable[[Tensor], Tensor], x: Tensor) -> object:
    """What the model says of x (n, \\*features): (n, ...), or its first answer if it is no tensor."""
    # a copy, for some models write into their input; and what a user's model answers may be anything
    parts: list[Any] = [model(part.clone()) for part in torch.split(x, BATCH)]
    return torch.cat(parts) if all(isinstance(p, Tensor) for p in parts) else parts[0]


def check_form(out: object, x: Tensor) -> Finding | None:
    """Why the answers to x (n, \\*features) are no scores (n, K >= 2) in ordinary real numbers, if they are none."""
    if not isinstance(out, Tensor):
        return Finding(
            code="model.output",
            severity=Severity.ERROR,
            title="the model does not answer with a tensor",
            message=f"It answers with {type(out).__name__}.",
            remedy="Wrap it so that it returns logits; for a Hugging Face classifier: holdfast.models.FromHF(model).",
        )
    if out.ndim == 1 or (out.ndim == 2 and out.shape[1] == 1):
        return Finding(
            code="model.one_logit",
            severity=Severity.ERROR,
            title="the model has a single output",
            message=f"Its answer to {counted(len(x), 'row')} has the shape {tuple(out.shape)}; a decision needs two "
            "classes or more.",
            remedy="If it is the logit, or the probability, of class 1 of 2, add --binary logit or --binary "
            "probability; in Python wrap it: holdfast.models.OneLogit(model).",
        )
    if out.ndim != 2 or len(out) != len(x):
        return Finding(
            code="model.output",
            severity=Severity.ERROR,
            title="the model is no classifier",
            message=f"Its answer to {len(x)} rows has the shape {tuple(out.shape)}; wanted ({len(x)}, classes). "
            "Detection and segmentation are not supported.",
            remedy="Give a model with one row of logits for each input.",
        )
    if out.is_complex() or dense(out) is not out:
        kind, form = str(out.dtype).removeprefix("torch."), str(out.layout).removeprefix("torch.")
        return Finding(
            code="model.output",
            severity=Severity.ERROR,
            title="the model does not answer with ordinary numbers",
            message=f"Its answer is a {form} tensor of {kind}, among whose numbers PyTorch does not look for the largest.",
            remedy="Wrap it so that it returns real scores in a dense floating-point tensor: .abs(), .to_dense(), "
            ".dequantize() or .float().",
        )
    return None


def check_numbers(out: Tensor, own: bool) -> list[Finding]:
    """What the scores (n, K) show; ``own``: the model's layers are there to be changed."""
    broken = ~usable(out)
    if bool(broken.any()):
        return [
            Finding(
                code="model.nan",
                severity=Severity.ERROR,
                title="NaN or infinite outputs",
                message=f"{int(broken.sum())} of {len(out)} rows get NaN, +infinity, or -infinity for every class.",
                remedy="Check the weights and the inputs' scale; such samples count as errors, never as robust.",
                data={"samples": int(broken.sum())},
            )
        ]
    found: list[Finding] = []
    if not out.is_floating_point() or out.dtype in (torch.float16, torch.bfloat16):
        found.append(
            Finding(
                code="model.dtype",
                severity=Severity.WARNING,
                title="outputs of low precision",
                message=f"The model answers in {str(out.dtype).removeprefix('torch.')}.",
                remedy="Run it in float32: rounding hides gradients and blurs who is broken.",
            )
        )
    values = out.double()
    if bool((values >= 0).all()) and _near_one(values.sum(1)):
        found.append(
            Finding(
                code="model.probabilities",
                severity=Severity.WARNING,
                title="probabilities instead of logits",
                message="All outputs are at least 0 and each row adds up to 1: a softmax seems to be the last layer.",
                remedy="Leave the softmax out: it flattens the loss, and attacks would look weaker than they are.",
            )
            if own
            else _asked_for_shares(out)
        )
    elif bool((values <= 0).all()) and _near_one(values.exp().sum(1)):
        said = "The outputs are" if own else "Its answers are read as"
        found.append(
            Finding(
                code="model.log_probabilities",
                severity=Severity.NOTE,
                title="log-probabilities",
                message=f"{said} log-probabilities. Their margins equal those of logits.",
            )
        )
    return found


def _asked_for_shares(out: Tensor) -> Finding:
    """Probabilities of what can only be asked: nothing can be left out there, and what matters is whether they move."""
    different = len(distinct(out, dim=0))
    said = "All scores are at least 0 and each row adds up to 1."
    remedy = "Nothing has to be changed: queries compare them class by class (--suite black-box --certify none)."
    if different <= len(out) / 2:
        said += (
            f" {counted(len(out), 'row')} got {counted(different, 'different answer')}: such ties, as trees give, hide from a "
            "search of scores whether it comes nearer."
        )
        remedy += " The suite's attacks on labels go on where scores tie; --answers labels runs them alone."
    else:
        remedy += " If it can answer with logits too, those tell more: near 1 probabilities look alike."
    measured: dict[str, float | int | str] = {"rows": len(out), "different": different}
    return Finding(
        code="model.probabilities",
        severity=Severity.NOTE,
        title="probabilities",
        message=said,
        remedy=remedy,
        data=measured,
    )


def _near_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < 1e-3).all())


def check_steadiness(model: nn.Module, x: Tensor) -> list[Finding]:
    """Whether an answer to x (n, \\*features) depends on anything but its own row: chance, or the rows beside it."""
    few = x[:_FEW]
    first = model(few.clone())
    again = [model(few.clone()) for _ in range(_REPEATS - 1)]
    if any(a.shape != first.shape for a in again):
        return [_columns(few, first, next(a for a in again if a.shape != first.shape))]
    spread = max(float((a - first).abs().nan_to_num(0).max()) for a in again)
    if spread > _RANDOM:
        return [
            Finding(
                code="model.randomised",
                severity=Severity.WARNING,
                title="the model is randomised",
                message=f"The same rows asked {_REPEATS} times in eval mode gave outputs that differ by up to {spread:.3g}.",
                remedy="Attack it through holdfast.models.Eot, and read figures as majorities of fresh draws.",
                data={"change": spread},
            )
        ]
    try:
        alone = torch.cat([model(few[i : i + 1].clone()) for i in range(len(few))])
    except Exception as fault:  # a user's model may raise anything
        return [
            Finding(
                code="model.batch_dependent",
                severity=Severity.ERROR,
                title="the model fails on a single row",
                message=f"It answers {len(few)} rows together and raises {type(fault).__name__} on one: {str(fault)[:200]}",
                remedy="Look for batch statistics used in eval mode (batch norm without running averages).",
            )
        ]
    if alone.shape != first.shape:
        return [_columns(few, first, alone)]
    change = float((alone - first).abs().nan_to_num(0).max())
    flips = int((alone.argmax(1) != first.argmax(1)).sum())
    if change > _BATCH_NOISE * max(1.0, float(first.abs().nan_to_num(0, 0, 0).max())):
        return [
            Finding(
                code="model.batch_dependent",
                severity=Severity.WARNING,
                title="answers depend on the batch",
                message=f"Asked one by one, outputs differ by up to {change:.3g} and {flips} of {len(few)} labels change.",
                remedy="Look for batch statistics used in eval mode (batch norm without running averages).",
                data={"change": change, "flips": flips},
            )
        ]
    return []


def _columns(x: Tensor, first: Tensor, other: Tensor) -> Finding:
    return Finding(
        code="model.output",
        severity=Severity.ERROR,
        title="the number of classes changes from call to call",
        message=f"For the same {len(x)} rows it answered in the shape {tuple(first.shape)}, and then, or one by one, in "
        f"{tuple(other.shape)}.",
        remedy="Give a model with one row of logits, always of the same classes, for each input.",
    )
