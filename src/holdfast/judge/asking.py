"""How a model is asked: what must hold whoever asks it, and what it may not do to who asks.

A model gets a copy of its input, for some write into it; in its evaluation mode, as its own ``eval()`` leaves it; outside
`torch.inference_mode`, under which no gradient can be taken. What it answers is looked at before anyone reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.arrays import dense, outside_inference_mode
from holdfast.core.criterion import MASKED, Criterion
from holdfast.core.errors import DataError, HoldfastError, ModelError
from holdfast.core.problem import Problem

__all__ = ["Model", "ModelFault", "ask", "check_classes", "fit_for_autograd", "scores_of"]

Model = Callable[[Tensor], Tensor]


class ModelFault(Exception):
    """The model raised; the cause is what. Never leaves `holdfast.judge.serving` as it is."""


def ask(model: Model, x: Tensor) -> Tensor:
    """The model's answer to x, of which it gets a copy.

    Raises:
        ModelFault: the model raised something that is no error of ours and no want of memory on an accelerator.
    """
    try:
        return model(x.clone())
    except (HoldfastError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as fault:  # a user's model may raise anything, and end the program
        raise ModelFault(f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]}") from fault


def scores_of(answer: object, rows: int, criterion: Criterion, *, hides: bool = False) -> Tensor:
    """An answer as scores: float, one row for each input, classes that can never be (-infinity) as a finite -1e30.

    Args:
        answer: what the model gave.
        rows: how many inputs it was given.
        criterion: says whether there are domains, and how many columns it reads.
        hides: -infinity is what an interface does not show, and stays.

    Raises:
        ModelError: it is nothing that the criterion can read; the message names the remedy.
    """
    if not isinstance(answer, Tensor):
        kind, more = type(answer).__name__, ""
        if getattr(answer, "logits", None) is not None:
            more = "; for a Hugging Face classifier: holdfast.models.FromHF(model)"
        raise ModelError(
            f"the model answers with {kind} and not with a tensor of scores; wrap it to return its logits{more}"
        )
    answer = dense(answer)
    if answer.ndim == 1 and not criterion.counts_classes:
        answer = answer.unsqueeze(1)
    shape = tuple(answer.shape)
    if criterion.domains:
        if answer.ndim != 3 or len(answer) != rows:
            raise ModelError(f"the model must answer (n, domains, classes), got {shape} for {rows} inputs")
    elif answer.ndim != 2 or len(answer) != rows or (answer.shape[1] < 2 and criterion.counts_classes):
        if len(answer.shape) in (1, 2) and answer.numel() == rows:
            raise ModelError(
                f"the model has a single output, {shape} for {rows} inputs, and a decision needs two classes; if it is the "
                "logit of class 1 of 2, wrap it: holdfast.models.OneLogit(model)"
            )
        raise ModelError(f"the model must answer (n, classes), got {shape} for {rows} inputs; see holdfast doctor")
    if answer.is_complex():
        raise ModelError("the model answers with complex numbers; give one that answers with real scores")
    if not answer.is_floating_point():
        answer = answer.to(torch.get_default_dtype())
    return answer if hides else answer.clamp_min(max(MASKED, torch.finfo(answer.dtype).min))


def check_classes(problem: Problem, columns: int) -> None:
    """Refuses labels and targets that the model has no class for.

    Raises:
        DataError: the message names the range, and the usual slip where it is one.
    """
    p = problem
    if not len(p) or not p.criterion.counts_classes:
        return
    k = columns - p.criterion.detector
    if k < 2:
        raise ModelError(
            f"a detector beside a model of {k} class leaves no decision; the last column is the detector's score"
        )
    low, high = int(p.y.min()), int(p.y.max())
    if high >= k:
        slip = "; do they count from 1? subtract 1" if low >= 1 and high == k else ""
        raise DataError(f"labels go up to {high} and the model has {k} classes, 0 to {k - 1}{slip}")
    if p.criterion.targeted and int(p.target.max()) >= k:
        raise DataError(f"targets go up to {int(p.target.max())}, beyond the model's {k} classes, 0 to {k - 1}")


def fit_for_autograd(model: object) -> Mapping[str, Tensor] | None:
    """Copies of a module's parameters and buffers if some were made in inference mode, which no gradient passes; else None."""
    if not isinstance(model, nn.Module):
        return None
    named: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if not any(t.is_inference() for t in named.values()):
        return None
    with outside_inference_mode():
        return {name: t.clone() for name, t in named.items()}
