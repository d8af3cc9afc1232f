"""The contract of a certificate over a set that is no ball of inputs.

from holdfast.testing import check_set_certifier
check_set_certifier("weight_perturbation")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from holdfast.certifiers.set_certifier import Reach, SetCertifier
from holdfast.core.draws import seeded
from holdfast.core.threat import Guarantee
from holdfast.graph import trace
from holdfast.graph.model import Graph
from holdfast.testing._manners import leaving_alone, under_two_states, whole_card
from holdfast.testing.contract import ContractSuite, reduced, require

__all__ = ["SET_CERTIFIER_CHECKS", "SET_CERTIFIER_SUITE", "check_set_certifier"]

_FEW = {"parts": 2, "cuts": 2, "searches": 6}
_MEMBERS = 400
_SHAPE = (1, 4, 4)
_NETS = ("linear", "dense")


@lru_cache
def _case(name: str) -> tuple[nn.Module, Graph, Tensor, Tensor]:
    """A net in float64 on images with few bright pixels, of which bounds are exact or near, six of them, and its labels."""
    with seeded(3):
        hidden = [nn.Linear(16, 6), nn.ReLU()] if name == "dense" else []
        net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(6 if hidden else 16, 2)).double().eval()
        x = torch.zeros(6, 16, dtype=torch.float64)
        x.scatter_(1, torch.rand(6, 16).argsort(1)[:, :2], torch.rand(6, 2, dtype=torch.float64) / 2 + 0.5)
    x = x.view(6, *_SHAPE)
    with torch.no_grad():
        net[-1].bias -= net(x).median(0).values
        y = net(x).argmax(1)
    return net.requires_grad_(False), trace(net, x[:1]), x, y


def _shifted(name: str, by: float) -> Graph:
    """The net's graph with the scores of class 1 raised."""
    graph = _case(name)[1]
    last = graph.nodes[-1]
    bias = last.tensors["bias"].detach() + torch.tensor([0.0, by], dtype=torch.float64)
    return replace(graph, nodes=(*graph.nodes[:-1], replace(last, tensors={**last.tensors, "bias": bias})))


def _small(tool: SetCertifier) -> SetCertifier:
    return reduced(tool, _FEW)


def _told(tool: SetCertifier, name: str) -> list[Reach | None]:
    _, graph, x, y = _case(name)
    return _small(tool).certify(graph, x, y)


def _card(tool: SetCertifier) -> None:
    whole_card(tool)
    require(tool.card.guarantee is Guarantee.SOUND, "card: what bounds of a graph prove is sound or it is nothing")


def _shape(tool: SetCertifier) -> None:
    told = {name: _told(tool, name) for name in _NETS}
    require(
        any(r is not None and r.high > 0 for found in told.values() for r in found), "nothing is proved of any sample"
    )
    for name, found in told.items():
        require(len(found) == len(_case(name)[2]), "one reach, or None, for each sample")
        for reach in filter(None, found):
            require(
                reach.low <= 0 <= reach.high < math.inf, f"a reach from {reach.low} to {reach.high}: 0 is unchanged"
            )
            require(reach.low > -math.inf, "a reach without an end")
            require(reach.unit and reach.arithmetic, "a reach names its unit and in which arithmetic it holds")
            require(reach.parts >= 1, "a reach says how many sets were bounded for it")


def _members(tool: SetCertifier) -> None:
    """What the bounds are checked by must itself be about the set."""
    small, (net, graph, x, _) = _small(tool), _case("linear")
    for k, reach in enumerate(_told(tool, "linear")):
        if reach is None or reach.high == 0:
            continue
        here = replace(reach, low=0.0, high=0.0, whole=False)
        own, found = net(x[k : k + 1]), small.members(graph, x[k], reach, 50, torch.Generator().manual_seed(k))
        require(found.shape == (50, 2) and found.dtype == torch.float64, "members: scores (count, outputs) float64")
        still = small.members(graph, x[k], here, 5, torch.Generator().manual_seed(k))
        require(
            torch.allclose(still, own.expand(5, -1), atol=1e-9), "members of a reach of 0 are not the sample itself"
        )
        require(
            not torch.allclose(found, own.expand(50, -1), atol=1e-12), "members of a reach are all the sample itself"
        )
        again = small.members(graph, x[k], reach, 50, torch.Generator().manual_seed(k))
        require(torch.equal(found, again), "members are drawn from something else than the stream that is given")


