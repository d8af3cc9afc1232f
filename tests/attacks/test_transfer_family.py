"""The transfer family: each piece by itself, and what a composition reduces to when a piece is off."""

import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from holdfast.attacks.common import gradient_transform as pieces
from holdfast.attacks.common.gradient_transform import GradientTransform, gaussian, resizing, smoothed
from holdfast.attacks.engine import run
from holdfast.attacks.evasion.transfer.di_fgsm import DIFGSM
from holdfast.attacks.evasion.transfer.ni_fgsm import NIFGSM
from holdfast.attacks.evasion.transfer.si_fgsm import SIFGSM
from holdfast.attacks.evasion.transfer.surrogate_transfer import SurrogateTransfer
from holdfast.attacks.evasion.transfer.ti_fgsm import TIFGSM
from holdfast.attacks.evasion.transfer.vmi_fgsm import VMIFGSM
from holdfast.core.draws import Draws
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.numerics.affine import affine_optimum
from holdfast.testing.toys import Queried, affine_digits, digits, net

FAMILY = [NIFGSM, DIFGSM, TIFGSM, SIFGSM, VMIFGSM]
EPS = {Norm.LINF: 0.12, Norm.L2: 0.8}


def problem_of(n=12, norm=Norm.LINF, eps=None, dtype=torch.float64):
    x, y = digits(n, dtype)
    return Problem.of(x, y, LpBall.uniform(norm, eps or EPS[norm], n, dtype=dtype))


def drawn(problem):
    return replace(problem, draws=Draws(0, "test").of(problem.ids))


def last(attack, problem, surrogate=None):
    """The last iterates: what a model of which every answer is right is asked about at the end."""
    asked = []

    def judge(z):
        asked.append(z)
        return F.one_hot(problem.y[: len(z)], 10).to(z)

    run(attack, problem, surrogate or net(), judge=judge)
    return asked[-1]


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
@pytest.mark.parametrize(
    "off",
    [DIFGSM(diversity=0.0), DIFGSM(least_size=1.0), SIFGSM(scales=1), TIFGSM(kernel=1), VMIFGSM(neighbours=0)],
)
def test_a_piece_that_is_off_leaves_mi_fgsm_to_the_bit(off, norm):
    problem = problem_of(norm=norm)
    assert torch.equal(last(off, problem), last(SurrogateTransfer(), problem))


def test_without_momentum_there_is_nothing_to_look_ahead_along():
    problem = problem_of()
    assert torch.equal(last(NIFGSM(momentum=0.0), problem), last(SurrogateTransfer(momentum=0.0), problem))


@pytest.mark.parametrize("attack", FAMILY)
def test_a_named_method_is_the_composition_with_its_switch_on(attack):
    problem = problem_of(4)
    t = attack().transform
    same = SurrogateTransfer(**{k: getattr(t, k) for k in GradientTransform.__dataclass_fields__})
    draws_apart = attack in (DIFGSM, VMIFGSM)  # keyed by the method's name
    here, there = last(attack(), problem), last(same, problem)
    assert draws_apart or torch.equal(here, there)
    assert not torch.equal(here, last(SurrogateTransfer(), problem))


@pytest.mark.parametrize("attack", [SurrogateTransfer, *FAMILY])
def test_source_equal_to_target_is_white_box(attack):
    """What holds on the source itself is bounded by the exact optimum, and by all that the steps passed on the way."""
    x, y = digits(40)
    model = affine_digits()
    right = model(x).argmax(1) == y
    x, y, edges = x[right], y[right], (torch.zeros(()).double(), torch.ones(()).double())
    best = affine_optimum(Norm.LINF, model.weight.detach(), model.bias.detach(), x, y, *edges).distance
    problem = Problem.of(x, y, LpBall(norm=Norm.LINF, eps=best * 1.3, lower=edges[0], upper=edges[1]))
    white = run(attack(), problem, model)
    out = run(attack(), problem, model, judge=Queried(model, lambda scores: scores))
    assert out.found.double().mean() >= 0.8
    assert (out.distance / best >= 1 - 1e-9).all()
    assert (out.found <= white.found).all()


