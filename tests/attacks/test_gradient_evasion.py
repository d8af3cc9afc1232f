"""Gradient-descent evasion: its limit without mimicry, what mimicry does, and machines that are no networks."""

import numpy as np
import pytest
import torch
from sklearn.svm import SVC, LinearSVC

from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.gradient_evasion import GradientEvasion, density
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.errors import ModelError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.archive import Keep
from holdfast.models.kernel_svm import KernelSVM
from holdfast.testing.toys import affine_digits, digits, net

MACHINES = [
    SVC(gamma=0.05), SVC(kernel="linear"), SVC(kernel="poly", coef0=1.0), SVC(kernel="sigmoid", gamma=0.01), LinearSVC(),
]  # fmt: skip


def two_classes():
    """Digits 3, to be moved, and 7, the class to look like; labels 0 and 1."""
    x, y = digits(800)
    at = (y == 3) | (y == 7)
    return x[at], (y[at] == 7).long()


def within(norm, eps, x, y, **more):
    return Problem.of(x, y, LpBall.uniform(norm, eps, len(x), dtype=x.dtype), **more)


@pytest.mark.parametrize(("norm", "eps"), [(Norm.L1, 3.0), (Norm.L2, 0.6), (Norm.LINF, 0.1)])
def test_without_mimicry_it_is_plain_descent(norm, eps):
    x, y = digits(20)
    problem = within(norm, eps, x, y)
    plain = run(PGD(steps=20, random_start=False, loss="margin"), problem, net())
    for attack in (GradientEvasion(steps=20), GradientEvasion(steps=20, mimicry=0.0, reference=x[:5])):
        out = run(attack, problem, net())
        assert torch.equal(out.found, plain.found)
        assert torch.equal(out.x, plain.x)


def test_the_gradient_of_the_density():
    g = torch.Generator().manual_seed(0)
    x, reference = torch.rand(4, 2, 3, generator=g).double(), torch.rand(6, 2, 3, generator=g).double()
    width = torch.tensor([0.3, 0.5, 1.0, 2.0]).double()
    x.requires_grad_()
    apart = (x.unsqueeze(1) - reference).flatten(2).square().sum(2)
    direct = (-apart / (2 * width.square().unsqueeze(1))).exp().mean(1)
    (grad,) = torch.autograd.grad(direct.sum(), x)
    value, ours = density(x.detach(), reference, width)
    assert torch.allclose(value, direct.detach())
    assert torch.allclose(ours, grad)


@pytest.mark.parametrize("keep", [Keep.FIRST, Keep.NEAREST])
def test_mimicry_leads_to_where_the_class_is_dense(keep):
    x, y = two_classes()
    machine = KernelSVM(SVC(gamma=0.05).fit(x.flatten(1).numpy(), y.numpy()))
    reference = x[y == 1][:60]
    moved = x[y == 0][:20]
    problem = within(Norm.L2, 2.5, moved, torch.zeros(20, dtype=torch.int64))
    width = torch.full((20,), 1.0, dtype=torch.float64)
    found = []
    for mimicry in (0.0, 20.0):
        attack = GradientEvasion(steps=60, mimicry=mimicry, reference=reference, width=1.0)
        out = run(attack, problem, machine, keep=keep)
        assert out.found.all()
        found.append(density(out.x, reference, width)[0])
    assert (found[1] > found[0]).double().mean() >= 0.8
    assert found[1].mean() > found[0].mean()


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: getattr(m, "kernel", "LinearSVC"))
@pytest.mark.parametrize("classes", [2, 5])
def test_a_machine_as_a_module_answers_as_scikit_learn_does(machine, classes):
    x, y = digits(600)
    keep = y < classes
    rows, labels = x[keep].flatten(1).numpy(), y[keep].numpy()
    machine.fit(rows[:150], labels[:150])
    scores = KernelSVM(machine)(x[keep]).numpy()
    theirs = machine.decision_function(rows)
    assert np.allclose(scores[:, 1] if classes == 2 else scores, theirs, atol=1e-9)
    if hasattr(machine, "break_ties") and classes > 2:
        machine.break_ties = True
    assert (scores.argmax(1) == machine.predict(rows)).all()


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: getattr(m, "kernel", "LinearSVC"))
def test_machines_that_are_no_networks_are_evaded(machine):
    x, y = two_classes()
    machine.fit(x.flatten(1).numpy(), y.numpy())
    problem = within(Norm.L2, 2.5, x[:20], y[:20])
    out = run(GradientEvasion(steps=40), problem, KernelSVM(machine))
    assert out.found.double().mean() >= 0.9
    rows = out.x[out.found].flatten(1).numpy()
    assert (machine.predict(rows) != y[:20][out.found].numpy()).all()  # scikit-learn itself is fooled


def test_many_classes_are_evaded_and_aimed_at():
    x, y = digits(300)
    machine = KernelSVM(SVC(gamma=0.05).fit(x.flatten(1).numpy(), y.numpy()))
    x, y = x[:12], y[:12]
    assert run(GradientEvasion(), within(Norm.L2, 2.0, x, y), machine).found.double().mean() >= 0.7
    aimed = run(GradientEvasion(), within(Norm.L2, 3.0, x, y, target=(y + 1) % 10), machine)
    assert aimed.found.double().mean() >= 0.3


def test_what_does_not_fit_is_refused():
    x, y = digits(2)
    for attack in (
        GradientEvasion(reference=x.flatten(1)), GradientEvasion(reference=x[:0]), GradientEvasion(mimicry=-1.0),
        GradientEvasion(width=0.0),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            run(attack, within(Norm.L2, 1.0, x, y), affine_digits())
    with pytest.raises(ModelError, match="not fitted"):
        KernelSVM(SVC())
    with pytest.raises(ModelError, match="kernel"):
        KernelSVM(SVC(kernel=lambda a, b: a @ b.T).fit(x.flatten(1).numpy(), y.numpy()))
