"""What an audit would cost, from a few timed questions: between a model that breaks at once and one that never does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from holdfast.audits.context import Context
from holdfast.audits.stages.certificates import prove
from holdfast.core.errors import HoldfastError
from holdfast.numerics.evaluation import evaluating

__all__ = ["Outlook", "outlook"]

_ROWS = 32
_PROVED = 4
_SEARCHES = 12  # proofs that the search for a radius asks for, nearly


@dataclass(frozen=True)
class Outlook:
    """Seconds and questions of an audit.

    Attributes:
        least: seconds if each sample breaks at once.
        most: seconds if none does.
        passes: forwards and backwards of a sample that does not break.
    """

    least: float
    most: float
    passes: int

    @override
    def __str__(self) -> str:
        return f"about {_spoken(self.least)} if every sample breaks at once, {_spoken(self.most)} if none does"


def outlook(context: Context) -> Outlook:
    """Times a few questions to the model and scales them to the plan.

    Args:
        context: the plan, opened; its model is asked about a few rows.
    """
    ids = np.arange(min(len(context.data), _ROWS))
    passes = sum(entry.attack().passes for entry in context.plan.entries)
    a_pass = _timed(lambda: _ask(context, ids)) / len(ids)
    n = len(context.data)
    proofs = 0.0
    if context.plan.certify not in ("none", "smoothing") and context.differentiable:
        some = ids[:_PROVED]
        radii = np.full(len(some), float(context.plan.eps))
        try:
            proofs = _timed(lambda: prove(context, some, radii)) / len(some) * _SEARCHES
        except HoldfastError:
            proofs = 0.0  # no certificates, no time for them
    if context.plan.certify == "smoothing":
        proofs = a_pass * context.plan.smoothing_samples
    return Outlook(n * (4 * a_pass + proofs), n * (passes * a_pass + proofs), passes)


def _ask(context: Context, ids: np.ndarray) -> None:
    """One forward and, where there is a gradient, one backward."""
    x = context.inputs(ids)
    if not (context.differentiable and isinstance(context.model, nn.Module)):
        context.model(x.clone())
        return
    with evaluating(context.model), torch.enable_grad():
        x.requires_grad_()
        out = context.model(x.clone())
        if out.requires_grad:
            torch.autograd.grad(out.sum(), x)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the second of two runs: the first one also warms up."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
