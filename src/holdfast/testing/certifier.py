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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.certifiers.graph_certifier import GraphCertifier
from holdfast.certifiers.oracle_certifier import OracleCertifier
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.registry import method
from holdfast.core.threat import Guarantee, Norm
from holdfast.core.verdict import Certificate
from holdfast.graph import trace
from holdfast.testing._certifier_case import (
    NETS,
    CertifierCase,
    balls,
    captured,
    chain,
    half_plane,
)
from holdfast.testing._graph_certifier_checks import GRAPH_CHECKS
from holdfast.testing._manners import declared_parameters, leaving_alone
from holdfast.testing._oracle_certifier_checks import ORACLE_CHECKS
from holdfast.testing.contract import ContractError, require, run_checks

__all__ = ["CERTIFIER_CHECKS", "check_certifier"]

_STRENGTH = (Guarantee.ESTIMATE, Guarantee.PROBABILISTIC, Guarantee.SOUND)


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


def _not_a_number(case: CertifierCase) -> None:
    if isinstance(case.whole, GraphCertifier):
        for value in (np.nan, np.inf):
            _nothing_of(case, value)
        return
    model, x, y, *_ = half_plane()
    for bias in ((np.nan, 0.0), (np.inf, 0.0), (-np.inf, -np.inf)):  # the first of the largest is class 0
        sick = nn.Linear(x.shape[1], 2).eval()
        sick.load_state_dict({"weight": model.weight, "bias": torch.tensor(bias)})
        sick.requires_grad_(False)
        found = case.ask(sick, x, y * 0, case.norms[0], radius_max=1.0)
        require(not any(found), f"a model that answers {bias} is certified")


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

CERTIFIER_CHECKS = (*_BOTH, *GRAPH_CHECKS, *ORACLE_CHECKS)
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
    case, mine = CertifierCase.of(whole), _BOTH | (GRAPH_CHECKS if isinstance(whole, GraphCertifier) else ORACLE_CHECKS)
    checks = {name: mine.get(name, _nothing) for name in CERTIFIER_CHECKS}
    run_checks(f"{case.card.title} breaks the contract of a certifier", checks, case, only)


def _nothing(case: CertifierCase) -> None:
    """A check of the other door."""
