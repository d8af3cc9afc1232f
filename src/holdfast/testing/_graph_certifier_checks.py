"""What a certifier that bounds graphs must keep: its bounds are sound, and as tight as can be asked."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from holdfast.certifiers.graph_certifier import margin_rows
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph.model import Graph
from holdfast.numerics.affine import affine_optimum
from holdfast.testing._certifier_case import (
    NETS,
    RADII,
    CertifierCase,
    balls,
    captured,
    chain,
    descend,
    least_margins,
    points,
)
from holdfast.testing.contract import ContractError, require
from holdfast.testing.toys import affine_digits, digits

__all__ = ["GRAPH_CHECKS"]

_POINTS = 10_000
_SOLVER = 1e-7  # HiGHS' own tolerance
_BISECTION = 2e-3


# never above the truth


def _optimum(case: CertifierCase) -> None:
    c = margin_rows(torch.zeros(1, dtype=torch.int64), 3)
    if Norm.LINF not in case.norms:
        return
    for net in least_margins():
        bound = case.whole.bounds(net.graph, net.ball, net.x, c).detach().numpy()[0]
        above = bound - net.exact
        require((above <= _SOLVER).all(), f"a bound lies {above.max():.3g} above the exact optimum {net.exact}")


def _contains(case: CertifierCase) -> None:
    for name in NETS:
        net, graph, x, _ = captured(name)
        c = torch.cat([torch.eye(3), -torch.eye(3)]).double()
        for norm in case.norms:
            ball = balls(norm, len(x))
            with torch.no_grad():
                values = net(points(ball, x, 300).flatten(0, 1)).view(300, len(x), 3)
            least = torch.einsum("kc,snc->snk", c, values).amin(0)
            above = (case.small.bounds(graph, ball, x, c).detach() - least).amax()
            require(above <= 1e-12, f"{name}, {norm}: a sampled output lies {float(above):.3g} outside its bounds")


def _no_witness(case: CertifierCase) -> None:
    for name in NETS:
        net, graph, x, y = captured(name)
        for norm in case.norms:
            _hunt(case, net, graph, x, y, norm)


def _hunt(case: CertifierCase, net: nn.Module, graph: Graph, x: Tensor, y: Tensor, norm: Norm) -> None:
    """Random points and a descent inside the balls that are certified."""
    whole = norm is Norm.L0
    start, top = (2.0, float(x[0].numel())) if whole else (RADII[norm] / 4, 4 * RADII[norm])
    radius = case.small.radius(graph, x, y, balls(norm, len(x), start), top)
    rows = (radius >= 0).nonzero().squeeze(-1)
    if not len(rows):
        return
    ball, around = balls(norm, len(rows)).with_eps(radius[rows]), x[rows]
    tried = points(ball, around, _POINTS // len(rows)).flatten(0, 1)
    tried = torch.cat([tried, descend(net, ball, around, y[rows])])
    with torch.no_grad():
        wrong = net(tried).argmax(1) != y[rows].repeat(len(tried) // len(rows))
    require(not wrong.any(), f"{norm}: {int(wrong.sum())} witnesses inside certified balls")


def _rounding(case: CertifierCase) -> None:
    """The margin is 0.5 - x_0; one sum with a huge bias hides x_0 from floating point, and the next takes it away."""
    if Norm.LINF not in case.norms:
        return
    x, y = torch.tensor([[0.25, 0.5]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    ball = balls(Norm.LINF, 1, 0.5)
    for huge, where in ((2.0**30, "float32"), (2.0**60, "float64")):
        hidden = chain(([[1.0, 0.0], [0.0, 0.0]], [huge, huge]), "relu", ([[-1.0, 1.0], [0.0, 0.0]], [0.5, 0.0]))
        scaled = chain(([[huge, huge], [0.0, huge]], [0.0, 0.0]), ([[-1 / huge, 1 / huge], [0.0, 0.0]], [0.5, 0.0]))
        biased = chain(([[-1.0, 0.0], [0.0, 0.0]], [huge + 0.5 if huge < 2**50 else huge, huge]))
        for graph in (hidden, scaled) if huge > 2**50 else (hidden, scaled, biased):
            proved = case.small.certify(graph, x, y, ball)
            require(not proved.any(), f"certified although x_0 = 0.75 breaks it: rounding in {where} hid the witness")


def _unsupported(case: CertifierCase) -> None:
    identity, name = (torch.eye(3), torch.zeros(3)), "quantum_gate"
    graph, ball = chain(identity, name, identity), balls(case.norms[0], 1)
    x, y = torch.rand(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    calls: dict[str, Callable[[], object]] = {
        "certify": lambda: case.small.certify(graph, x, y, ball),
        "bounds": lambda: case.small.bounds(graph, ball, x, torch.eye(3).double()),
        "certificates": lambda: case.small.certificates(graph, x, y, ball, 0.2),
    }
    for call, made in calls.items():
        try:
            made()
        except UnsupportedError as error:
            require(name in str(error), f"{call}: the refusal of '{name}' does not name it: {error}")
            continue
        raise ContractError(f"{call}: '{name}' has no bound and must be refused by name, not guessed")


# not looser than can be asked


def _point(case: CertifierCase) -> None:
    for name in NETS:
        net, graph, x, _ = captured(name)
        with torch.no_grad():
            value = net(x)
        for norm in case.norms:
            low = case.small.bounds(graph, balls(norm, len(x), 0.0), x, torch.eye(3)).detach()
            require((low <= value + 1e-12).all(), f"{name}, {norm}: at eps = 0 a bound exceeds f(x)")
            near = torch.allclose(low, value, rtol=0, atol=1e-6)
            require(near, f"{name}, {norm}: at eps = 0 the bound must be f(x)")


def _tighter(case: CertifierCase) -> None:
    for name in NETS:
        _, graph, x, y = captured(name)
        for norm in case.norms:
            sizes = (1.0, 2.0, 4.0) if norm is Norm.L0 else (RADII[norm] / 16, RADII[norm] / 4, RADII[norm])
            lows = [case.small.margins(graph, x, y, balls(norm, len(x), e)) for e in sizes]
            for tight, wide in pairwise(lows):
                require((tight >= wide - 1e-9).all(), f"{name}, {norm}: bounds do not tighten as eps shrinks: {sizes}")
            strict = bool((lows[0] > lows[-1]).any())
            require(strict, f"{name}, {norm}: bounds do not depend on eps")


def _affine(case: CertifierCase) -> None:
    """Against the exact distance to the boundary: below it always, and at it, since nothing is relaxed."""
    model = affine_digits()
    x, y = digits(8)
    edges = torch.zeros(()).double(), torch.ones(()).double()
    graph = chain((model.weight.detach(), model.bias.detach()))
    flat = x.flatten(1)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    flat, y = flat[right], y[right]
    for norm in case.norms:
        best = affine_optimum(norm, model.weight.detach(), model.bias.detach(), flat, y, *edges).distance
        top = float(2 * best.max())
        ball = LpBall(
            norm=norm,
            eps=best / 3 if norm is not Norm.L0 else torch.ones_like(best),
            lower=edges[0],
            upper=edges[1],
        )
        radius = case.small.radius(graph, flat, y, ball, top, _BISECTION)
        require(radius.isfinite().all(), f"{norm}: a linear model has no radius at all: {radius}")
        # l0: with one feature less than the least witness changes, nothing breaks
        most = best - 1 if norm is Norm.L0 else best * (1 + 1e-9)
        slack = 0.0 if norm is Norm.L0 else 1.01 * _BISECTION * top + 2e-3 * best
        require((radius <= most).all(), f"{norm}: radius {radius} beyond the exact distance {best}")
        require((radius >= most - slack).all(), f"{norm}: radius {radius}, but {most} can be proved")


GRAPH_CHECKS: dict[str, Callable[[CertifierCase], None]] = {
    "optimum": _optimum,
    "contains": _contains,
    "no-witness": _no_witness,
    "rounding": _rounding,
    "unsupported": _unsupported,
    "point": _point,
    "tighter": _tighter,
    "affine": _affine,
}
