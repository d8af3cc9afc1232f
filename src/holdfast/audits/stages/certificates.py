"""The lower bound: certificates of a chunk, in the order of their cost."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from holdfast.audits.context import Context
from holdfast.audits.evidence import Standing
from holdfast.audits.journal import Payload
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.oracle_certifier import ModuleAsk
from holdfast.certifiers.smoothing.cohen import Cohen
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.registry import create
from holdfast.core.verdict import Certificate

__all__ = ["certificates", "form", "prove", "proved_at", "triage"]


_RANDOM = (
    "the model draws at random in eval mode, so nothing that holds of one answer holds of the next: no certificate is "
    "given; switch its noise off, or read the attacks' majorities of fresh draws"
)


def triage(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> Payload:
    """Which open samples the plan's bounds prove at eps; `fast` may spare them its dear attacks."""
    standing = _standing(context, ids, units)
    chosen = ids[standing.open]
    if not len(chosen):
        return {"ids": [], "proved": []}
    if context.randomised:
        return {"ids": [], "proved": [], "refused": _RANDOM}
    problem = context.problem(chosen)
    try:
        held = _certifier(context.plan.certify).certify(context.graph, problem.x, problem.y, problem.set)
    except UnsupportedError as refusal:
        return {"ids": [], "proved": [], "refused": str(refusal)}
    against = {"held_against": context.believed.held_against}
    return {"ids": chosen.tolist(), "proved": chosen[held.cpu().numpy()].tolist()} | against


def certificates(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> Payload:
    """The largest certified radius of each sample that is classified as labelled."""
    standing = _standing(context, ids, units)
    chosen = ids[standing.correct]
    if not len(chosen):
        return {"ids": [], "certificates": {}}
    if context.randomised:
        return {"ids": chosen.tolist(), "certificates": {}, "refused": _RANDOM}
    if context.plan.certify == "smoothing":
        return _smoothing(context, chosen)
    problem, top = context.problem(chosen), float(context.plan.largest_radius)
    try:
        found = _certifier(context.plan.certify).certificates(context.graph, problem.x, problem.y, problem.set, top)
    except UnsupportedError as refusal:
        return {"ids": chosen.tolist(), "certificates": {}, "refused": str(refusal)}
    against = {"held_against": context.believed.held_against}
    return {"ids": chosen.tolist(), "certificates": _records(chosen, found)} | against


def prove(context: Context, ids: np.ndarray, radii: np.ndarray) -> list[bool]:
    """Recheck: whether each sample is proved at its radius, asked anew."""
    if context.plan.certify == "smoothing":
        again = _smoothing(context, ids)["certificates"]
        return [again.get(str(i), {"radius": -1.0})["radius"] >= r for i, r in zip(ids.tolist(), radii, strict=True)]
    problem = context.problem(ids, torch.from_numpy(radii))
    return _certifier(context.plan.certify).certify(context.graph, problem.x, problem.y, problem.set).tolist()


def proved_at(context: Context, ids: np.ndarray, eps: float) -> np.ndarray | None:
    """Recheck: (n,) bool, which samples the plan's bounds prove at a size; None where the plan has no such bounds."""
    if context.plan.certify in ("none", "smoothing") or not len(ids):
        return None
    problem = context.problem(ids, eps)
    held = _certifier(context.plan.certify).certify(context.graph, problem.x, problem.y, problem.set)
    return held.cpu().numpy()


def form(context: Context, i: int) -> Certificate | None:
    """Recheck: what the plan's bounds write on a certificate, apart from its radius."""
    if context.plan.certify in ("none", "smoothing"):
        return None
    problem = context.problem(np.array([i]), 0.0)
    return _certifier(context.plan.certify).certificates(context.graph, problem.x, problem.y, problem.set, 0.0)[0]


def _smoothing(context: Context, ids: np.ndarray) -> Payload:
    if not isinstance(context.base, nn.Module):
        raise UsageError("smoothing needs the model itself")
    plan, problem = context.plan, context.problem(ids)
    ask = ModuleAsk(copy.deepcopy(context.base).eval())
    found = Cohen(sigma=plan.sigma, n=plan.smoothing_samples).certify(
        ask, problem.x, problem.y, ids.tolist(), plan.seed, norm=plan.norm, radius_max=float(plan.largest_radius)
    )
    return {"ids": ids.tolist(), "certificates": _records(ids, found), "asked": ask.forwards}


def _certifier(name: str) -> GraphCertifier:
    return create(name, GraphCertifier)


def _records(ids: np.ndarray, found: list[Certificate | None]) -> dict[str, dict[str, Any]]:
    return {
        str(i): asdict(c) | {"guarantee": str(c.guarantee)}
        for i, c in zip(ids.tolist(), found, strict=True)
        if c is not None
    }


def _standing(context: Context, ids: np.ndarray, units: Mapping[str, Payload]) -> Standing:
    return Standing.of(ids, context.data.y.numpy()[ids], float(context.plan.eps), units)
