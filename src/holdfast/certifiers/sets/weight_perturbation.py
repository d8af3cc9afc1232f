"""Bounds over all networks whose weights lie near those of the model; with them, certified quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.set_certifier import Reach, SetCertifier
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph, Node
from holdfast.graph.operations import OPERATIONS, Rounding

__all__ = ["WeightPerturbation", "quantisation", "weighted", "with_tolerance"]


def weighted(graph: Graph) -> list[int]:
    """Positions of the nodes with weights, front to back: linear layers and convolutions, not tables of rows."""
    # one that bounds cannot move, say a plug-in's, is refused later: left out, it would count as unperturbed
    return [
        i
        for i, node in enumerate(graph.nodes)
        if "weight" in node.tensors and OPERATIONS[node.op].rounding is not Rounding.LOOK_UP
    ]


def with_tolerance(graph: Graph, tolerances: Mapping[int, Mapping[str, Tensor]]) -> Graph:
    """The graph that stands for every network within the tolerances (position -> tensor name -> half-width)."""
    nodes = [replace(n, tolerance=tolerances[i]) if i in tolerances else n for i, n in enumerate(graph.nodes)]
    return replace(graph, nodes=tuple(nodes))


def quantisation(graph: Graph, bits: int, layers: Sequence[int] | None = None) -> Graph:
    """The graph that stands for its symmetric uniform quantisations: each weight moves by at most half a step.

    The step of an output channel is its largest magnitude over ``2^(bits - 1) - 1``; biases stay as they are. So the
    result holds for every rounding to that grid, stochastic rounding to either neighbour excluded.

    Args:
        graph: the model; batch norms are folded, as deployed integer networks have them.
        bits: at least 2.
        layers: ordinals of the layers with weights, from 0; None: all.

    Raises:
        UsageError: fewer than 2 bits, or a layer that is not there.
    """
    if bits < 2:
        raise UsageError(f"a signed weight needs at least 2 bits, got {bits}")
    found: dict[int, dict[str, Tensor]] = {}
    for i in _chosen(graph, layers):
        weight = graph.nodes[i].tensors["weight"].detach().double()
        others = [d for d in range(weight.ndim) if d != OPERATIONS[graph.nodes[i].op].channel_dim]
        half = weight.abs().amax(others, keepdim=True) / (2 ** (bits - 1) - 1) / 2
        found[i] = {"weight": half.expand_as(weight) * (1 + 1e-14)}
    return with_tolerance(graph, found)


def _chosen(graph: Graph, layers: Sequence[int] | None) -> list[int]:
    places = weighted(graph)
    if layers is None:
        return places
    missing = [k for k in layers if not 0 <= k < len(places)]
    if missing:
        raise UsageError(
            f"the model has {len(places)} layers with weights, numbered from 0; there is no layer {missing[0]}"
        )
    return [places[k] for k in layers]


@dataclass(frozen=True)
class WeightPerturbation(SetCertifier):
    """The largest eps such that every network with all chosen weights within +-eps gives the sample its class.

    The value of a perturbed layer moves by at most ``eps |a|_1`` around ``W a + b``, which is attained for one layer and
    treated as an independent error of each neuron for several; it is carried through by the ordinary linear bounds.
    """

    card: ClassVar[Card] = Card(
        title="Weight perturbation",
        rows=("B05",),
        paper="Weng, Zhao, Liu, Chen, Lin & Daniel 2020, Towards Certificated Model Robustness Against Weight "
        "Perturbations, AAAI",
        section="4",
        summary="Certifies the class over all networks whose weights lie within eps of the model's, or within the step "
        "of a quantisation.",
        norms=(Norm.LINF,),
        guarantee=Guarantee.SOUND,
        failure_modes=("with many layers perturbed at once their errors count as independent, which is loose",),
        checked_by="a single perturbed layer is exact (attained by signs), sampled networks, real quantised networks",
    )

    layers: tuple[int, ...] | None = parameter(
        None, "ordinals of the layers whose weights move, from 0; None: all", "Weng et al. 2020: any set of layers"
    )
    bits: int | None = parameter(
        None, "certify quantisation to so many bits instead of a radius: high is 1 where it is proved", "ours"
    )
    largest: float = parameter(0.1, "eps is searched up to this, above 0", "ours: weights are rarely larger")
    searches: int = parameter(12, "bisection steps, at least 1", "ours: a four-thousandth of the range")

    @override
    def check(self, graph: Graph) -> None:
        """See `SetCertifier.check`."""
        self.tool.check_deployed(replace(graph, deployed=graph.dtype))
        if not self.largest > 0 or self.searches < 1:
            raise UsageError(f"the range must be positive and searched, got {self.largest} in {self.searches} steps")
        _chosen(graph, self.layers)

    @override
    def reach(self, graph: Graph, x: Tensor, y: int) -> Reach:
        """See `SetCertifier.reach`."""
        words = self.tool.arithmetic(graph)
        if self.bits is not None:
            held = self._holds(quantisation(graph, self.bits, self.layers), x, y)
            return Reach(
                low=0.0, high=float(held), unit=f"quantised to {self.bits} bits", whole=held, parts=1, arithmetic=words
            )
        low, high = 0.0, self.largest
        if self._holds(self.perturbed(graph, high), x, y):
            return Reach(low=-high, high=high, unit="weight", whole=True, parts=1, arithmetic=words)
        for _ in range(self.searches):
            middle = (low + high) / 2
            low, high = (middle, high) if self._holds(self.perturbed(graph, middle), x, y) else (low, middle)
        return Reach(low=-low, high=low, unit="weight", whole=False, parts=self.searches + 1, arithmetic=words)

    @override
    def members(self, graph: Graph, x: Tensor, reach: Reach, count: int, stream: torch.Generator) -> Tensor:
        """See `SetCertifier.members`: networks whose weights are moved to the ends of their tolerances."""
        whole = graph.to(torch.float64)
        if self.bits is None:
            whole = self.perturbed(whole, reach.high)
        elif reach.whole:
            whole = quantisation(whole, self.bits, self.layers)
        with torch.no_grad():
            return torch.cat([_moved(whole, stream).as_module()(x.unsqueeze(0)) for _ in range(count)])

    def perturbed(self, graph: Graph, eps: float) -> Graph:
        """The graph that stands for all networks with the chosen layers' weights within +-eps."""

        def half(node: Node) -> dict[str, Tensor]:
            return {"weight": torch.full_like(node.tensors["weight"].detach(), eps, dtype=torch.float64)}

        return with_tolerance(graph, {i: half(graph.nodes[i]) for i in _chosen(graph, self.layers)})

    def _holds(self, graph: Graph, x: Tensor, y: int) -> bool:
        point = LpBall.uniform(Norm.LINF, 0.0, 1, device=x.device, dtype=torch.float64)
        return bool(self.proved(graph, x.unsqueeze(0), torch.tensor([y], device=x.device), point))


def _moved(graph: Graph, stream: torch.Generator) -> Graph:
    """One of the networks within the tolerances."""

    def moved(node: Node) -> Node:
        tensors = dict(node.tensors)
        for key, half in node.tolerance.items():
            sign = torch.rand(half.shape, generator=stream, dtype=torch.float64).round() * 2 - 1
            tensors[key] = tensors[key].detach().double() + half * sign.to(half.device)
        return replace(node, tensors=tensors, tolerance={})

    return replace(graph, nodes=tuple(moved(node) if node.tolerance else node for node in graph.nodes))
