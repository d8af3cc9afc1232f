"""Certificates from bounds on a model's graph: the contract, and what every such method has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.certifiers.propagation.deployment import tie
from holdfast.certifiers.proved import numbers, proved
from holdfast.core.cards import Card, parameter, refuse
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.registry import name_of
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.core.verdict import Certificate
from holdfast.graph.model import Graph

__all__ = ["GraphCertifier", "margin_rows"]


def margin_rows(y: Tensor, classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The specification "class y wins": rows C (n, classes - 1, classes) with ``(C f)_j = f_y - f_j`` for each j != y.

    Args:
        y: labels (n,), int64.
        classes: number of classes.
        dtype: of the result.

    Example:
        >>> margin_rows(torch.tensor([1]), 3).tolist()
        [[[-1.0, 1.0, 0.0], [0.0, 1.0, -1.0]]]
    """
    unit = torch.eye(classes, dtype=dtype, device=y.device)
    differences = unit[y].unsqueeze(1) - unit
    others = torch.arange(classes, device=y.device) != y.unsqueeze(1)
    return differences[others].view(len(y), classes - 1, classes)


@dataclass(frozen=True)
class GraphCertifier(ABC):
    """A method that bounds linear functions of a graph's output from below, over a region.

    A method is one `bounds`; margins, certificates and radii follow from it. What is not a number certifies nothing.
    Of a model in float16 or bfloat16 the claims are about the model as it runs: in real numbers it is another function.

    Attributes:
        deployable: its bounds also account for the rounding of the network as it runs (`Graph.deployed`) and for
            tolerances of its weights.
    """

    card: ClassVar[Card]
    deployable: ClassVar[bool] = False

    batch: int = parameter(
        32, "samples that are bounded at once, at least 1", "ours: fits in a gigabyte on CIFAR networks"
    )

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"{self.card.title} bounds at least 1 sample at once, got batch={self.batch}")

    @abstractmethod
    def bounds(self, graph: Graph, region: LpBall, x: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
        """Lower bounds of ``C f(x') + d`` over all x' of the region, for all rows in one backward pass.

        Differentiable in the graph's tensors.

        Args:
            graph: the model.
            region: the set around each sample.
            x: samples (n, \\*features).
            c: (n, rows, classes) or (rows, classes).
            d: (rows,) or (n, rows), 0 if missing.

        Returns:
            (n, rows) float64.

        Raises:
            UnsupportedError: the graph has an operation without a bound, or its output is not a vector.
        """

    def margins(self, graph: Graph, x: Tensor, y: Tensor, region: LpBall) -> Tensor:
        """Lower bounds of ``f_y - f_j`` for every class j != y; a softmax at the end is left out, it keeps the order.

        As deployed, less what two scores must differ by for the decision to be made by them: a softmax may tie.

        Args:
            graph: the model.
            x: samples (n, \\*features).
            y: labels (n,).
            region: the set around each sample.

        Returns:
            (n, classes - 1) float64, without gradient; -inf where nothing is known.

        Raises:
            UsageError: shapes that do not fit the graph.
            UnsupportedError: an operation without a bound, or a norm that the card lacks.
        """
        refuse(self.card, region.norm)
        graph = _as_claimed(graph)
        self.check_deployed(graph)
        least = tie(graph)
        graph = graph.logits()
        if tuple(x.shape[1:]) != graph.input_shape:
            raise UsageError(f"samples of shape {tuple(x.shape[1:])} for a model of {graph.input_shape}")
        if not len(x) == len(y) == len(region.eps):
            raise UsageError(f"{len(x)} samples, {len(y)} labels and a set for {len(region.eps)} samples")
        if len(graph.output_shape) != 1 or graph.output_shape[0] < 2:
            raise UsageError(f"a classifier has a vector of at least 2 scores, this model {graph.output_shape}")
        rows = margin_rows(y, graph.output_shape[0])
        if not len(x):
            return x.new_zeros(0, graph.output_shape[0] - 1, dtype=torch.float64)
        parts: list[Tensor] = []
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):  # cuDNN may convolve by FFT: no a-priori bound
            for i in torch.split(torch.arange(len(x), device=x.device), self.batch):
                parts.append(numbers(self.bounds(graph, region.select(i), x[i], rows[i])))
        return torch.cat(parts) - least

    def certify(self, graph: Graph, x: Tensor, y: Tensor, ball: LpBall) -> Tensor:
        """Whether every input of the set is proved to have class y: (n,) bool."""
        return proved(self.margins(graph, x, y, ball)).all(1)

    def radius(
        self, graph: Graph, x: Tensor, y: Tensor, ball: LpBall, radius_max: float, tolerance: float = 0.01
    ) -> Tensor:
        """The largest radius that is proved for each sample, by bisection from ``ball.eps``.

        Args:
            graph: the model.
            x: samples (n, \\*features).
            y: labels (n,).
            ball: the set; its eps is where the search starts.
            radius_max: where it ends.
            tolerance: it stops when the largest proved and the least unproved radius differ by this part of
                ``radius_max`` (for l0 when they are neighbours).

        Returns:
            (n,) float64: every radius was itself proved; NaN where not even the sample alone has class y.
        """
        whole = ball.norm is Norm.L0
        proved = torch.full_like(ball.eps, torch.nan)
        failed = torch.full_like(ball.eps, torch.inf)
        start = ball.eps.clamp(max=radius_max)
        for trial in (start, torch.full_like(start, radius_max), torch.zeros_like(start)):
            # upwards only what held at the start, downwards only what failed there
            useful = torch.where(proved.isnan(), trial < failed, (trial > proved) & failed.isinf())
            self._try(graph, x, y, ball, trial, useful, proved, failed)
        while True:
            gap = failed - proved
            useful = gap.isfinite() & (gap > (1 if whole else tolerance * radius_max))
            middle = proved + gap / 2
            middle = middle.floor() if whole else middle
            if not useful.any():
                return proved
            self._try(graph, x, y, ball, middle, useful, proved, failed)

    def _try(
        self,
        graph: Graph,
        x: Tensor,
        y: Tensor,
        ball: LpBall,
        eps: Tensor,
        useful: Tensor,
        proved: Tensor,
        failed: Tensor,
    ) -> None:
        """Certifies the samples in question at their eps; updates the proved and the failed radii in place."""
        rows = useful.nonzero().flatten()
        if len(rows):
            held = self.certify(graph, x[rows], y[rows], ball.with_eps(eps).select(rows))
            proved[rows[held]] = eps[rows[held]]
            failed[rows[~held]] = eps[rows[~held]]

    def certificates(
        self, graph: Graph, x: Tensor, y: Tensor, ball: LpBall, radius_max: float, tolerance: float = 0.01
    ) -> list[Certificate | None]:
        """The certificate of each sample at its largest proved radius, None where nothing is proved; see `radius`."""
        name = name_of(self)
        radii = [float(r) for r in self.radius(graph, x, y, ball, radius_max, tolerance)]
        arithmetic, claimed = self.arithmetic(graph), _as_claimed(graph).deployed
        deployed = None if claimed is None else str(claimed).removeprefix("torch.")
        return [
            None
            if r != r
            else Certificate(radius=r, guarantee=Guarantee.SOUND, method=name, arithmetic=arithmetic, deployed=deployed)
            for r in radii
        ]

    def arithmetic(self, graph: Graph) -> str:
        """The arithmetic in which a certificate for this graph holds, in words."""
        graph = _as_claimed(graph)
        if graph.deployed is None:
            return "f in real numbers on its stored weights, bounds in float64 with a-priori rounding terms"
        kind = str(graph.deployed).removeprefix("torch.")
        sums = " in float32" if graph.deployed is torch.bfloat16 else ""
        return (
            f"f as it runs in {kind}, inputs and weights rounded to it, in any order of summation{sums}, subnormal numbers "
            "kept or flushed; bounds in float64 with a-priori rounding terms"
        )

    def check_deployed(self, graph: Graph) -> None:
        """Refuses a graph whose own rounding shall count where the method cannot count it.

        Raises:
            UnsupportedError: the message names methods that can.
        """
        if not self.deployable and (graph.deployed is not None or any(node.tolerance for node in graph.nodes)):
            raise UnsupportedError(
                f"{self.card.title} bounds f in real numbers and with exact weights only; use crown, alpha_crown or ibp"
            )


def _as_claimed(graph: Graph) -> Graph:
    """The graph that a claim is about: of a model in a narrow type as it runs."""
    narrow = graph.deployed is None and graph.dtype in (torch.float16, torch.bfloat16)
    return replace(graph, deployed=graph.dtype) if narrow else graph
