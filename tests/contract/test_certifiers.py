"""Every registered certifier under the public contract."""

from dataclasses import dataclass, replace

import pytest
import torch

from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.certifiers.estimates.clever import Clever
from holdfast.certifiers.oracle_certifier import ModuleAsk
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Region
from holdfast.certifiers.propagation.specification import specification
from holdfast.certifiers.smoothing.cohen import Cohen
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.threat import Guarantee, Norm
from holdfast.core.verdict import Certificate
from holdfast.testing import ContractError, check_certifier, parametrize_with_checks

# pairs that take ten seconds and more; make test-all runs them
_DEAR = dict.fromkeys(("no-witness", "batch", "tighter"), ("neuron_splitting",))


@parametrize_with_checks("certifier", slow=_DEAR)
def test_a_certifier_keeps_its_contract(method, check):
    check(method)


def test_what_is_unknown_is_refused():
    with pytest.raises(UsageError, match="known: card, norms"):
        check_certifier("crown", only=["speed"])
    with pytest.raises(UsageError, match="neither a GraphCertifier nor"):
        check_certifier("pgd")


def test_all_that_fails_is_told_together():
    with pytest.raises(ContractError, match=r"(?s)optimum: .*contains: "):
        check_certifier(Scaled, only=["card", "optimum", "contains"])


# the suite itself must notice


@dataclass(frozen=True)
class Scaled(CROWN):
    """Scales the bounds up."""

    def bounds(self, graph, region, x, c, d=None):
        low = super().bounds(graph, region, x, c, d)
        return low + 0.2 * low.abs()


@dataclass(frozen=True)
class Shifted(CROWN):
    """Proves a smaller ball than it says."""

    def bounds(self, graph, region, x, c, d=None):
        return super().bounds(graph, region.with_eps(region.eps * 0.4), x, c, d)


@dataclass(frozen=True)
class Single(IBP):
    """Computes in float32, and pays for no rounding."""

    def bounds(self, graph, region, x, c, d=None):
        found = Propagation(graph.to(torch.float32), Region(region, x, torch.float32), sound=False)
        found.run(refine=found.affine_in_input, every=True)
        return specification(found, c, d, at_boxes=True).double()


@dataclass(frozen=True)
class Unpaid(IBP):
    """Computes in float64, and pays for no rounding."""

    def bounds(self, graph, region, x, c, d=None):
        found = Propagation(graph.to(torch.float64), Region(region, x), sound=False)
        found.run(refine=found.affine_in_input, every=True)
        return specification(found, c, d, at_boxes=True)


@dataclass(frozen=True)
class Presumes(CROWN):
    """Takes what is refused for proved."""

    def certify(self, graph, x, y, ball):
        try:
            return super().certify(graph, x, y, ball)
        except UnsupportedError:
            return torch.ones(len(x), dtype=torch.bool)


@dataclass(frozen=True)
class Guesses(CROWN):
    """Gives a bound where it has none."""

    def bounds(self, graph, region, x, c, d=None):
        try:
            return super().bounds(graph, region, x, c, d)
        except UnsupportedError:
            return torch.ones(len(x), c.shape[-2], dtype=torch.float64)


@dataclass(frozen=True)
class Silent(CROWN):
    """Refuses, and does not say what."""

    def bounds(self, graph, region, x, c, d=None):
        try:
            return super().bounds(graph, region, x, c, d)
        except UnsupportedError as error:
            raise UnsupportedError("no") from error


@dataclass(frozen=True)
class Noisy(CROWN):
    """Draws from the global generator."""

    def bounds(self, graph, region, x, c, d=None):
        low = super().bounds(graph, region, x, c, d)
        return low - torch.rand_like(low) * 1e-7


@dataclass(frozen=True)
class Coupled(CROWN):
    """Lets one sample's bound depend on the others."""

    def bounds(self, graph, region, x, c, d=None):
        low = super().bounds(graph, region, x, c, d)
        return low - 0.01 * x.mean()


@dataclass(frozen=True)
class Deaf(CROWN):
    """Has one bound for every budget."""

    def bounds(self, graph, region, x, c, d=None):
        return super().bounds(graph, region.with_eps(0.9), x, c, d)


@dataclass(frozen=True)
class Slack(CROWN):
    """Sound, and looser than a linear model deserves."""

    def bounds(self, graph, region, x, c, d=None):
        return super().bounds(graph, region.with_eps(region.eps * 1.1), x, c, d)


@dataclass(frozen=True)
class Writes(CROWN):
    """Changes the model's own tensors."""

    def bounds(self, graph, region, x, c, d=None):
        graph.nodes[1].tensors["weight"].data += 1e-9
        return super().bounds(graph, region, x, c, d)


