"""Expectation over transformation: the mean gradient, the vote, and random transforms as models."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from holdfast.attacks.engine import Run, run
from holdfast.attacks.evasion.white.eot_pgd import EotPGD
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.archive import Keep
from holdfast.judge.referee import Referee, Ruling
from holdfast.models.fingerprint import fingerprint
from holdfast.testing.toys import digits, net
from holdfast.transforms.colour import BrightnessContrast
from holdfast.transforms.geometry import RotationTranslation, Zoom
from holdfast.transforms.random_transform import RandomTransform
from holdfast.transforms.transform import Composition


def problem_of(n=12, eps=0.12, norm=Norm.LINF):
    x, y = digits(n)
    return Problem.of(x, y, LpBall.uniform(norm, eps, n, dtype=torch.float64))


def family():
    return Composition(RotationTranslation((1, 8, 8), 20.0, 0.1), Zoom(0.1), BrightnessContrast(0.1, 0.2))


class Noisy(nn.Module):
    """A linear model whose weights are drawn anew for each row: the gradient of a margin has a known variance."""

    def forward(self, x):
        z = x.flatten(1)
        w = 1 + torch.randn_like(z)
        return torch.stack([torch.zeros(len(z)).to(z), (w * z).sum(1)], 1)


class TestGradient:
    @pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
    @pytest.mark.parametrize("loss", ["ce", "margin"])
    def test_one_draw_of_a_model_without_chance_is_pgd(self, norm, loss):
        problem = problem_of(eps={Norm.L1: 4.0, Norm.L2: 0.8, Norm.LINF: 0.12}[norm], norm=norm)
        same = {"steps": 9, "loss": loss, "random_start": False}
        ours, theirs = (run(a, problem, net(), keep=Keep.NEAREST) for a in (EotPGD(draws=1, **same), PGD(**same)))
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.ledger.forwards, theirs.ledger.forwards)

    def test_many_draws_of_a_model_without_chance_are_pgd_at_their_price(self):
        problem, same = problem_of(), {"steps": 5, "loss": "margin", "random_start": False}
        ours, theirs = (run(a, problem, net(), keep=Keep.NEAREST) for a in (EotPGD(draws=4, **same), PGD(**same)))
        assert torch.allclose(ours.x, theirs.x, atol=1e-9)
        assert torch.equal(ours.ledger.forwards, 4 * theirs.ledger.forwards)

    def test_the_mean_gradient_is_unbiased_and_its_variance_falls_as_1_over_draws(self):
        n, d = 400, 6
        x = torch.full((n, d), 0.5).double()
        problem = Problem.of(x, torch.zeros(n, dtype=torch.int64), LpBall.uniform(Norm.L2, 1.0, n, dtype=torch.float64))
        spread = {}
        for draws in (1, 4, 16):
            attack = EotPGD(draws=draws, random_start=False)
            job = Run(attack, problem, Noisy(), keep=Keep.NEAREST)
            with torch.random.fork_rng():
                torch.manual_seed(3)
                ask = job.oracle.on(job.problem)
                state = attack.start(ask)
                grad, _ = attack.ascent(ask, state)
            assert torch.allclose(grad.mean(), torch.ones(()).double(), atol=5 / (n * d * draws) ** 0.5)
            spread[draws] = float(grad.var())
        assert spread[1] == pytest.approx(1.0, rel=0.1)
        assert spread[4] == pytest.approx(spread[1] / 4, rel=0.15)
        assert spread[16] == pytest.approx(spread[1] / 16, rel=0.15)

    def test_draws_below_1_are_refused(self):
        with pytest.raises(UsageError, match="draws"):
            run(EotPGD(draws=0), problem_of(), net())


class Coin(nn.Module):
    """Wrong with a probability of 0.2, whatever it is asked."""

    def forward(self, x):
        wrong = torch.rand(len(x)) < 0.2
        return torch.stack([1 - wrong.double(), wrong.double()], 1) + 0 * x.flatten(1)[:, :1]


class TestVote:
    def test_a_lucky_draw_ends_nothing(self):
        n = 60
        x = torch.full((n, 3), 0.5).double()
        problem = Problem.of(
            x, torch.zeros(n, dtype=torch.int64), LpBall.uniform(Norm.LINF, 0.1, n, dtype=torch.float64)
        )
        lucky = run(PGD(steps=10), problem, Coin())
        assert int(lucky.found.sum()) > n // 2  # by one draw of eleven
        voted = run(EotPGD(steps=10, draws=25), problem, Coin())
        assert int(voted.found.sum()) <= 1

    def test_it_breaks_under_fresh_draws_what_pgd_does_not(self):
        model = RandomTransform(net(), family())
        problem = problem_of(40, eps=0.2)
        referee = Referee(model, draws=31)
        upheld = {}
        for attack in (EotPGD(steps=15, draws=8), PGD(steps=15, loss="margin")):
            found = run(attack, problem, model)
            ruled = referee.judge(problem, found.x)
            upheld[type(attack)] = sum(
                r is Ruling.HOLDS and bool(d > 0) for r, d in zip(ruled.ruling, ruled.distance, strict=True)
            )
        assert upheld[EotPGD] > upheld[PGD] + 5


class TestRandomTransform:
    def test_a_seed_fixes_one_transform_for_every_row_and_call(self):
        x, _ = digits(5)
        view = RandomTransform(net().eval(), family(), noise=0.05, seed=3)
        whole = view(x)
        assert torch.equal(whole, view(x))
        assert torch.allclose(whole[3:4], view(x[3:4]), atol=1e-9)
        other = RandomTransform(net(), family(), noise=0.05, seed=4)
        assert not torch.allclose(whole, other(x))
        assert fingerprint(view) != fingerprint(other)
        net().train()

    def test_without_a_seed_each_row_has_its_own(self):
        x = digits(1)[0].expand(6, 1, 8, 8)
        seen = RandomTransform(nn.Flatten(), family())(x)
        assert len({tuple(row.tolist()) for row in seen}) == 6

    def test_its_gradient_is_that_of_the_transform(self):
        x = digits(1)[0].clamp(0.05, 0.6).requires_grad_()
        view = RandomTransform(nn.Sequential(nn.Flatten(), nn.Tanh()), family(), seed=1)
        assert torch.autograd.gradcheck(view, (x,), fast_mode=True)

    def test_noise_alone(self):
        seen = RandomTransform(nn.Identity(), noise=0.3)(torch.zeros(200, 50).double())
        assert float(seen.std()) == pytest.approx(0.3, rel=0.05)

    def test_what_changes_nothing_is_refused(self):
        with pytest.raises(UsageError, match="needs a transform"):
            RandomTransform(nn.Identity())
        with pytest.raises(UsageError, match="zoom"):
            Zoom(1.0)


def test_zoom_at_0_and_back():
    x, _ = digits(2)
    zoom = Zoom(0.5)
    assert torch.equal(zoom(x, torch.zeros(2, 1).double()), x)
    half = zoom(torch.ones(1, 1, 8, 8), torch.tensor([[-1.0]]))
    assert float(half.sum()) == pytest.approx(16.0)  # half the side, a quarter of the area


def test_a_budget_cuts_a_vote_short():
    from holdfast.judge.ledger import Budget

    found = run(EotPGD(steps=10, draws=8), problem_of(), net(), budget=Budget(queries=21))
    assert bool((found.ledger.queries <= 21).all())
    assert replace(EotPGD(), draws=3).votes == 3