@pytest.mark.parametrize("attack", [SurrogateTransfer, *FAMILY])
def test_no_query_before_judging(attack):
    problem = problem_of(8)
    order = []

    def surrogate(z):
        order.append("surrogate")
        return net()(z)

    def judge(z):
        order.append("judge")
        return affine_digits()(z).detach()

    out = run(attack(), problem, surrogate, judge=judge)
    assert order[0] == order[-1] == "judge", "the clean inputs, then the last iterates"
    assert order.count("judge") == 2
    assert (out.ledger.queries <= 2).all()
    open_ = out.ledger.backwards > 0
    asks = attack().steps * attack().transform.asks
    assert (out.ledger.backwards[open_] == asks).all()
    assert abs(attack().passes - 2 * asks) <= 2


def test_the_kernel_sums_to_one_and_is_what_a_point_becomes():
    for side in (1, 3, 5, 7, 15):
        weights = gaussian(side)
        assert len(weights) == side
        assert float(weights.sum()) == pytest.approx(1, abs=1e-15)
        assert torch.equal(weights, weights.flip(0))
    problem = problem_of(2)
    point = torch.zeros_like(problem.x)
    point[:, 0, 4, 3] = 1.0
    outer = gaussian(3).view(-1, 1) * gaussian(3)
    torch.testing.assert_close(smoothed(problem, point, 3)[0, 0, 3:6, 2:5], outer)
    strip = Problem.of(problem.x.flatten(1), problem.y, problem.set)
    torch.testing.assert_close(smoothed(strip, point.flatten(1), 3)[0, 34:37], gaussian(3))


def test_smoothing_is_the_mean_over_shifts():
    """Translation invariance: the gradient of the weighted loss over shifted inputs, for a linear loss exactly."""
    problem = problem_of(3)
    grad = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = gaussian(3)
    total = torch.zeros_like(grad)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            moved = F.pad(grad, (1, 1, 1, 1))[..., 1 + i : 9 + i, 1 + j : 9 + j]
            total += w[i + 1] * w[j + 1] * moved
    torch.testing.assert_close(smoothed(problem, grad, 3), total)


