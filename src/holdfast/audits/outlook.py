"""What an audit would cost, from a few timed questions: between a model that breaks at once and one that never does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from holdfast.audits.plan import Plan
from holdfast.numerics.evaluation import evaluating
from holdfast.session.session import Session

__all__ = ["Outlook", "outlook"]

_ROWS = 32
_LEAST = 4  # passes of a sample that breaks at once


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


def outlook(session: Session, plan: Plan) -> Outlook:
    """Times a few questions to the model and scales them to the attacks of a plan.

    Args:
        session: its model is asked about a few rows.
        plan: names the attacks.
    """
    ids, n = session.ids[:_ROWS], len(session.data)
    passes = sum(entry.attack().passes for entry in plan.entries)
    a_pass = _timed(lambda: _ask(session, ids)) / len(ids)
    return Outlook(n * _LEAST * a_pass, n * passes * a_pass, passes)


def _ask(session: Session, ids: np.ndarray) -> None:
    """One forward and, where there is a gradient, one backward."""
    x = session.inputs(ids)
    if not (session.differentiable and isinstance(session.model, nn.Module)):
        session.model(x.clone())
        return
    with evaluating(session.model), torch.enable_grad():
        x.requires_grad_()
        out = session.model(x.clone())
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
