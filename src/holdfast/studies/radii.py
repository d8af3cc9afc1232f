"""Certified radii of every sample by several methods, beside the distance at which an attack breaks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import run
from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.oracle_certifier import ModuleAsk, OracleCertifier
from holdfast.core.errors import UsageError
from holdfast.core.threat import Guarantee, Norm
from holdfast.core.verdict import Certificate, Clash, Witness, clash
from holdfast.judge.judged import judged
from holdfast.session.session import Session

__all__ = ["Column", "by_column", "certified", "crossings", "distances"]

Array = NDArray[np.float64]
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one method says of every sample.

    Attributes:
        name: of the method.
        title: as its paper writes it.
        guarantee: ``sound``, ``probabilistic``, ``estimate`` or ``witness`` (an attack: an upper bound).
        radius: (n,); NaN where there is none to give.
        seconds: for all samples.
        arithmetic: for sound ones.
        alpha: for probabilistic ones.
        fit: (n,) p-values of an estimate's goodness of fit, or None.
        held_against: what the graph was compared with, for methods that bound one.
        deployed: for sound ones, the type in whose arithmetic they hold of the model as it runs; None for real numbers.
        arithmetics: for witnesses, the types in which the referee asked the model.
    """

    name: str
    title: str
    guarantee: str
    radius: Array
    seconds: float
    arithmetic: str = ""
    alpha: float | None = None
    fit: Array | None = None
    held_against: str | None = None
    deployed: str | None = None
    arithmetics: tuple[str, ...] = ()

    def at_least(self, size: float) -> float:
        """Share of the samples that stand at this size: proved (or estimated) so far, or not broken within it."""
        if self.guarantee == "witness":
            return float((np.nan_to_num(self.radius, nan=np.inf) > size).mean())
        return float((np.nan_to_num(self.radius, nan=-1.0) >= size).mean())

    def as_dict(self) -> dict[str, Any]:
        """In plain values, without those of each sample."""
        finite = self.radius[np.isfinite(self.radius)]
        return {
            "method": self.name, "title": self.title, "guarantee": self.guarantee, "samples": len(self.radius),
            "median_radius": float(np.median(np.nan_to_num(self.radius, posinf=0.0))) if len(self.radius) else 0.0,
            "mean_radius": float(finite.mean()) if len(finite) else 0.0,
            "largest_radius": float(finite.max()) if len(finite) else 0.0,
            "none": int(np.isnan(self.radius).sum()), "seconds": round(self.seconds, 3), "arithmetic": self.arithmetic,
            "alpha": self.alpha, "held_against": self.held_against, **self._fit(),
        }  # fmt: skip

    def _fit(self) -> dict[str, Any]:
        if self.fit is None:
            return {}
        known = self.fit[np.isfinite(self.fit)]
        poor = float((known < 0.05).mean()) if len(known) else 0.0
        return {"fit_median_p": float(np.median(known)) if len(known) else None, "fit_rejected": poor}


def by_column(session: Session, column: Column) -> dict[str, Array]:
    """By column of a table, (n,) the change in its own units that a radius allows; NaN where there is no radius.

    In linf all columns may change so at once; in l1 and l2 one of them, the others staying as they are. Empty where the
    data are no table of their own values, and in l0, whose radius counts columns.
    """
    table = session.spec.table
    if table is None or session.threat.norm is Norm.L0:
        return {}
    return table.own_changes(column.radius)