def _inside(tool: SetCertifier) -> None:
    small = _small(tool)
    for name in _NETS:
        _, graph, x, y = _case(name)
        for k, reach in enumerate(_told(tool, name)):
            if reach is None:
                continue
            found = small.members(graph, x[k], reach, _MEMBERS, torch.Generator().manual_seed(k))
            wrong = int((found.argmax(1) != y[k]).sum())
            require(
                wrong == 0,
                f"{name}: {wrong} of {_MEMBERS} members of a reach of {reach.high:g} ({reach.unit}) have another class",
            )


def _margin(tool: SetCertifier) -> None:
    """A class with a larger margin is proved as far at least."""
    for name in _NETS:
        _, _, x, y = _case(name)
        reaches = [_small(tool).certify(_shifted(name, by), x, y) for by in (-0.02, 0.0, 0.02)]
        for k, label in enumerate(y.numpy().tolist()):
            highs = [-1.0 if r is None else r.high for r in (found[k] for found in reaches)]
            highs = highs if label == 1 else highs[::-1]
            require(highs == sorted(highs), f"{name}: with a larger margin less is proved: {highs}")


def _already_wrong(tool: SetCertifier) -> None:
    for name in _NETS:
        _, graph, x, y = _case(name)
        found = _small(tool).certify(graph, x, 1 - y)
        require(not any(found), f"{name}: something is proved of a class that the model does not give")


def _not_a_number(tool: SetCertifier) -> None:
    """Scores that overflow in float64 prove no class."""
    _, graph, x, y = _case("dense")
    nodes = [replace(n, tensors={k: t.detach() * 1e200 for k, t in n.tensors.items()}) for n in graph.nodes]
    found = _small(tool).certify(replace(graph, nodes=tuple(nodes)), x, y)
    require(not any(found), "scores that are no numbers prove a class")


def _same_again(tool: SetCertifier) -> None:
    one, two = under_two_states(lambda: _told(tool, "dense"))
    require(one == two, "two runs differ")


def _batch(tool: SetCertifier) -> None:
    _, graph, x, y = _case("dense")
    whole = _told(tool, "dense")
    alone = [_small(tool).certify(graph, x[k : k + 1], y[k : k + 1])[0] for k in range(len(x))]
    require(alone == whole, "a sample alone has another reach than among others")
    require(_small(tool).certify(graph, x[:0], y[:0]) == [], "no samples, but an answer")


def _untouched(tool: SetCertifier) -> None:
    net, graph, *given = _case("dense")
    x, y = (t.clone() for t in given)  # what a breach changes shall not meet the other checks
    held = [t for node in graph.nodes for t in node.tensors.values()]
    with leaving_alone(net, x, y, *held):
        _small(tool).certify(graph, x, y)


CHECKS: dict[str, Callable[[SetCertifier], None]] = {
    "card": _card,
    "shape": _shape,
    "members": _members,
    "inside": _inside,
    "margin": _margin,
    "already-wrong": _already_wrong,
    "not-a-number": _not_a_number,
    "same-again": _same_again,
    "batch": _batch,
    "untouched": _untouched,
}

SET_CERTIFIER_SUITE = ContractSuite("a certifier over sets", SetCertifier, CHECKS)

SET_CERTIFIER_CHECKS = tuple(CHECKS)
"""Names of the checks, in the order in which they run."""


def check_set_certifier(
    set_certifier: str | type[SetCertifier] | SetCertifier, *, only: Iterable[str] | None = None
) -> None:
    """Runs the contract of a certifier over sets; each check is made, and all that fail are told together.

    Args:
        set_certifier: a registered name, a class that needs no arguments, or an instance.
        only: names of `SET_CERTIFIER_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check.

    Example:
        >>> check_set_certifier("patch_anywhere", only=["card", "inside"])
    """
    SET_CERTIFIER_SUITE(set_certifier, only)