@dataclass(frozen=True)
class Anything(CROWN):
    """Serves norms that its card lacks."""

    card = replace(CROWN.card, norms=(Norm.LINF,))

    def certify(self, graph, x, y, ball):
        return CROWN().certify(graph, x, y, ball)


@dataclass(frozen=True)
class Undeclared(CROWN):
    """Has a parameter that nobody explains."""

    secret: int = 3


def _change(found, **new):
    return [None if c is None else replace(c, **{k: f(c) for k, f in new.items()}) for c in found]


@dataclass(frozen=True)
class Boasts(Clever):
    """Calls its estimate a proof."""

    def _certify(self, ask, request):
        return _change(super()._certify(ask, request), guarantee=lambda c: Guarantee.SOUND)


@dataclass(frozen=True)
class NoAlpha(Cohen):
    """Does not say how often it is wrong."""

    def _certify(self, ask, request):
        return _change(super()._certify(ask, request), alpha=lambda c: None)


@dataclass(frozen=True)
class Doubles(Cohen):
    """Promises twice the radius."""

    def _certify(self, ask, request):
        return _change(super()._certify(ask, request), radius=lambda c: 2 * c.radius)


@dataclass(frozen=True)
class Halves(Clever):
    """Estimates half of it."""

    def _certify(self, ask, request):
        return _change(super()._certify(ask, request), radius=lambda c: c.radius / 2)


@dataclass(frozen=True)
class Positions(Cohen):
    """Keys its draws by the place in the batch."""

    def _certify(self, ask, request):
        return super()._certify(ask, replace(request, ids=range(len(request.x))))


@dataclass(frozen=True)
class Unseeded(Cohen):
    """Always draws the same."""

    def _certify(self, ask, request):
        return super()._certify(ask, replace(request, seed=0))


@dataclass(frozen=True)
class Reseeds(Cohen):
    """Draws what the global generator says."""

    def _certify(self, ask, request):
        return super()._certify(ask, replace(request, seed=int(torch.randint(1 << 30, ()))))


@dataclass(frozen=True)
class Predicts(Cohen):
    """Certifies whatever the model says."""

    def _certify(self, ask, request):
        return super()._certify(ask, replace(request, y=ask.logits(request.x).argmax(1)))


class Lenient(ModuleAsk):
    """Reads infinity as a large number."""

    def logits(self, x):
        return super().logits(x).nan_to_num(nan=torch.nan)


@dataclass(frozen=True)
class Forgives(Cohen):
    """Counts votes of answers that decide nothing."""

    def _certify(self, ask, request):
        return super()._certify(Lenient(ask.module, ask.batch), request)


@dataclass(frozen=True)
class Bold(Cohen):
    """Takes the share of the votes for its bound: never abstains."""

    def _certify(self, ask, request):
        found = super()._certify(ask, request)
        return [
            c or Certificate(radius=1e-3, guarantee=Guarantee.PROBABILISTIC, method="bold", arithmetic="", alpha=0.001)
            for c in found
        ]


@pytest.mark.parametrize(
    ("certifier", "check", "message"),
    [
        (Scaled, "optimum", "above the exact optimum"),
        (Scaled, "contains", "outside its bounds"),
        (Scaled, "point", "exceeds"),
        (Shifted, "contains", "outside its bounds"),
        (Shifted, "no-witness", "witnesses inside certified balls"),
        (Shifted, "affine", "beyond the exact distance"),
        (Single, "rounding", "rounding in float32"),
        (Unpaid, "rounding", "rounding in float64"),
        (Presumes, "not-a-number", "is certified at eps"),
        (Guesses, "unsupported", "not guessed"),
        (Silent, "unsupported", "does not name it"),
        (Noisy, "same-again", "two bounds"),
        (Noisy, "untouched", "global random state"),
        (Coupled, "batch", "alone have other bounds"),
        (Deaf, "tighter", "do not depend on eps"),
        (Deaf, "point", "must be f"),
        (Slack, "affine", "can be proved"),
        (Writes, "untouched", "was changed in place"),
        (Anything, "norms", "not on its card"),
        (Undeclared, "card", "secret"),
        (Boasts, "guarantee", "its card says no such thing"),
        (NoAlpha, "guarantee", "names its alpha"),
        (Doubles, "linear", "beyond the true one"),
        (Halves, "linear", "estimates"),
        (Positions, "batch", "key the draws"),
        (Unseeded, "seeds", "key them by the seed"),
        (Reseeds, "same-again", "two certificates"),
        (Forgives, "not-a-number", "inf.* is certified"),
        (Bold, "abstains", "must abstain"),
        (Predicts, "already-wrong", "misclassified sample is certified"),
    ],
)
def test_a_breach_is_noticed(certifier, check, message):
    with pytest.raises(ContractError, match=message):
        check_certifier(certifier, only=[check])