def certified(
    session: Session, name: str, tool: Any, tell: Tell, *, deployed: torch.dtype | None = None
) -> Column:  # fmt: skip
    """The largest radius that a method proves or estimates for each sample of the data.

    Args:
        session: the opened model, data and threat.
        name: of the method.
        tool: a graph certifier or an oracle certifier.
        tell: progress.
        deployed: prove the model as it runs in this type, not in real numbers.

    Raises:
        UsageError: the method needs something that is not there.
        UnsupportedError: the method does not serve the norm, the model or ``deployed``.
    """
    n, start = len(session.data), perf_counter()
    limit, card = float(session.largest_radius), tool.card
    found: list[Certificate | None] = []
    against: str | None = None
    tell(name, 0, n)
    if isinstance(tool, GraphCertifier):
        graph, against = replace(session.graph, deployed=deployed), session.believed.held_against
        for ids in torch.split(torch.arange(n), tool.batch):
            part = session.problem(ids.numpy())
            found += tool.certificates(graph, part.x, part.y, part.set, limit)
            tell(name, len(found), n)
    elif isinstance(tool, OracleCertifier):
        if deployed is not None:
            raise UsageError(f"{name} asks the model and proves nothing about its arithmetic; leave --deployed out")
        if not isinstance(session.model, nn.Module):
            raise UsageError(f"{name} needs the model itself, not a prediction API")
        part = session.problem(np.arange(n))
        found = tool.certify(
            ModuleAsk(session.model.eval()), part.x, part.y, part.ids.tolist(), session.seed, norm=session.threat.norm,
            radius_max=limit, progress=lambda done: tell(name, done, n),
        )  # fmt: skip
    else:
        raise UsageError(f"{name} is no certifier of radii; 'holdfast methods {name}' says what it is")
    first = next((c for c in found if c is not None), None)
    fits = np.array([np.nan if c is None or c.fit is None else c.fit for c in found])
    return Column(
        name=name, title=card.title, guarantee=str(card.guarantee),
        radius=np.array([np.nan if c is None else c.radius for c in found]), seconds=perf_counter() - start,
        arithmetic="" if first is None else first.arithmetic, alpha=None if first is None else first.alpha,
        fit=fits if card.guarantee is Guarantee.ESTIMATE and np.isfinite(fits).any() else None, held_against=against,
        deployed=None if first is None else first.deployed,
    )  # fmt: skip


def distances(session: Session, name: str, tool: Attack[Any, Any], tell: Tell) -> Column:
    """The least distance at which an attack breaks each sample, as the referee upholds it: 0 where the model is wrong as it
    is, NaN where nothing is upheld.
    """
    if not isinstance(session.model, nn.Module):
        raise UsageError("an attack beside certificates needs the model itself, not a prediction API")
    start, card = perf_counter(), tool.card
    problem = session.problem(np.arange(len(session.data)))
    # a method of minimal distortion searches the whole box, one with a budget its largest radius
    limit = float("inf") if card.affine_ratio else float(session.largest_radius)
    problem = replace(problem, set=problem.set.with_eps(limit))
    out = run(tool, problem, session.model, seed=session.seed, progress=lambda done, of: tell(name, done, of))
    done = judged(session.referee(), problem, out)
    distance = done.distance.cpu().numpy()
    return Column(
        name=name, title=card.title, guarantee="witness", radius=np.where(np.isfinite(distance), distance, np.nan),
        seconds=perf_counter() - start, arithmetics=done.arithmetics,
    )  # fmt: skip


def crossings(columns: Sequence[Column]) -> list[tuple[str, str, int, Clash]]:
    """(certifier, attack, sample, what it means) wherever a sound radius reaches a witness that the referee upheld.

    A contradiction must not be; a finding is a witness that was not asked in the arithmetic of the proof. Probabilistic
    radii are about the smoothed model, another subject than the attack's, and estimates claim nothing: they cross nothing.
    """
    found: list[tuple[str, str, int, Clash]] = []
    for low in columns:
        for up in columns:
            if low.guarantee != "sound" or up.guarantee != "witness":
                continue
            for i in np.flatnonzero(low.radius >= up.radius).tolist():
                proof = Certificate(
                    float(low.radius[i]), Guarantee.SOUND, low.name, low.arithmetic, deployed=low.deployed
                )
                witness = Witness(float(up.radius[i]), up.name, "", -1.0, arithmetics=up.arithmetics)
                meaning = clash(witness, proof)
                if meaning is not None:
                    found.append((low.name, up.name, i, meaning))
    return found
