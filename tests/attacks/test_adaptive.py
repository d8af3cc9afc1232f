"""Adaptive attacks: losses over features and detectors, fixed randomness, stand-ins for what has no gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.fgsm import FGSM
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.criterion import Misclassified, Targeted, WithDetector, best_other
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Goal, Norm
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.ledger import Budget
from holdfast.models import Bpda, Eot, FixedRandomness, InputTransform
from holdfast.numerics.losses import OnFeatures, joint, joint_targeted, margin, pick_loss
from holdfast.testing.toys import affine_digits, digits, net


def problem_of(n: int, eps: float, norm: Norm = Norm.LINF) -> Problem:
    x, y = digits(n)
    return Problem.of(x, y, LpBall.uniform(norm, eps, n, dtype=x.dtype))


def layered(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)).double().requires_grad_(False)


class Watched(nn.Module):
    """The digits network, and a detector that flags an input where logistic regression does not agree with its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.second = net(), affine_digits()

    def forward(self, x: Tensor) -> Tensor:
        scores, second = self.net(x), self.second(x)
        answer = scores.argmax(1)
        flag = best_other(second, answer) - second.gather(1, answer.unsqueeze(1)).squeeze(1)
        return torch.cat([scores, flag.unsqueeze(1)], 1)


class TestLosses:
    def test_joint_is_below_0_exactly_where_the_criterion_does_not_hold(self):
        scores = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
        y = torch.arange(50) % 5
        t = (y + 2) % 5
        none = torch.full_like(y, -1)
        assert torch.equal(joint(scores, y, none) < 0, ~WithDetector(Misclassified()).holds(scores, y, none))
        assert torch.equal(joint_targeted(scores, y, t) < 0, ~WithDetector(Targeted()).holds(scores, y, t))
        assert pick_loss("joint", Goal.TARGETED, 6)[0] is joint_targeted

    def test_a_loss_on_features_has_the_gradient_of_autograd_for_the_same_price(self):
        model, p = layered(), problem_of(7, 0.1)

        def value(scores: Tensor, features: object, y: Tensor, target: Tensor) -> Tensor:
            hidden, logits = features["1"], features["3"]  # type: ignore[index]
            return hidden.square().sum(1) - 2 * logits.gather(1, y.unsqueeze(1)).squeeze(1) + scores[:, 0]

        inquiry = Inquiry.of(model, p, micro_batch=3)
        asked = inquiry.gradient(p.x, p.rows, OnFeatures(value, ("1", "3")), p.y, p.target)
        x = p.x.clone().requires_grad_()
        hidden = model[1](x.flatten(1))
        logits = model[3](hidden.tanh())
        expected = value(logits, {"1": hidden, "3": logits}, p.y, p.target)
        assert torch.allclose(asked.value, expected)
        assert torch.allclose(asked.grad, torch.autograd.grad(expected.sum(), x)[0])
        assert inquiry.ledger.forwards.tolist() == inquiry.ledger.backwards.tolist() == [1] * 7
        assert not model[1]._forward_hooks

    def test_it_reads_the_features_of_the_rows_that_are_answered(self):
        model, p = layered(), problem_of(4, 0.1)
        inquiry = Inquiry.of(model, p, budget=Budget(passes=2))
        size = OnFeatures(lambda scores, features, y, target: features["1"].sum(1), ("1",))
        inquiry.gradient(p.x[:2], p.rows[:2], size, p.y[:2], p.target[:2])
        asked = inquiry.gradient(p.x, p.rows, size, p.y, p.target)
        assert asked.answered.tolist() == [False, False, True, True]
        assert torch.allclose(asked.value[2:], model[1](p.x[2:].flatten(1)).sum(1))

    def test_an_unknown_layer_is_named(self):
        p = problem_of(2, 0.1)
        size = OnFeatures(lambda scores, features, y, target: features["9"].sum(1), ("9",))
        with pytest.raises(UsageError, match="no layer '9'"):
            run(PGD(loss=size), p, layered())

    @pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
    def test_a_loss_of_ones_own_is_followed(self, norm):
        p = problem_of(8, 0.2 if norm is Norm.LINF else 1.0, norm)
        named = run(PGD(steps=8, loss="margin"), p, net(), seed=3)
        own = run(PGD(steps=8, loss=lambda scores, y, target: margin()(scores, y, target)), p, net(), seed=3)
        assert torch.equal(named.x, own.x)
        assert torch.equal(
            run(FGSM(loss="margin"), problem_of(8, 0.1), net()).x,
            run(FGSM(loss=margin()), problem_of(8, 0.1), net()).x,
        )

    def test_features_brought_to_those_of_another_sample(self):
        """Adversarial manipulation of deep representations (Sabour et al. 2016): the label is never looked at."""
        model, p = layered(), problem_of(20, 0.6)
        guides = p.x[torch.roll(torch.arange(20), 7)]
        aims = model[2](model[1](guides.flatten(1)))

        def near(scores: Tensor, features: object, y: Tensor, target: Tensor) -> Tensor:
            return -(features["2"] - aims[target]).square().sum(1)  # type: ignore[index]

        unseen = replace(p, target=torch.arange(20), criterion=Misclassified(), y=model(p.x).argmax(1))
        found = run(PGD(steps=60, loss=OnFeatures(near, ("2",)), random_start=False), unseen, model)
        differ = unseen.y != model(guides).argmax(1)
        assert found.found[differ].float().mean() > 0.8


