"""Linear programs: the best step within a trust region of the linearised rows.

What is least may lie in a corner of several rows, where no single gradient leads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from holdfast.attacks.falsification.descent import End
from holdfast.attacks.falsification.trials import Trials, slope_of

__all__ = ["polish"]

_POLISHED, _PROGRAMS = 4, 12  # points of a round from which linear programs go on, and how many


def polish(trials: Trials, ends: Sequence[End]) -> Tensor | None:
    """Linear programs from the best points of a round. A witness, if one is found in time."""
    value, x, group = min(ends, key=lambda end: float(end.score.min()))
    best = value.topk(min(_POLISHED, len(value)), largest=False).indices
    chosen = [(x[i : i + 1], float(value[i]), int(group[i]), 0.1) for i in best]
    for _ in range(_PROGRAMS):
        for k, (at, score, g, trust) in enumerate(chosen):
            moved = _best_step(trials, at, g, trust)
            with torch.no_grad():
                scores = trials.scores(trials.rows(moved))
            witness = trials.settle(moved, scores)
            if witness is not None or trials.over:
                return witness
            now = float(scores[0, g])
            chosen[k] = (moved, now, g, min(2 * trust, 0.5)) if now < score else (at, score, g, trust / 3)
    return None


def _best_step(trials: Trials, x: Tensor, group: int, trust: float) -> Tensor:
    """The best point for a group where its rows are taken as linear; x itself if the program has no answer."""
    own = (trials.groups == group).nonzero().flatten()
    at = x.to(trials.dtype).requires_grad_(True)
    with torch.enable_grad():
        rows = trials.rows(at)[0, own]
        if not bool(rows.isfinite().all()):
            return x
        slopes = [slope_of(row, at).double().flatten() for row in rows]
    wide = (trials.upper - trials.lower).flatten()
    low = torch.maximum(-trust * wide, trials.lower.flatten() - x.flatten()).clamp(max=0)
    high = torch.minimum(trust * wide, trials.upper.flatten() - x.flatten()).clamp(min=0)
    matrix = torch.cat(
        [torch.stack(slopes).nan_to_num(0.0), torch.full((len(own), 1), -1.0, dtype=torch.float64).to(x.device)], 1
    )
    goal = [0.0] * len(wide) + [1.0]
    bounds = [*zip(low.cpu().numpy(), high.cpu().numpy(), strict=True), (None, None)]
    optimum: Any = optimize.linprog(  # pyright: ignore[reportUnknownMemberType]
        goal, matrix.cpu().numpy(), -rows.detach().cpu().numpy(), bounds=bounds
    )
    if optimum.x is None:
        return x
    step = torch.as_tensor(optimum.x[:-1], dtype=torch.float64, device=x.device).view_as(x)
    return (x + step).clamp(trials.lower, trials.upper)
