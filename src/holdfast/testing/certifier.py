"""The contract of a certifier, as checks that anyone can run on a method of their own.

    from holdfast.testing import check_certifier
    check_certifier("crown")            # a registered name, a class or an instance
    check_certifier(MyCertifier, only=["optimum", "rounding"])

A check is a function of a case; it raises `ContractError` with what is wrong. Which checks apply depends on the door: a
`GraphCertifier` must be sound, an `OracleCertifier` must keep to the guarantee of its card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.certifiers.graph_certifier import GraphCertifier, margin_rows
from holdfast.certifiers.oracle_certifier import OracleCertifier
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.core.verdict import Certificate
from holdfast.graph import trace
from holdfast.graph.model import Graph
from holdfast.numerics.affine import affine_optimum
from holdfast.numerics.distance import dual_norm
from holdfast.testing._certifier_case import (
    NETS,
    RADII,
    CertifierCase,
    balls,
    captured,
    chain,
    descend,
    half_plane,
    least_margins,
    points,
)
from holdfast.testing._manners import declared_parameters, leaving_alone
from holdfast.testing.contract import ContractError, require, run_checks
from holdfast.testing.toys import affine_digits, digits

__all__ = ["CERTIFIER_CHECKS", "check_certifier"]

_STRENGTH = (Guarantee.ESTIMATE, Guarantee.PROBABILISTIC, Guarantee.SOUND)
_POINTS = 10_000
_SOLVER = 1e-7  # HiGHS' own tolerance
_BISECTION = 2e-3


# what it must say of itself


def _card(case: CertifierCase) -> None:
    card = case.card
    require(card.title and card.paper and card.summary and card.section, "card: title, paper or summary missing")
    require(card.norms and card.guarantee is not None, "card: norms or guarantee missing")
    require(card.failure_modes, "card: a certifier says when it is loose or misleads")
    declared_parameters(case.whole)
    if isinstance(case.whole, GraphCertifier):
        require(card.guarantee is Guarantee.SOUND, "card: bounds on a graph are sound or they are nothing")


def _norms(case: CertifierCase) -> None:
    for norm in set(Norm) - set(case.norms):
        try:
            if isinstance(case.whole, GraphCertifier):
                _, graph, x, y = captured("dense")
                case.small.certify(graph, x, y, balls(norm, len(x)))
            else:
                model, x, y, *_ = half_plane()
                case.ask(model, x, y, norm, radius_max=1.0)
        except UnsupportedError:
            continue
        raise ContractError(f"it must refuse {norm}, which is not on its card, in words")


def _guarantee(case: CertifierCase) -> None:
    for found in _some_certificates(case):
        for c in found:
            if c is None:
                continue
            allowed = _STRENGTH.index(case.card.guarantee or Guarantee.ESTIMATE)
            require(
                _STRENGTH.index(c.guarantee) <= allowed,
                f"a certificate says {c.guarantee}, its card says no such thing",
            )
            require(c.radius >= 0 and np.isfinite(c.radius), f"a certificate of radius {c.radius}")
            require(c.radius <= 0.2, f"radius {c.radius} is beyond radius_max, 0.2")
            require(c.method, "a certificate names its method")
            require(c.guarantee is not Guarantee.SOUND or c.arithmetic, "a sound certificate names its arithmetic")
            chance = c.alpha is not None and 0 < c.alpha < 1
            require(c.guarantee is not Guarantee.PROBABILISTIC or chance, "a probabilistic certificate names its alpha")


def _some_certificates(case: CertifierCase) -> list[list[Certificate | None]]:
    if isinstance(case.whole, GraphCertifier):
        _, graph, x, y = captured("dense")
        return [case.small.certificates(graph, x, y, balls(case.norms[0], len(x), 0.01), 0.2)]
    model, x, y, *_ = half_plane()
    return [case.ask(model, x, y, norm, radius_max=0.2) for norm in case.norms]


# sound: never above the truth


def _optimum(case: CertifierCase) -> None:
    c = margin_rows(torch.zeros(1, dtype=torch.int64), 3)
    for net in least_margins():
        if Norm.LINF not in case.norms:
            return
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
    identity = (torch.eye(3), torch.zeros(3))
    x, y = torch.rand(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    for name in ("quantum_gate",):
        graph = chain(identity, name, identity)
        for call in ("certify", "bounds", "certificates"):
            more: tuple[Any, ...] = {
                "certify": (x, y, balls(case.norms[0], 1)),
                "bounds": (balls(case.norms[0], 1), x, torch.eye(3).double()),
                "certificates": (x, y, balls(case.norms[0], 1), 0.2),
            }[call]
            try:
                getattr(case.small, call)(graph, *more)
            except UnsupportedError as error:
                require(name in str(error), f"{call}: the refusal of '{name}' does not name it: {error}")
                continue
            raise ContractError(f"{call}: '{name}' has no bound and must be refused by name, not guessed")


def _not_a_number(case: CertifierCase) -> None:
    for value in (float("nan"), float("inf")):
        if isinstance(case.whole, GraphCertifier):
            _nothing_of(case, value)
        else:
            model, x, y, *_ = half_plane()
            sick = nn.Linear(x.shape[1], 2).eval()
            sick.load_state_dict({"weight": model.weight, "bias": torch.tensor([value, 0.0])})
            sick.requires_grad_(False)
            found = case.ask(sick, x, y * 0, case.norms[0], radius_max=1.0) if value != value else []
            require(not any(found), f"a model that answers {value} is certified")


def _nothing_of(case: CertifierCase, value: float) -> None:
    w1, w2 = np.eye(3) * 2, np.eye(3)
    x, y = torch.tensor([[0.9, 0.1, 0.1]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    sound = chain((w1, np.zeros(3)), "relu", (w2, np.zeros(3)))
    require(case.small.certify(sound, x, y, balls(case.norms[0], 1, 0.0)).all(), "not even a point is certified")
    for layer, k in ((1, "weight"), (1, "bias"), (3, "weight"), (3, "bias")):
        graph = chain((w1.copy(), np.zeros(3)), "relu", (w2.copy(), np.zeros(3)))
        graph.nodes[layer].tensors[k].view(-1)[-1] = value  # class 2 alone is sick
        for eps in (0.0, 0.05):
            ball = balls(case.norms[0], 1, eps)
            try:
                proved = bool(case.small.certify(graph, x, y, ball).any())
                found = case.small.certificates(graph, x, y, ball, 0.2)
            except UnsupportedError:
                proved, found = False, [None]  # refused by name, which is as good
            require(not proved, f"a {k} of {value} in layer {layer} is certified at eps {eps}")
            require(found == [None], f"a {k} of {value} in layer {layer} gets {found[0]}")


# sound: not looser than can be asked


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


# what must not matter, and what must not be touched


def _already_wrong(case: CertifierCase) -> None:
    if isinstance(case.whole, GraphCertifier):
        _, graph, x, y = captured("dense")
        ball = balls(case.norms[0], len(x), 0.0)
        found = case.small.certificates(graph, x, (y + 1) % 3, ball, 0.2)
        require(not any(found), "a misclassified sample is certified")
        return
    model, x, y, *_ = half_plane()
    for norm in case.norms:
        require(not any(case.ask(model, x, 1 - y, norm)), f"{norm}: a misclassified sample is certified")


def _same_again(case: CertifierCase) -> None:
    if isinstance(case.whole, GraphCertifier):
        for name in NETS:
            _, graph, x, y = captured(name)
            one, two = (case.small.margins(graph, x, y, balls(case.norms[0], len(x))) for _ in range(2))
            require(torch.equal(one, two), f"{name}: asked twice, it gives two bounds")
        return
    model, x, y, *_ = half_plane()
    for norm in case.norms:
        one, two = (case.ask(model, x, y, norm) for _ in range(2))
        require(one == two, f"{norm}: asked twice with one seed, it gives two certificates")


def _batch(case: CertifierCase) -> None:
    if isinstance(case.whole, GraphCertifier):
        optimised = hasattr(case.whole, "iterations")
        for name in NETS:
            _, graph, x, y = captured(name)
            for norm in case.norms:
                ball = balls(norm, len(x))
                whole = case.small.margins(graph, x, y, ball)
                single = replace(case.small, batch=1).margins(graph, x, y, ball)
                order = torch.arange(len(x)).flip(0)
                moved = case.small.margins(graph, x[order], y[order], ball.select(order))[order]
                for other, what in ((single, "alone"), (moved, "in another order")):
                    # where subgradients tie, rounding decides which way an optimised bound goes
                    near = torch.allclose(whole, other, rtol=0, atol=0.05 if optimised else 1e-9)
                    require(near, f"{name}, {norm}: samples {what} have other bounds")
            none = case.small.certify(graph, x[:0], y[:0], balls(case.norms[0], 0))
            require(len(none) == 0, "no samples, but an answer")
        return
    model, x, y, *_ = half_plane()
    ids = [10 + 7 * i for i in range(len(x))]
    for norm in case.norms:
        whole = case.ask(model, x, y, norm, ids=ids)
        single = [case.ask(model, x[i : i + 1], y[i : i + 1], norm, ids=ids[i : i + 1])[0] for i in range(len(x))]
        moved = case.ask(model, x.flip(0), y.flip(0), norm, ids=ids[::-1])[::-1]
        parts = case.ask(model, x, y, norm, ids=ids, batch=7)
        for other, what in ((single, "alone"), (moved, "in another order"), (parts, "in batches of 7 rows")):
            a, b = (np.array([np.nan if c is None else c.radius for c in found]) for found in (whole, other))
            near = np.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
            require(near, f"{norm}: samples {what} get {b}, together {a}: key the draws by `ids` and `seed`")


def _untouched(case: CertifierCase) -> None:
    if isinstance(case.whole, GraphCertifier):
        net, _, x, y = captured("dense")
        graph, ball = trace(net, x[:1]), balls(case.norms[0], len(x))
        held: list[Tensor] = [t for node in graph.nodes for t in node.tensors.values()]
        held += [x, y, ball.eps, ball.lower, ball.upper]

        def work() -> None:
            case.small.certificates(graph, x, y, ball, 0.2)
    else:
        net, x, y, *_ = half_plane()
        held = [x, y]

        def work() -> None:
            case.ask(net, x, y, case.norms[0])

    with leaving_alone(net, *held):
        work()


# by asking the model


def _linear(case: CertifierCase) -> None:
    """On a half-plane g = f and the radius is known; an estimate must come within 5 %, a chance must stay below."""
    model, x, y, margins, direction = half_plane()
    for norm in case.norms:
        exact = margins / dual_norm(norm, direction.expand_as(x))
        found = case.ask(model, x, y, norm, radius_max=float(2 * exact.max()))
        require(any(found), f"{norm}: nothing is certified on a linear model")
        for c, e in zip(found, map(float, exact.numpy()), strict=True):
            if c is None:
                require(case.card.guarantee is not Guarantee.ESTIMATE, f"{norm}: no estimate where {e} is exact")
            elif case.card.guarantee is Guarantee.ESTIMATE:
                require(abs(c.radius - e) <= 0.05 * e, f"{norm}: estimates {c.radius} on a linear model, exactly {e}")
            else:
                require(c.radius < e * (1 + 1e-6), f"{norm}: radius {c.radius} beyond the true one, {e}")


def _abstains(case: CertifierCase) -> None:
    if case.card.guarantee is Guarantee.ESTIMATE:
        return
    model, x, y, margins, direction = half_plane()
    toward = (direction / direction.square().sum()).float()
    sign = torch.where(y == 0, 1.0, -1.0)
    edge = x - ((margins.float() - 1e-5) * sign).unsqueeze(1) * toward
    with torch.no_grad():
        still = model(edge).argmax(1) == y
    found = case.ask(model, edge[still], y[still], case.norms[0])
    require(still.any() and not any(found), "beside the boundary it must abstain: the draws prove nothing there")


def _seeds(case: CertifierCase) -> None:
    if case.card.guarantee is not Guarantee.PROBABILISTIC:
        return
    model, x, y, *_ = half_plane()
    one, two = (case.ask(model, x, y, case.norms[0], seed=s) for s in (0, 1))
    require(one != two, "another seed gives the same draws: key them by the seed")


_BOTH: dict[str, Callable[[CertifierCase], None]] = {
    "card": _card,
    "norms": _norms,
    "guarantee": _guarantee,
    "not-a-number": _not_a_number,
    "already-wrong": _already_wrong,
    "same-again": _same_again,
    "batch": _batch,
    "untouched": _untouched,
}
_GRAPH: dict[str, Callable[[CertifierCase], None]] = {
    "optimum": _optimum,
    "contains": _contains,
    "no-witness": _no_witness,
    "rounding": _rounding,
    "unsupported": _unsupported,
    "point": _point,
    "tighter": _tighter,
    "affine": _affine,
}
_ORACLE: dict[str, Callable[[CertifierCase], None]] = {"linear": _linear, "abstains": _abstains, "seeds": _seeds}

CERTIFIER_CHECKS = (*_BOTH, *_GRAPH, *_ORACLE)
"""Names of the checks, in the order in which they run; those of the other door are passed over."""


def check_certifier(
    certifier: str | type[GraphCertifier | OracleCertifier] | GraphCertifier | OracleCertifier,
    *,
    only: Iterable[str] | None = None,
) -> None:
    """Runs the contract of a certifier; each check is made, and all that fail are told together.

    Args:
        certifier: a registered name, a class that needs no arguments, or an instance.
        only: names of `CERTIFIER_CHECKS`; all by default.

    Raises:
        ContractError: what is wrong, check by check.
        UsageError: no such method or check, or the method is no certifier.

    Example:
        >>> check_certifier("crown", only=["card", "rounding"])
    """
    given: Any = method(certifier) if isinstance(certifier, str) else certifier
    whole = given() if isinstance(given, type) else given
    if not isinstance(whole, GraphCertifier | OracleCertifier):
        raise UsageError(f"{type(whole).__name__} is neither a GraphCertifier nor an OracleCertifier")
    case, mine = CertifierCase.of(whole), _BOTH | (_GRAPH if isinstance(whole, GraphCertifier) else _ORACLE)
    checks = {name: mine.get(name, _nothing) for name in CERTIFIER_CHECKS}
    run_checks(f"{case.card.title} breaks the contract of a certifier", checks, case, only)


def _nothing(case: CertifierCase) -> None:
    """A check of the other door."""
