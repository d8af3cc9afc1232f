"""CLEVER where the answer is known: linear and quadratic margins, synthetic Weibull samples, uniform balls."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from holdfast.certifiers.estimates.clever import Clever, _profile, _uniform, reverse_weibull
from holdfast.certifiers.oracle_certifier import ModuleAsk
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.threat import Guarantee, Norm
from holdfast.numerics.distance import distance, dual_norm

torch.set_num_threads(1)
NORMS = [Norm.L1, Norm.L2, Norm.LINF]


def linear(d: int = 5, classes: int = 4) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(d, classes).eval()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 3)).eval()


class Margin(nn.Module):
    """Logits (margin(x), 0)."""

    def __init__(self, margin) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        m = self.margin(x)
        return torch.stack([m, torch.zeros_like(m)], 1)


# The score


@pytest.mark.parametrize("norm", NORMS)
def test_exact_on_a_linear_model(norm):
    f = linear()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    logits = f(x).detach()
    y = logits.argmax(1)
    estimates = Clever().estimates(ModuleAsk(f), x, y, range(6), 0, norm, radius_max=1e6)
    for i, e in enumerate(estimates):
        others = [j for j in range(4) if j != y[i]]
        w = f.weight.detach()[y[i]] - f.weight.detach()[others]
        truth = (logits[i, y[i]] - logits[i, others]).double() / dual_norm(norm, w)
        assert e is not None
        assert e.radius == pytest.approx(truth.min().item(), rel=1e-6)
        assert e.rival == others[int(truth.argmin())]
        assert isnan(e.ks_p)


@pytest.mark.parametrize("norm", NORMS)
def test_certificate_is_only_ever_an_estimate(norm):
    f, x = net(), torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    y = f(x).argmax(1)
    seen: list[int] = []
    found = Clever().certify(ModuleAsk(f), x, y, range(3), 0, norm=norm, progress=seen.append)
    assert all(c is not None and c.guarantee is Guarantee.ESTIMATE and c.method == "clever" for c in found)
    assert all(c is not None and c.alpha is None and c.radius > 0 for c in found)
    assert seen == [1, 2, 3]


def test_quadratic_margin_whose_lipschitz_constant_is_known():
    f = Margin(lambda x: 1 - x.square().sum(1) / 2).eval()  # gradient -x: at most R in the ball around 0
    (e,) = Clever().estimates(ModuleAsk(f), torch.zeros(1, 2), torch.tensor([0]), [0], 0, Norm.L2, radius_max=0.8)
    assert e is not None
    assert e.lipschitz == pytest.approx(0.8, rel=0.01)
    assert e.radius == 0.8  # 1 / 0.8 is beyond R
    (e,) = Clever().estimates(ModuleAsk(f), torch.zeros(1, 2), torch.tensor([0]), [0], 0, Norm.L2, radius_max=1.3)
    assert e is not None
    assert e.radius == pytest.approx(1 / 1.3, rel=0.01)  # below the true sqrt(2)
    assert e.ks_p > 0.01


def test_radius_max_then_parameter_then_norm_is_the_ball():
    f, x, y = linear(), torch.zeros(1, 5), torch.tensor([0])
    f.bias.data = torch.tensor([1e3, 0.0, 0.0, 0.0])
    ask = ModuleAsk(f)
    for norm, default in [(Norm.L1, 40.0), (Norm.L2, 2.0), (Norm.LINF, 0.1)]:
        scores = [
            c.certify(ask, x, y, [0], 0, norm=norm, radius_max=r)[0]
            for c, r in [(Clever(), 0.05), (Clever(radius=0.07), None), (Clever(), None)]
        ]
        assert [s.radius for s in scores if s is not None] == [0.05, 0.07, default]


def test_no_answer_where_the_prediction_is_wrong_or_not_a_number():
    f, x = linear(), torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    y = f(x).argmax(1)
    assert Clever().certify(ModuleAsk(f), x, (y + 1) % 4, [0, 1], 0, norm=Norm.L2) == [None, None]
    tie = Margin(lambda x: x.sum(1) * 0).eval()
    assert Clever().certify(ModuleAsk(tie), x, torch.zeros_like(y), [0, 1], 0, norm=Norm.L2) == [None, None]
    kink = Margin(lambda x: 1 + (0 * x.sum(1)).sqrt()).eval()  # its gradient is 0 * inf
    assert Clever(radius=0.5).certify(ModuleAsk(kink), 0 * x, 0 * y, [0, 1], 0, norm=Norm.L2) == [None, None]
    for margin in (torch.nan, torch.inf):
        sick = Margin(lambda x, m=margin: x.sum(1) * 0 + m).eval()
        assert Clever().certify(ModuleAsk(sick), x, 0 * y, [0, 1], 0, norm=Norm.L2) == [None, None]


def test_a_flat_margin_gives_the_whole_ball():
    flat = Margin(lambda x: 1 + 0 * x.sum(1)).eval()
    (c,) = Clever().certify(ModuleAsk(flat), torch.zeros(1, 3), torch.tensor([0]), [0], 0, norm=Norm.L2, radius_max=0.5)
    assert c is not None
    assert c.radius == 0.5


def test_rivals_takes_the_nearest_classes_only_and_cost_is_as_declared():
    f, x = linear(), torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    logits = f(x).detach()
    y = logits.argmax(1)
    every, one = ModuleAsk(f), ModuleAsk(f)
    Clever().certify(every, x, y, [0], 0, norm=Norm.L2)
    (e,) = Clever(rivals=1).estimates(one, x, y, [0], 0, Norm.L2)
    assert (every.forwards, every.backwards) == (1 + 3 * 3200, 3 * 3200)
    assert (one.forwards, one.backwards) == (1 + 3200, 3200)
    assert e is not None
    assert e.rival == logits[0].topk(2).indices[1]


@pytest.mark.parametrize("norm", NORMS)
def test_the_batch_and_the_company_change_nothing_but_rounding(norm):
    f, x = net(), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    y, ids = f(x).argmax(1), [3, 1, 4, 15]

    def run(batch: int, rows: list[int]) -> list[float]:
        mine = [ids[i] for i in rows]
        clever = Clever(batches=20, points=10, radius=3.0)
        found = clever.certify(ModuleAsk(f, batch), x[rows], y[rows], mine, 0, norm=norm)
        return [c.radius for c in found if c is not None]

    whole = run(1000, [0, 1, 2, 3])
    assert len(set(whole)) == 4
    assert run(7, [0, 1, 2, 3]) == pytest.approx(whole, rel=1e-3)
    assert run(64, [2]) == pytest.approx(whole[2:3], rel=1e-3)


def test_leaves_the_global_generators_alone():
    f, x = net(), torch.zeros(1, 6)
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    Clever(batches=10, points=8).certify(ModuleAsk(f), x, f(x).argmax(1), [0], 0, norm=Norm.L2)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == legacy).all()


# The fit


@pytest.mark.parametrize("shape", [1.5, 2.0, 3.0, 5.0])
def test_recovers_the_end_point_within_one_percent(shape):
    found: list[float] = []
    for seed in range(20):
        values = 10 - 0.5 * np.random.default_rng(seed).weibull(shape, 500)
        a, p = reverse_weibull(values)
        assert a >= values.max()
        assert p > 0.001
        found.append(a)
    assert np.median(found) == pytest.approx(10, rel=0.005)
    within = np.abs(np.array(found) - 10) < 0.1
    assert within.mean() >= (1.0 if shape <= 3 else 0.8)  # of shape 5 the sample itself says no more


def test_fit_is_as_likely_as_the_best_that_scipy_finds():
    for seed in range(3):
        values = 10 - np.random.default_rng(seed).weibull(4.0, 200)
        below = (values.max() - values) / np.ptp(values)
        likelihood, _, log_scale = _profile(below, np.geomspace(1e-3, 10, 400))
        best = int(np.argmax(likelihood))
        ours = likelihood[best] + 0.01 * np.exp(2 * log_scale[best])
        fits = [stats.weibull_max.fit(-below, c, loc=0.1, scale=1) for c in (1, 5, 20)]
        theirs = max(stats.weibull_max(*fit).logpdf(-below).sum() for fit in fits if fit[0] >= 1)
        assert ours > theirs - 0.05


@pytest.mark.parametrize("count", [10, 50, 500])
def test_samples_without_an_end_point_give_a_finite_answer(count):
    for seed in range(20):
        values = np.random.default_rng(seed).gumbel(10, 0.1, count)
        a, _ = reverse_weibull(values)
        assert values.max() <= a < values.max() + 20 * np.ptp(values)


def test_fit_scales_with_the_data_and_rejects_what_is_not_weibull():
    values = 10 - np.random.default_rng(0).weibull(3.0, 200)
    a, p = reverse_weibull(values)
    b, q = reverse_weibull(values * 1000)
    assert b == pytest.approx(1000 * a, rel=1e-9)
    assert q == pytest.approx(p)
    two_heaps = np.concatenate([np.linspace(1, 1.01, 100), np.linspace(9, 9.01, 100)])
    assert reverse_weibull(two_heaps)[1] < 1e-6


def test_degenerate_samples_give_the_largest():
    assert reverse_weibull(np.zeros(50))[0] == 0
    nearly = np.full(50, 2.0)
    nearly[7] += 1e-7
    assert reverse_weibull(nearly)[0] == nearly[7]
    most = np.full(50, 2.0)
    most[:5] = 1.0
    assert reverse_weibull(most)[0] == pytest.approx(2.0, rel=1e-3)


# The ball


@pytest.mark.parametrize("norm", NORMS)
def test_points_are_uniform_in_the_ball(norm):
    d = 3
    points = _uniform(norm, (20_000, 1, d), torch.Generator().manual_seed(0))
    assert points.shape == (20_000, 1, d)
    size = distance(norm, points).numpy()
    assert size.max() <= 1 + 1e-6
    assert stats.kstest(size**d, "uniform").pvalue > 0.001
    signs = (points.flatten(1) > 0).double().mean(0)
    assert ((signs - 0.5).abs() < 0.02).all()
    # in the half ball of half the radius: 2^-d of the volume, and alike in each octant
    inner = points.flatten(1)[size < 0.5]
    octant = ((inner > 0) * torch.tensor([1, 2, 4])).sum(1)
    assert stats.chisquare(np.bincount(octant.numpy(), minlength=8)).pvalue > 0.001


def test_refusals():
    f, x, y = linear(), torch.zeros(1, 5), torch.tensor([0])
    with pytest.raises(UnsupportedError, match="l0"):
        Clever().certify(ModuleAsk(f), x, y, [0], 0, norm=Norm.L0)
    for bad in ({"batches": 9}, {"points": 0}, {"radius": 0.0}, {"rivals": 0}):
        with pytest.raises(UsageError):
            Clever(**bad)
