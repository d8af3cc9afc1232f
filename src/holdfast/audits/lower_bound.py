"""The lower bound of an audit: the certifier that its plan names, found in the registry, as the stages and recheck ask it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.oracle_certifier import ModuleAsk
from holdfast.certifiers.smoothing.cohen import Cohen
from holdfast.core.cards import Card
from holdfast.core.cost import Cost
from holdfast.core.errors import UsageError
from holdfast.core.registry import card, create, method
from holdfast.core.threat import Guarantee, Norm
from holdfast.core.verdict import Certificate
from holdfast.session.session import Session

__all__ = ["Certified", "GraphBound", "LowerBound", "SmoothedBound", "canonical", "lower_bound"]

_NONE, _SMOOTHING, _COHEN = "none", "smoothing", "cohen"


@dataclass(frozen=True, kw_only=True)
class Certified:
    """What was certified of some samples.

    Attributes:
        certificates: by id.
        held_against: what the graph was compared with, where there is one.
        cost: what was asked of the model.
    """

    certificates: dict[int, Certificate]
    held_against: str | None = None
    cost: Cost = field(default_factory=Cost)


class LowerBound(ABC):
    """Certificates by one method.

    Attributes:
        method: its name in the registry.
        uses_graph: it bounds the model's graph; another one asks the model.
        card: of the method.
    """

    method: str
    uses_graph: ClassVar[bool]

    @property
    def card(self) -> Card:
        """The card of the method."""
        return card(self.method)

    @abstractmethod
    def refuse(self, norm: Norm) -> None:
        """Refuses a norm that nothing can be certified in.

        Raises:
            UsageError: the message says what serves.
        """

    @abstractmethod
    def certificates(self, session: Session, ids: np.ndarray) -> Certified:
        """The largest radius of each sample that can be proved.

        Raises:
            UnsupportedError: the method cannot bound this model.
        """

    @abstractmethod
    def proves(self, session: Session, ids: np.ndarray, radii: np.ndarray) -> tuple[list[bool], Cost]:
        """Whether each sample is proved at its radius, asked anew, and what that asked of the model."""

    def proved_at(self, session: Session, ids: np.ndarray, eps: float) -> np.ndarray | None:
        """(n,) bool, which samples are proved at a size; None where that cannot be asked apart from the radii."""
        return None

    def form(self, session: Session, i: int) -> Certificate | None:
        """What is written on a certificate, apart from its radius; None where that hangs on the sample."""
        return None


@dataclass(frozen=True)
class GraphBound(LowerBound):
    """Bounds of the model's graph."""

    method: str
    uses_graph: ClassVar[bool] = True

    @override
    def refuse(self, norm: Norm) -> None:
        return  # a norm that it does not serve is refused with the model at hand, and the attacks stand

    def _certifier(self) -> GraphCertifier:
        return create(self.method, GraphCertifier)

    @override
    def certificates(self, session: Session, ids: np.ndarray) -> Certified:
        problem, top = session.problem(ids), float(session.largest_radius)
        proved = self._certifier().certificates(session.graph, problem.x, problem.y, problem.set, top)
        return Certified(certificates=_by_id(ids, proved), held_against=session.believed.held_against)

    @override
    def proves(self, session: Session, ids: np.ndarray, radii: np.ndarray) -> tuple[list[bool], Cost]:
        problem = session.problem(ids, torch.as_tensor(radii))
        proved: list[bool] = (
            self._certifier().certify(session.graph, problem.x, problem.y, problem.set).cpu().numpy().tolist()
        )
        return proved, Cost()

    @override
    def proved_at(self, session: Session, ids: np.ndarray, eps: float) -> np.ndarray | None:
        if not len(ids):
            return None
        problem = session.problem(ids, eps)
        return self._certifier().certify(session.graph, problem.x, problem.y, problem.set).cpu().numpy()

    @override
    def form(self, session: Session, i: int) -> Certificate | None:
        problem = session.problem(np.array([i]), 0.0)
        return self._certifier().certificates(session.graph, problem.x, problem.y, problem.set, 0.0)[0]


@dataclass(frozen=True)
class SmoothedBound(LowerBound):
    """Certificates of g = smooth(f, sigma, n), drawn with the run's own key.

    Attributes:
        sigma: the noise.
        draws: for each sample.
    """

    sigma: float
    draws: int
    method: str = _COHEN
    uses_graph: ClassVar[bool] = False

    @override
    def refuse(self, norm: Norm) -> None:
        if norm not in self.card.norms:
            raise UsageError("smoothing certifies l2; use --norm l2, or --certify crown")

    @override
    def certificates(self, session: Session, ids: np.ndarray) -> Certified:
        problem = session.problem(ids)
        ask = ModuleAsk(copy.deepcopy(session.module).eval())
        proved = Cohen(sigma=self.sigma, n=self.draws).certify(
            ask,
            problem.x,
            problem.y,
            ids.tolist(),
            session.seed,
            norm=session.threat.norm,
            radius_max=float(session.largest_radius),
        )
        return Certified(certificates=_by_id(ids, proved), cost=Cost(forwards=ask.forwards))

    @override
    def proves(self, session: Session, ids: np.ndarray, radii: np.ndarray) -> tuple[list[bool], Cost]:
        certified = self.certificates(session, ids)
        anew = certified.certificates
        held = [i in anew and anew[i].radius >= r for i, r in zip(ids.tolist(), radii, strict=True)]
        return held, certified.cost


def canonical(name: str) -> str:
    """The one way of writing the name of a lower bound; smoothing goes by what it is.

    Example:
        >>> canonical("alpha_crown"), canonical("cohen"), canonical("none")
        ('alpha-crown', 'smoothing', 'none')
    """
    written = name.replace("_", "-").lower()
    return _SMOOTHING if written == _COHEN else written


def lower_bound(name: str, *, sigma: float, draws: int) -> LowerBound | None:
    """The lower bound of a name, as a plan gives it; None for ``none``.

    Args:
        name: of a certifier in the registry, ``smoothing`` or ``none``.
        sigma: noise of smoothing.
        draws: of smoothing, for a sample.

    Raises:
        UsageError: there is none, or an audit does not serve it.

    Example:
        >>> lower_bound("alpha-crown", sigma=0.25, draws=100)
        GraphBound(method='alpha_crown')
    """
    if name == _NONE:
        return None
    chosen = method(_COHEN if name == _SMOOTHING else name)
    if issubclass(chosen, Cohen):
        return SmoothedBound(sigma=sigma, draws=draws)
    if issubclass(chosen, GraphCertifier) and chosen.card.guarantee is Guarantee.SOUND:
        return GraphBound(name.replace("-", "_"))
    raise UsageError(
        f"an audit certifies with sound bounds of a network (crown, ibp, alpha-crown ...), with smoothing or not at all "
        f"(none), and '{name}' is none of these; for other certifiers see: holdfast certify --help"
    )


def _by_id(ids: np.ndarray, proved: Sequence[Certificate | None]) -> dict[int, Certificate]:
    return {i: c for i, c in zip(ids.tolist(), proved, strict=True) if c is not None}
