"""Losses: hand values, directions, edges of the floating-point range, too few classes."""

from __future__ import annotations

from math import inf, log

import pytest
import torch

from holdfast.core.errors import UsageError
from holdfast.core.threat import Goal
from holdfast.numerics.losses import (
    LOSSES,
    cross_entropy,
    cross_entropy_targeted,
    dlr,
    dlr_targeted,
    log_margin,
    log_margin_targeted,
    margin,
    margin_targeted,
    pick_loss,
)

Z = torch.tensor([[5.0, 1.0, 3.0, 0.0], [1.0, 5.0, 3.0, 0.0]], dtype=torch.float64)
Y, T = torch.tensor([0, 0]), torch.tensor([2, 2])


def test_hand_values() -> None:
    assert margin()(Z, Y, T).tolist() == [-2.0, 4.0]
    assert margin(1.0)(Z, Y, T).tolist() == [-2.0, 1.0]
    assert margin_targeted()(Z, Y, T).tolist() == [-2.0, -2.0]
    # row 0: top 5 3 1 0; row 1: top 5 3 1 0
    assert dlr(Z, Y, T).tolist() == pytest.approx([-2 / 4, 4 / 4])
    assert dlr_targeted(Z, Y, T).tolist() == pytest.approx([-2 / 4.5, 2 / 4.5])
    reference = torch.nn.functional.cross_entropy
    assert torch.allclose(cross_entropy(Z, Y, T), reference(Z, Y, reduction="none"))
    assert torch.allclose(cross_entropy_targeted(Z, Y, T), -reference(Z, T, reduction="none"))


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("goal", list(Goal))
def test_ascent_serves_the_attacker(name: str, goal: Goal) -> None:
    loss, note = pick_loss(name, goal, 4)
    assert note is None
    z = Z[:1].clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(z, Y[:1], T[:1]).sum(), z)
    # Along the gradient the label falls behind the class that should win.
    assert grad[0, 2] > grad[0, 0]
    assert grad.isfinite().all()


def test_survey_g_is_kappa_minus_the_margin() -> None:
    kappa = 0.5
    g = (Z[:, 0] - Z[:, 1:].amax(1) + kappa).clamp_min(0)
    assert torch.equal(kappa - margin(kappa)(Z, Y, T), g)


def test_dlr_is_blind_to_shift_and_scale_and_safe_at_ties() -> None:
    assert torch.allclose(dlr(Z * 1e4 + 7, Y, T), dlr(Z, Y, T))
    assert torch.allclose(dlr_targeted(Z * 1e4 + 7, Y, T), dlr_targeted(Z, Y, T))
    tied = torch.zeros(1, 5, requires_grad=True)
    for loss in (dlr, dlr_targeted):
        value = loss(tied, Y[:1], T[:1])
        (grad,) = torch.autograd.grad(value.sum(), tied)
        assert value.item() == 0
        assert grad.isfinite().all()


def test_cross_entropy_at_large_margins() -> None:
    # At 50 the textbook form has lost the label's half of the gradient; at 200 float32 holds none of it.
    for gap, alive in ((50.0, True), (200.0, False)):
        z = torch.tensor([[gap, 0.0, -1.0]], requires_grad=True)
        (grad,) = torch.autograd.grad(cross_entropy(z, Y[:1], T[:1]).sum(), z)
        assert bool(grad.any()) is alive
        if alive:
            assert grad[0, 0] == pytest.approx(-(grad[0, 1] + grad[0, 2]).item(), rel=1e-4)
        for loss in (margin(), dlr):
            (grad,) = torch.autograd.grad(loss(z, Y[:1], T[:1]).sum(), z)
            assert grad.any()
    z = torch.tensor([[-200.0, 0.0, -1.0]])
    assert cross_entropy(z, Y[:1], T[:1]).item() == pytest.approx(200 + log(1 + 1 / 2.718281828), rel=1e-6)


def test_absent_classes() -> None:
    top2 = torch.tensor([[0.6, 0.3, 0.0, 0.0, 0.0], [0.3, 0.6, 0.0, 0.0, 0.0], [0.0, 0.6, 0.3, 0.0, 0.0]]).log()
    y, t = torch.tensor([0, 0, 0]), torch.tensor([3, 1, 4])
    for name in set(LOSSES) - {"joint"}:  # its last column is no class
        for goal in Goal:
            loss, _ = pick_loss(name, goal, 5)
            assert not loss(top2, y, t).isnan().any(), (name, goal)
    # The label left the answer: it has a third of the 0.1 that is left.
    assert log_margin()(top2, y, t).tolist() == pytest.approx([log(0.3 / 0.6), log(2), log(0.6 / 0.1 * 3)], abs=1e-5)
    assert log_margin_targeted()(top2, y, t).tolist() == pytest.approx(
        [log(0.1 / 0.6 / 3), log(2), log(0.1 / 0.6 / 3)], abs=1e-5
    )
    only = torch.tensor([[0.9, 0.0], [0.7, 0.0], [1.0, 0.0]]).log()
    values = log_margin()(only, y, t * 0 + 1)
    assert values.isfinite().all()
    assert values[1] > values[0] > values[2]
    assert margin()(only, y, t)[0] == -inf


def test_log_margin_equals_the_logit_margin() -> None:
    z = Z.clone().requires_grad_()
    assert torch.allclose(log_margin()(z, Y, T), margin()(z, Y, T))
    assert torch.allclose(log_margin()(Z.log_softmax(1), Y, T), margin()(Z, Y, T))


def test_pick_loss_falls_back_and_says_so() -> None:
    loss, note = pick_loss("dlr", Goal.UNTARGETED, 2)
    assert note is not None
    assert "3 classes" in note
    assert loss(torch.tensor([[1.0, 3.0]]), Y[:1], T[:1]).item() == 2
    assert pick_loss("dlr", Goal.TARGETED, 3)[1] is not None
    assert pick_loss("dlr", Goal.UNTARGETED, 3)[1] is None
    with pytest.raises(UsageError, match="Did you mean margin"):
        pick_loss("margn", Goal.UNTARGETED, 10)
