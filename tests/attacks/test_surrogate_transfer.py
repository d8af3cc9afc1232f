"""Surrogate transfer and ensembles: the momentum loop, who is asked, and what is refused."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from holdfast.attacks.common.ensemble import Ensemble
from holdfast.attacks.engine import run
from holdfast.attacks.evasion.transfer.surrogate_transfer import SurrogateTransfer
from holdfast.core.errors import ModelError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.distance import contains
from holdfast.testing.toys import Queried, affine_digits, digits, net


def test_the_loop_is_that_of_the_paper():
    (x, y), model, eps = digits(6), affine_digits(), 0.05
    judged = []

    def judge(z):
        judged.append(z)
        return model(z).detach()

    ball = LpBall.uniform(Norm.LINF, eps, 6, dtype=x.dtype)
    run(SurrogateTransfer(steps=7), Problem.of(x, y, ball), model, judge=judge)
    z, velocity = x.clone(), torch.zeros_like(x)
    for _ in range(7):
        z.requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y, reduction="sum"), z)
        velocity = velocity + grad / grad.flatten(1).norm(1, dim=1).view(-1, 1, 1, 1)
        moved = z.detach() + eps / 7 * velocity.sign()
        z = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    asked = model(x).argmax(1) == y
    assert len(judged) == 2  # the clean inputs, the last iterates
    torch.testing.assert_close(judged[1], z[asked])


def test_the_attacked_model_is_asked_once_after_the_clean_pass():
    x, y = digits(20)
    attacked = Queried(net(), lambda scores: scores)
    out = run(SurrogateTransfer(), Problem.of(x, y, LpBall.uniform(Norm.L2, 1.5, 20, dtype=x.dtype)), affine_digits(),
              judge=attacked)  # fmt: skip
    assert out.found.any()
    assert (out.ledger.queries <= 2).all()
    assert (out.ledger.backwards <= 10).all()


def test_what_is_judged_lies_on_the_grid():
    x, y = digits(20)
    ball = LpBall.uniform(Norm.LINF, 0.25, 20, dtype=x.dtype, grid=Fraction(1, 16))
    problem = Problem.of(x, y, ball)
    out = run(SurrogateTransfer(steps=20), problem, affine_digits(), judge=net())  # a step is a fifth of a grid step
    assert out.found.any()
    assert contains(ball, out.x, x).all()


def test_an_ensemble_of_surrogates_is_a_model():
    x, y = digits(20)
    both = Ensemble([affine_digits(), net()])
    ball = LpBall.uniform(Norm.LINF, 0.15, 20, dtype=x.dtype)
    alone = run(SurrogateTransfer(), Problem.of(x, y, ball), affine_digits(), judge=net())
    together = run(SurrogateTransfer(), Problem.of(x, y, ball), both, judge=net())
    assert together.found.sum() >= alone.found.sum()


def test_probabilities_are_averaged_as_liu_et_al_do():
    x, _ = digits(5)
    members = [affine_digits(), affine_digits()]
    with torch.no_grad():
        members[1] = nn.Sequential(nn.Flatten(), nn.Linear(64, 10).double())
        scores = Ensemble(members, fuse="probabilities", weights=[1, 3])(x)
        expected = (0.25 * members[0](x).softmax(1) + 0.75 * members[1](x).softmax(1)).log()
    torch.testing.assert_close(scores, expected)


def test_a_weight_of_zero_leaves_a_member_out():
    x, _ = digits(3)
    for fuse in ("logits", "probabilities"):
        scores = Ensemble([affine_digits(), net()], fuse=fuse, weights=[1, 0])(x)
        torch.testing.assert_close(scores.log_softmax(1), affine_digits()(x).log_softmax(1))


@pytest.mark.parametrize(
    "arguments", [{"members": []}, {"fuse": "votes"}, {"weights": [1.0]}, {"weights": [-1.0, 2.0]}, {"weights": [0, 0]}]
)
def test_an_ensemble_that_is_none_is_refused(arguments):
    with pytest.raises(UsageError, match="ensemble"):
        Ensemble(**{"members": [nn.Identity(), nn.Identity()], **arguments})


def test_members_must_agree_on_the_classes():
    with pytest.raises(ModelError, match="must agree"):
        Ensemble([nn.Linear(4, 2), nn.Linear(4, 3)])(torch.zeros(1, 4))
