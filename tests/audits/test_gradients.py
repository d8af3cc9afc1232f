"""A network that hides its gradients is broken about as often as the one inside it, by the default suite."""

from functools import cache

import pytest
import torch
from torch import nn

from holdfast.audits.plan import Plan
from holdfast.audits.run import audit

N = 20


class Hiding(nn.Module):
    """A network behind something that an attacker's gradients do not pass."""

    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x):
        return self.how(self.inner, x)


def no_grad(inner, x):
    with torch.no_grad():
        return inner(x)


def undefined(inner, x):
    return inner(x) + (0 * x).flatten(1).sum(1, keepdim=True).sqrt()  # 0, with a gradient of 0/0


def rounded_input(inner, x):
    return inner((x * 64).round() / 64)


def rounded_scores(inner, x):
    return (inner(x) * 8).round() / 8


def saturated(inner, x):
    return (1e6 * inner(x)).softmax(1)


def winner_alone(inner, x):
    return nn.functional.one_hot(inner(x).argmax(1), 10).float()


def on_some_inputs(inner, x):
    hide = (x.detach().flatten(1).sum(1, keepdim=True) * 7).floor() % 2 == 0
    return torch.where(hide, no_grad(inner, x), inner(x))


class _Scrambled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.sin(1e4 * g) * g.abs().mean()


def scrambled(inner, x):
    return inner(_Scrambled.apply(x))


@pytest.fixture(scope="module")
def broken(trained, tmp_path_factory):
    """Audits the network behind something once; gives the document."""
    _, data, model = trained

    @cache
    def of(how):
        plan = Plan.of(data=str(data), samples=N, norm="linf", eps="1/16", certify="none", queries=1000, seed=1)
        module = model if how is None else Hiding(model, how).eval()
        return audit(plan, tmp_path_factory.mktemp("hidden") / "run", model=module)

    return of


@pytest.fixture(scope="module")
def plain(broken):
    return broken(None)


def _attacks(document):
    return {a.name for a in document.suite.attacks}


def test_an_honest_network_needs_no_substitute(plain):
    assert 0.2 < plain.headline.empirical_robust_accuracy < 0.9
    assert not any(name.endswith("_blind") for name in _attacks(plain))
    assert "gradients.hindered" not in {f.code for f in plain.findings}


@pytest.mark.parametrize(
    "how",
    [
        *(no_grad, rounded_scores, on_some_inputs),
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in (undefined, rounded_input, saturated, winner_alone, scrambled)
        ),
    ],
    ids=lambda how: how.__name__,
)
def test_hiding_the_gradient_hides_little(broken, plain, how):
    document = broken(how)
    gap = document.headline.empirical_robust_accuracy - plain.headline.empirical_robust_accuracy
    assert gap <= 2 / N
    assert any(name.endswith("_blind") for name in _attacks(document))
    assert "gradients.hindered" in {f.code for f in document.findings}


def test_the_scope_names_what_ran_and_on_how_many(broken, plain):
    for document in (plain, broken(no_grad)):
        scope = next(f.message for f in document.findings if f.code == "report.scope")
        for attack in document.suite.attacks:
            assert attack.samples > 0
            assert f"{attack.name} (on {attack.samples})" in scope
        assert scope.count("(on ") == len(document.suite.attacks)
        assert {m.title for m in document.methods} == {a.title for a in document.suite.attacks}
    assert "square_short" not in scope  # of the network whose gradients are dead
