"""Certificates over sets that are no balls of inputs: how far one quantity may go until the class is no longer proved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from holdfast.certifiers.graph_certifier import GraphCertifier, margin_rows
from holdfast.certifiers.proved import proved
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph

__all__ = ["Reach", "SetCertifier"]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What is proved of one sample: the class holds while the quantity stays in [low, high].

    Attributes:
        low: in ``unit``.
        high: in ``unit``.
        unit: what is measured, for example ``degrees``.
        whole: the entire range that was asked about is proved.
        parts: how many sets were bounded to find out.
        arithmetic: in which it holds.
    """

    low: float
    high: float
    unit: str
    whole: bool
    parts: int
    arithmetic: str = ""


@dataclass(frozen=True)
class SetCertifier(ABC):
    """A method that proves the class of a sample over a family of sets, by bounds of a `GraphCertifier`.

    A method is one `reach`, and `members`, random ones of the set that it is about; ``certify`` checks the request, the same
    for all, and `holdfast.testing.check_set_certifier` looks for another class among the members.
    """

    card: ClassVar[Card]

    bounds: str = parameter(
        "crown", "the graph certifier that bounds each part, by name", "ours: the best for its time"
    )

    @final
    def certify(
        self, graph: Graph, x: Tensor, y: Tensor, progress: Callable[[int], None] | None = None
    ) -> list[Reach | None]:
        """What is proved of each sample, or None where the model gives it another class.

        Args:
            graph: the model.
            x: samples (n, \\*features) in [0, 1].
            y: labels (n,).
            progress: told how many samples are settled.

        Raises:
            UsageError: shapes that do not fit, or samples outside [0, 1].
            UnsupportedError: inputs or operations that the method does not serve.
        """
        graph = graph.logits()
        if tuple(x.shape[1:]) != graph.input_shape or len(x) != len(y):
            raise UsageError(f"samples {tuple(x.shape)} and labels {tuple(y.shape)} for a model of {graph.input_shape}")
        if len(x) and not bool(((x >= 0) & (x <= 1)).all()):
            raise UsageError("samples must lie in [0, 1]")
        self.check(graph)
        found: list[Reach | None] = []
        for i in range(len(x)):
            point = LpBall.uniform(Norm.LINF, 0.0, 1, device=x.device)
            held = self.proved(graph, x[i : i + 1].double(), y[i : i + 1], point)
            found.append(self.reach(graph, x[i].double(), int(y[i])) if bool(held) else None)
            if progress:
                progress(i + 1)
        return found

    def check(self, graph: Graph) -> None:  # noqa: B027
        """Refuses models and parameters that the method cannot serve, before any work."""

    @abstractmethod
    def reach(self, graph: Graph, x: Tensor, y: int) -> Reach:
        """What is proved of one sample (\\*features) float64 that is proved to have class y itself."""

    @abstractmethod
    def members(self, graph: Graph, x: Tensor, reach: Reach, count: int, stream: torch.Generator) -> Tensor:
        """What the model answers for random members of the set that a reach is about, most of them extreme ones.

        It must not go through the bounds: it is what they are checked by.

        Args:
            graph: the model.
            x: one sample (\\*features) float64.
            reach: of this sample, or a smaller or larger one.
            count: how many.
            stream: what to draw from.

        Returns:
            Scores (count, outputs) float64.
        """

    @property
    def tool(self) -> GraphCertifier:
        """The certifier that bounds each part.

        Raises:
            UsageError: ``bounds`` names something else.
        """
        kind = method(self.bounds)
        if not issubclass(kind, GraphCertifier):
            raise UsageError(f"'{self.bounds}' does not bound graphs; try crown, alpha_crown or ibp")
        return kind()

    def proved(self, graph: Graph, x: Tensor, y: Tensor, region: LpBall) -> Tensor:
        """Whether class y is proved over each region, (n,) bool; in batches of the tool's size."""
        tool = self.tool
        rows = margin_rows(y, graph.output_shape[0])
        held = [
            proved(tool.bounds(graph, region.select(part), x[part], rows[part])).all(1)
            for part in torch.split(torch.arange(len(x), device=x.device), tool.batch)
        ]
        return torch.cat(held)
