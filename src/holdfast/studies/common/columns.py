"""What one method says of every sample: a certifier's radii, or the distances of an attack; and where two of them cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
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
from holdfast.core.cost import Cost
from holdfast.core.errors import UsageError
from holdfast.core.threat import Guarantee, Norm
from holdfast.core.verdict import Certificate, Clash, Witness, clash
from holdfast.judge.judged import judged
from holdfast.numerics.evaluation import evaluation_mode
from holdfast.session.session import Session
from holdfast.studies.study import StageProgress

__all__ = [
    "Array",
    "Crossing",
    "RadiiColumn",
    "RadiiSummary",
    "by_column",
    "certified",
    "crossings",
    "distances",
]

_POOR = 0.05  # p-value of a fit below which it is rejected

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RadiiColumn:
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
        cost: what the method asked of the model; bounds of a graph ask it nothing.
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
    cost: Cost = field(default_factory=Cost)

    def at_least(self, size: float) -> float:
        """Share of the samples that stand at this size: proved (or estimated) so far, or not broken within it."""
        if self.guarantee == "witness":
            return float((np.nan_to_num(self.radius, nan=np.inf) > size).mean())
        return float((np.nan_to_num(self.radius, nan=-1.0) >= size).mean())

    def summary(self) -> RadiiSummary:
        """The figures of all samples together."""
        finite = self.radius[np.isfinite(self.radius)]
        fits = np.zeros(0) if self.fit is None else self.fit[np.isfinite(self.fit)]
        return RadiiSummary(
            method=self.name,
            title=self.title,
            guarantee=self.guarantee,
            samples=len(self.radius),
            median_radius=float(np.median(np.nan_to_num(self.radius, posinf=0.0))) if len(self.radius) else 0.0,
            mean_radius=float(finite.mean()) if len(finite) else 0.0,
            largest_radius=float(finite.max()) if len(finite) else 0.0,
            none=int(np.isnan(self.radius).sum()),
            seconds=round(self.seconds, 3),
            arithmetic=self.arithmetic,
            alpha=self.alpha,
            held_against=self.held_against,
            fit_median_p=float(np.median(fits)) if len(fits) else None,
            fit_rejected=None if self.fit is None else float((fits < _POOR).mean()) if len(fits) else 0.0,
        )


@dataclass(frozen=True, kw_only=True)
class RadiiSummary:
    """The figures of one method over all samples.

    Attributes:
        method: its name.
        title: as its paper writes it.
        guarantee: see `RadiiColumn`.
        samples: how many.
        median_radius: no radius counts as 0.
        mean_radius: of those that have one.
        largest_radius: likewise.
        none: samples without one.
        seconds: for all samples.
        arithmetic: for sound ones.
        alpha: for probabilistic ones.
        held_against: what the graph was compared with.
        fit_median_p: for an estimate by a fitted distribution, the median p-value of the fits.
        fit_rejected: the share of fits with a p-value below 5 %; None where nothing was fitted.
    """

    method: str
    title: str
    guarantee: str
    samples: int
    median_radius: float
    mean_radius: float
    largest_radius: float
    none: int
    seconds: float
    arithmetic: str
    alpha: float | None
    held_against: str | None
    fit_median_p: float | None
    fit_rejected: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in JSON; those of a fit only where something was fitted."""
        values = asdict(self)
        return (
            values if self.fit_rejected is not None else {k: v for k, v in values.items() if not k.startswith("fit_")}
        )


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A radius that reaches a witness.

    Attributes:
        certifier: whose radius.
        attack: whose witness.
        sample: which.
        meaning: by guarantee and arithmetic.
    """

    certifier: str
    attack: str
    sample: int
    meaning: Clash


def by_column(session: Session, column: RadiiColumn) -> dict[str, Array]:
    """By column of a table, (n,) the change in its own units that a radius allows; NaN where there is no radius.

    In linf all columns may change so at once; in l1 and l2 one of them, the others staying as they are. Empty where the
    data are no table of their own values, and in l0, whose radius counts columns.
    """
    table = session.spec.table
    if table is None or session.threat.norm is Norm.L0:
        return {}
    return table.own_changes(column.radius)


def certified(
    session: Session,
    name: str,
    tool: object,
    tell: StageProgress,
    *,
    deployed: torch.dtype | None = None,
) -> RadiiColumn:
    """The largest radius that a method proves or estimates for each sample of the data.

    Args:
        session: the model, the samples and the threat.
        name: of the method.
        tool: a graph certifier or an oracle certifier.
        tell: progress.
        deployed: prove the model as it runs in this type, not in real numbers.

    Raises:
        UsageError: the method needs something that is not there.
        UnsupportedError: the method does not serve the norm, the model or ``deployed``.
    """
    n = len(session.data)
    tell(name, 0, n)
    against = session.believed.held_against if isinstance(tool, GraphCertifier) else None
    start = perf_counter()  # after the graph was read: it is read once for all methods, which stand side by side
    cost = Cost()
    if isinstance(tool, GraphCertifier):
        certificates = _of_graph(session, name, tool, tell, deployed)
    elif isinstance(tool, OracleCertifier):
        certificates, cost = _of_answers(session, name, tool, tell, deployed)
    else:
        raise UsageError(f"{name} is no certifier of radii; 'holdfast methods {name}' says what it is")
    first = next((c for c in certificates if c is not None), None)
    fits = np.array([np.nan if c is None or c.fit is None else c.fit for c in certificates])
    fitted = tool.card.guarantee is Guarantee.ESTIMATE and bool(np.isfinite(fits).any())
    return RadiiColumn(
        name=name,
        title=tool.card.title,
        guarantee=str(tool.card.guarantee),
        radius=np.array([np.nan if c is None else c.radius for c in certificates]),
        seconds=perf_counter() - start,
        arithmetic="" if first is None else first.arithmetic,
        alpha=None if first is None else first.alpha,
        fit=fits if fitted else None,
        held_against=against,
        deployed=None if first is None else first.deployed,
        cost=cost,
    )


def _of_graph(
    session: Session, name: str, tool: GraphCertifier, tell: StageProgress, deployed: torch.dtype | None
) -> list[Certificate | None]:
    graph, limit = replace(session.graph, deployed=deployed), float(session.largest_radius)
    certificates: list[Certificate | None] = []
    for ids in np.split(session.ids, range(tool.batch, len(session.ids), tool.batch)):
        part = session.problem(ids)
        certificates += tool.certificates(graph, part.x, part.y, part.set, limit)
        tell(name, len(certificates), len(session.ids))
    return certificates


def _of_answers(
    session: Session, name: str, tool: OracleCertifier, tell: StageProgress, deployed: torch.dtype | None
) -> tuple[list[Certificate | None], Cost]:
    if deployed is not None:
        raise UsageError(f"{name} asks the model and proves nothing about its arithmetic; leave --deployed out")
    if not isinstance(session.model, nn.Module):
        raise UsageError(f"{name} needs the model itself, not a prediction API")
    n, part = len(session.ids), session.problem(session.ids)
    with evaluation_mode(session.model):
        ask = ModuleAsk(session.model)
        certificates = tool.certify(
            ask,
            part.x,
            part.y,
            part.ids.tolist(),
            session.seed,
            norm=session.threat.norm,
            radius_max=float(session.largest_radius),
            progress=lambda done: tell(name, done, n),
        )
    return certificates, ask.cost


def distances(session: Session, name: str, tool: Attack[Any, Any], tell: StageProgress) -> RadiiColumn:
    """The least distance at which an attack breaks each sample, as the referee upholds it: 0 where the model is wrong as it
    is, NaN where nothing is upheld.
    """
    if not isinstance(session.model, nn.Module):
        raise UsageError("an attack beside certificates needs the model itself, not a prediction API")
    start, card = perf_counter(), tool.card
    problem = session.problem(session.ids)
    # a method of minimal distortion searches the whole box, one with a budget its largest radius
    limit = float("inf") if card.affine_ratio else float(session.largest_radius)
    problem = replace(problem, set=problem.set.with_eps(limit))
    outcome = run(tool, problem, session.model, seed=session.seed, progress=lambda done, of: tell(name, done, of))
    said = judged(session.referee(), problem, outcome)
    distance = said.distance.cpu().numpy()
    return RadiiColumn(
        name=name,
        title=card.title,
        guarantee="witness",
        radius=np.where(np.isfinite(distance), distance, np.nan),
        seconds=perf_counter() - start,
        arithmetics=said.arithmetics,
    )


def crossings(columns: Sequence[RadiiColumn]) -> tuple[Crossing, ...]:
    """Wherever a sound radius reaches a witness that the referee upheld, and what it means.

    A contradiction must not be; a finding is a witness that was not asked in the arithmetic of the proof. Probabilistic
    radii are about the smoothed model, another subject than the attack's, and estimates claim nothing: they cross nothing.
    """
    crossed: list[Crossing] = []
    for low in columns:
        for up in columns:
            if low.guarantee != "sound" or up.guarantee != "witness":
                continue
            for i in np.flatnonzero(low.radius >= up.radius).tolist():
                radius = float(low.radius[i])
                proof = Certificate(
                    radius=radius,
                    guarantee=Guarantee.SOUND,
                    method=low.name,
                    arithmetic=low.arithmetic,
                    deployed=low.deployed,
                )
                witness = Witness(
                    distance=float(up.radius[i]), attack=up.name, sha256="", margin=-1.0, arithmetics=up.arithmetics
                )
                meaning = clash(witness, proof)
                if meaning is not None:
                    crossed.append(Crossing(certifier=low.name, attack=up.name, sample=i, meaning=meaning))
    return tuple(crossed)