def test_resizing_is_interpolation_in_a_frame_and_maps_back_by_its_transpose():
    problem = drawn(problem_of(12))
    step = np.zeros(12, dtype=np.int64)
    down, across = resizing(problem, 1.0, 0.5, step)
    x, g = problem.x, torch.randn_like(problem.x)
    there = pieces._mapped(problem, x, down, across)
    back = pieces._mapped(problem, g, down.transpose(1, 2), across.transpose(1, 2))
    torch.testing.assert_close((there * g).flatten(1).sum(1), (x * back).flatten(1).sum(1))
    for k in range(12):
        rows, columns = down[k].sum(1) > 0, across[k].sum(1) > 0
        size = (int(rows.sum()), int(columns.sum()))
        assert 4 <= size[0] == size[1] <= 8
        resized = F.interpolate(x[k : k + 1], size=size, mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(there[k, 0][rows][:, columns], resized)
        assert (there[k, 0][~rows] == 0).all()
    sizes = {int((m.sum(1) > 0).sum()) for m in resizing(drawn(problem_of(60)), 1.0, 0.5, np.zeros(60, np.int64))[0]}
    assert sizes == {4, 5, 6, 7, 8}


def test_diversity_is_a_coin_for_each_sample():
    problem = drawn(problem_of(200))
    down, _ = resizing(problem, 0.5, 0.5, np.zeros(200, dtype=np.int64))
    untouched = (down == torch.eye(8).double()).all(-1).all(-1).double().mean()
    assert 0.5 <= untouched <= 0.75  # a fifth of the resized ones keep their size


def test_the_scaled_gradient_is_that_of_the_summed_loss():
    problem, model = problem_of(5), net().eval()

    def loss(z):
        return F.cross_entropy(model(z), problem.y, reduction="sum")

    def ask(z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(loss(z), z)[0]

    x = problem.x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum(loss(x / 2**k) for k in range(4)), x)
    found = GradientTransform(scales=4).gradient(ask, problem, problem.x, np.zeros(5, dtype=np.int64))
    net().train()
    torch.testing.assert_close(found, expected)


def test_the_nesterov_step_is_that_of_the_paper():
    x, y = digits(6)
    model, eps, mu = net().eval(), 0.05, 0.9
    z, velocity = x.clone(), torch.zeros_like(x)
    for _ in range(5):
        at = (z + eps / 5 * mu * velocity).requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
        velocity = mu * velocity + grad / grad.abs().mean((1, 2, 3), keepdim=True)  # the authors' code: the mean
        z = torch.minimum(torch.maximum(z + eps / 5 * velocity.sign(), x - eps), x + eps).clamp(0, 1)
    net().train()
    problem = Problem.of(x, y, LpBall.uniform(Norm.LINF, eps, 6, dtype=x.dtype))
    torch.testing.assert_close(last(NIFGSM(steps=5, momentum=mu), problem), z)


def test_the_variance_is_taken_where_the_gradient_was_and_used_one_step_later():
    x, y = digits(6)
    model, eps = net().eval(), 0.05
    attack = VMIFGSM(steps=3, neighbours=4)
    problem = Problem.of(x, y, LpBall.uniform(Norm.LINF, eps, 6, dtype=x.dtype))
    draws = Draws(0, "vmi_fgsm").of(problem.ids)

    def gradient(z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)[0]

    z, velocity, variance = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
    for step in range(3):
        grad = gradient(z)
        tuned = grad + variance
        near = [z + 1.5 * eps * (2 * draws.uniform("neighbour", (1, 8, 8), 5 * step + k) - 1) for k in range(1, 5)]
        variance = sum(gradient(p) for p in near) / 4 - grad
        velocity = velocity + tuned / tuned.abs().sum((1, 2, 3), keepdim=True)
        z = torch.minimum(torch.maximum(z + eps / 3 * velocity.sign(), x - eps), x + eps).clamp(0, 1)
    net().train()
    torch.testing.assert_close(last(attack, problem), z)


def test_neighbours_lie_in_the_ball_of_their_norm():
    for norm in (Norm.LINF, Norm.L2):
        z = pieces._in_unit_ball(drawn(problem_of(300, norm=norm)), np.zeros(300, dtype=np.int64)).flatten(1)
        size = z.abs().amax(1) if norm is Norm.LINF else z.norm(dim=1)
        assert 0.9 < float(size.max()) <= 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (TIFGSM(kernel=4), "must be odd"),
        (DIFGSM(diversity=1.5), r"diversity of DI-FGSM must lie in \[0, 1\]"),
        (DIFGSM(least_size=0.0), "least_size"),
        (SIFGSM(scales=0), "scales"),
        (VMIFGSM(neighbours=-1), "neighbours"),
    ],
)
def test_what_is_out_of_range_is_refused_in_words(wrong, told):
    with pytest.raises(UsageError, match=told):
        wrong.check(problem_of(1))


@pytest.mark.shared
@pytest.mark.slow
def test_diversity_helps_from_one_real_network_to_another(shared_data):
    """MNIST, linf 0.2: of the network of the Sign-OPT papers on LeNet5 31 examples hold with MI, 45 with DI."""
    sys.path.insert(0, str(shared_data))
    zoo = import_module("zoo")
    x, y = (t[:200] for t in zoo.images("mnist", "test"))
    source, target = zoo.load("sign_opt_mnist_cnn"), zoo.load("mnist_lenet5_clean")
    problem = Problem.of(x, y, LpBall.uniform(Norm.LINF, 0.2, 200))
    plain, diverse = (run(a, problem, source, judge=target) for a in (SurrogateTransfer(), DIFGSM()))
    assert int(diverse.found.sum()) > 1.2 * int(plain.found.sum()) > 20