class TestDetector:
    def test_the_plain_attack_is_flagged_and_the_joint_one_is_not(self):
        model = Watched()
        p = replace(problem_of(40, 0.2), criterion=WithDetector(Misclassified()))

        def first_classes(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(scores[:, :-1], y, reduction="none")

        plain, both = (run(PGD(loss=loss), p, model).found.float().mean().item() for loss in (first_classes, "joint"))
        assert both > plain + 0.1
        assert both > 0.85

    def test_the_goal_of_the_inner_criterion_counts(self):
        p = problem_of(4, 0.1)
        assert replace(p, criterion=WithDetector(Targeted())).goal is Goal.TARGETED
        assert replace(p, criterion=WithDetector(Misclassified())).goal is Goal.UNTARGETED


class Noisy(nn.Module):
    """Adds so much noise that a single gradient says little."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.net, self.sigma = net(), sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.sigma * torch.randn_like(x))


class TestRandomness:
    def test_a_row_has_the_same_draws_wherever_it_stands(self):
        model, (x, _) = FixedRandomness(Noisy(0.5), 4).eval(), digits(6)
        whole = model(x)
        assert torch.equal(whole, model(x))
        assert torch.allclose(whole[[4, 1]], model(x[[4, 1]]))
        assert not torch.allclose(whole, FixedRandomness(Noisy(0.5), 5).eval()(x))

    def test_together_depends_on_the_place(self):
        model, (x, _) = FixedRandomness(Noisy(0.5), 4, together=True).eval(), digits(6)
        assert torch.equal(model(x), model(x))
        assert not torch.allclose(model(x)[[4, 1]], model(x[[4, 1]]))

    def test_the_global_generator_is_left_alone(self):
        x, _ = digits(2)
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        FixedRandomness(Noisy(0.5)).eval()(x)
        Eot(Noisy(0.5), 2, seed=0).eval()(x)
        assert torch.equal(torch.rand(3), expected)

    def test_fixed_expectation_is_the_mean_of_its_fixed_draws(self):
        x, _ = digits(3)
        parts = [FixedRandomness(Noisy(0.5), seed).eval()(x).softmax(1) for seed in (7, 8, 9)]
        assert torch.allclose(Eot(Noisy(0.5), 3, seed=7).eval()(x).exp(), torch.stack(parts).mean(0))

    def test_an_attack_on_fixed_draws_is_deterministic(self):
        p = problem_of(6, 0.15)
        model = FixedRandomness(Noisy(0.3), 2)
        first, again = (run(PGD(steps=5), p, model) for _ in range(2))
        assert torch.equal(first.x, again.x)
        alone = run(PGD(steps=5), replace(p.select(np.array([3])), rows=torch.arange(1)), model)
        assert torch.allclose(alone.x, first.x[3:4])


def test_a_stand_in_opens_a_step_function():
    def steps(x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    p = problem_of(40, 0.2)
    closed, opened = InputTransform(steps, net()), InputTransform(Bpda(steps), net())
    assert torch.equal(closed.eval()(p.x), opened.eval()(p.x))
    plain = run(PGD(loss="margin"), p, closed).found.float().mean().item()
    assert run(PGD(loss="margin"), p, opened).found.float().mean().item() > plain + 0.3
