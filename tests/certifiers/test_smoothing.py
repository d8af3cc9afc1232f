"""Randomised smoothing against linear classifiers, whose smoothed radius is known, and against simulated coins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from holdfast.certifiers.oracle_certifier import ModuleAsk
from holdfast.certifiers.smoothed import REACH, Smoothed, SmoothedSurrogate, missed, normal
from holdfast.certifiers.smoothing.cohen import Cohen, betting_lower, log_wealth
from holdfast.core.errors import ModelError, UnsupportedError, UsageError
from holdfast.core.threat import Guarantee, Norm
from holdfast.numerics.stats import one_sided_lower

torch.set_num_threads(1)


def half_space(d: int = 3) -> nn.Linear:
    """Class 0 where x[0] > 0; the radius of g at x is |x[0]|, whatever sigma."""
    f = nn.Linear(d, 2, bias=False).eval()
    f.weight.data.zero_()
    f.weight.data[0, 0] = 1.0
    return f


def at(distance: float, m: int = 1, d: int = 3) -> tuple[Tensor, Tensor, range]:
    """m copies of a point at that distance from the edge of ``half_space``, with different ids."""
    x = torch.full((m, d), 0.3)
    x[:, 0] = distance
    return x, torch.zeros(m, dtype=torch.int64), range(m)


def small_net(shape: tuple[int, ...] = (2, 3, 3)) -> nn.Sequential:
    torch.manual_seed(0)
    d = int(np.prod(shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


class Spy(ModuleAsk):
    """Keeps what was asked."""

    def __init__(self, module: nn.Module, batch: int = 1024) -> None:
        super().__init__(module, batch)
        self.asked: list[Tensor] = []
        self.buffers: set[int] = set()

    def logits(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        self.buffers.add(x.untyped_storage().nbytes())
        return super().logits(x)


def radii(certificates: list) -> np.ndarray:
    return np.array([0.0 if c is None else c.radius for c in certificates])


# Coverage and size of the bound


def test_coverage_is_at_least_one_minus_alpha_and_the_bound_is_not_loose():
    runs, alpha, truth = 4000, 0.05, 0.2
    x, y, ids = at(truth, runs)
    found = radii(Cohen(n0=20, n=300, alpha=alpha).certify(ModuleAsk(half_space()), x, y, ids, 0, norm=Norm.L2))
    wrong = int((found > truth).sum())
    assert wrong <= stats.binom.ppf(0.999, runs, alpha)
    assert wrong >= stats.binom.ppf(0.001, runs, 0.6 * alpha)  # discreteness costs a little
    assert np.median(found) > 0.15


@pytest.mark.parametrize(("norm", "share"), [(Norm.L2, 1.0), (Norm.L1, 1.0), (Norm.LINF, 1 / np.sqrt(3))])
def test_radius_approaches_the_truth(norm, share):
    x, y, ids = at(0.3)
    (c,) = Cohen(n=300_000).certify(ModuleAsk(half_space()), x, y, ids, 1, norm=norm)
    assert c is not None
    assert 0.98 * 0.3 * share < c.radius <= 0.3 * share
    assert (c.guarantee, c.method, c.alpha) == (Guarantee.PROBABILISTIC, "cohen", 0.001)


def test_radius_is_capped_by_n_and_by_radius_max():
    x, y, ids = at(100.0)
    cohen, ask = Cohen(n=1000), ModuleAsk(half_space())
    cap = 0.25 * special.ndtri(0.001 ** (1 / 1000))
    assert radii(cohen.certify(ask, x, y, ids, 0, norm=Norm.L2)) == pytest.approx(cap)
    assert radii(cohen.certify(ask, x, y, ids, 0, norm=Norm.L2, radius_max=0.1)) == 0.1


def test_g_keeps_its_class_inside_the_radius():
    f, ids = small_net((2,)), range(8)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    y = Smoothed(ModuleAsk(f), 0.25, 0).votes(x, ids, 5000, "label").argmax(1)
    found = Cohen(n=20_000).certify(ModuleAsk(f), x, y, ids, 0, norm=Norm.L2)
    angle = torch.linspace(0, 2 * torch.pi, 25)[:-1]
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    proved = [(i, c) for i, c in enumerate(found) if c is not None]
    assert len(proved) >= 6
    for i, c in proved:
        votes = Smoothed(ModuleAsk(f), 0.25, 1).votes(x[i] + c.radius * ring, range(24), 4000, "ring")
        # 4000 votes of a class that has just over half of them need not be a majority
        assert (votes[:, y[i]] >= stats.binom.ppf(1e-5, 4000, 0.5)).all()


# Abstention, and other answers that are no certificate


def test_abstains_at_one_half():
    x, y, ids = at(0.0, 300)
    certificates = Cohen(n0=50, n=500, alpha=0.001).certify(ModuleAsk(half_space()), x, y, ids, 0, norm=Norm.L2)
    assert sum(c is not None for c in certificates) <= 3


def test_abstains_when_n_is_too_small_for_alpha():
    x, y, ids = at(100.0)
    assert Cohen(n=9, alpha=0.001).certify(ModuleAsk(half_space()), x, y, ids, 0, norm=Norm.L2) == [
        None
    ]  # 2^-9 > alpha
    assert Cohen(n=10, alpha=0.001).certify(ModuleAsk(half_space()), x, y, ids, 0, norm=Norm.L2) != [None]


def test_another_class_than_the_label_costs_the_selection_only():
    x, y, ids = at(1.0, 2)
    ask = ModuleAsk(half_space())
    assert Cohen().certify(ask, x, 1 - y, ids, 0, norm=Norm.L2) == [None, None]
    assert ask.forwards == 200 + 33  # and two points 16 times, one once alone: is the model itself random?


class Broken(nn.Module):
    """Another answer for a share of the noisy points."""

    def __init__(self, *answer: float) -> None:
        super().__init__()
        self.answer = torch.tensor(answer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 1:2] > 0.3, self.answer, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    "answer", [(torch.nan, 0.0), (torch.nan, torch.nan), (torch.inf, 0.0), (-torch.inf, -torch.inf)]
)
def test_an_answer_that_decides_nothing_votes_for_nobody(answer):
    x, y, ids = at(1.0, 4)
    model = Broken(*answer).eval()
    votes = Smoothed(ModuleAsk(model), 0.25, 0).votes(x, ids, 1000, "v")
    assert ((votes[:, 0] - 500).abs() < 80).all()
    assert (votes[:, 1] == 0).all()
    assert Cohen(n=1000).certify(ModuleAsk(model), x, y, ids, 0, norm=Norm.L2) == [None] * 4


# Draws


def test_selection_and_estimation_share_no_draw():
    x, y, ids = at(5.0)
    ask = Spy(half_space())
    Cohen(n0=100, n=1000).certify(ask, x, y, ids, 0, norm=Norm.L2)
    noise = torch.cat(ask.asked[3:])  # after copies of the point itself, twice, and the point alone
    assert len(noise) == 1100
    assert len(noise.unique(dim=0)) == 1100


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 3), (1, 40, 40)])
def test_the_batch_and_the_company_change_nothing(sequential, shape):
    f = small_net(shape)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(2))
    y, ids = f(x).argmax(1), [4, 8, 15, 16, 23, 42]
    cohen = Cohen(n=700, n0=30, sequential=sequential)

    def run(batch: int, rows: list[int]) -> list:
        mine = [ids[i] for i in rows]
        return cohen.certify(ModuleAsk(f, batch), x[rows], y[rows], mine, 3, norm=Norm.L2, radius_max=0.2)

    whole = run(1000, list(range(6)))
    assert any(c is not None for c in whole)
    assert run(7, list(range(6))) == whole
    assert [c for i in (5, 0, 3) for c in run(64, [i])] == [whole[5], whole[0], whole[3]]
    assert run(256, [5, 4, 3, 2, 1, 0]) == whole[::-1]


def test_other_seeds_ids_and_phases_draw_otherwise():
    f, x = small_net(), torch.zeros(1, 2, 3, 3)
    votes = [
        tuple(Smoothed(ModuleAsk(f), 1.0, seed).votes(x, [i], 2000, phase)[0].tolist())
        for seed, i, phase in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    ]
    assert len(set(votes)) == 4


def test_reads_on_where_it_stopped():
    g, x = Smoothed(ModuleAsk(small_net()), 1.0, 0), torch.zeros(2, 2, 3, 3)
    streams = g.streams([0, 1], "p", x.device)
    twice = g.count(x, streams, 256) + g.count(x, streams, 256)
    assert torch.equal(twice, g.votes(x, [0, 1], 512, "p"))


def test_leaves_input_and_global_generator_alone():
    x, y, ids = at(0.3, 2)
    ask, before, state = ModuleAsk(half_space()), x.clone(), torch.get_rng_state()
    Cohen(n=500).certify(ask, x, y, ids, 0, norm=Norm.L2)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_does_not_grow_with_n_and_batches_are_full():
    sizes = []
    for n in (1000, 20_000):
        x, _, ids = at(0.5, 3)
        ask = Spy(half_space(), batch=100)
        Smoothed(ask, 0.25, 0).votes(x, ids, n, "v")
        assert {len(rows) for rows in ask.asked} == {100}
        assert ask.forwards == 3 * n
        sizes.append(max(ask.buffers))
    assert sizes[0] == sizes[1] == (100 + 256) * 3 * 4


def test_progress_reaches_the_end_once():
    for sequential in (False, True):
        x, y, ids = at(0.2, 5)
        seen: list[int] = []
        Cohen(n=3000, sequential=sequential).certify(
            ModuleAsk(half_space(), 100), x, y, ids, 0, norm=Norm.L2, radius_max=0.2, progress=seen.append
        )
        assert seen[-1] == 5
        assert all(a <= b for a, b in pairwise(seen))


def test_noise_reaches_as_far_as_53_bits_do_and_is_normal(monkeypatch):
    """A float32 generator ends at 5.77 sigma: of 150,528 numbers one is beyond in 0.12 % of real draws."""
    stream = torch.Generator().manual_seed(0)
    z = normal((400_001,), stream, torch.device("cpu"))
    assert z.dtype is torch.float64
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    half = 200_000
    assert abs(float((z[:half] * z[-half:]).mean())) < 5 / half**0.5
    assert abs(float((z[:half].square() * z[half + 1 :].square()).mean()) - 1) < 0.05  # the two of a pair
    monkeypatch.setattr(torch, "rand", lambda n, **more: torch.full((n,), 1 - 2.0**-53, dtype=torch.float64))
    assert (
        float(normal((2,), stream, torch.device("cpu")).abs().max())
        == pytest.approx(REACH)
        == pytest.approx(8.571, abs=1e-3)
    )
    monkeypatch.setattr(torch, "rand", lambda n, **more: torch.zeros(n, dtype=torch.float64))
    assert normal((3,), stream, torch.device("cpu")).tolist() == [0.0, 0.0, 0.0]  # and none is infinite


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rounding_is_a_part_of_the_base_classifier(dtype):
    """What f gets is the float64 sum rounded once, whatever the size of x."""
    ask = Spy(nn.Identity().eval(), batch=64)
    x = torch.full((1, 4), 1000.0, dtype=dtype)
    g = Smoothed(ask, 0.01, 0)
    g.votes(x, [5], 64, "p")
    noise = normal((64, 4), g.streams([5], "p", x.device)[0], x.device)
    assert ask.asked[0].dtype is dtype
    assert torch.equal(ask.asked[0], (noise * 0.01 + 1000.0).to(dtype))


def test_what_noise_cannot_reach_is_taken_off_and_said():
    x, y, ids = at(100.0)
    (c,) = Cohen(n=1000).certify(ModuleAsk(half_space()), x, y, ids, 0, norm=Norm.L2)
    assert "8.57 sigma" in c.arithmetic
    assert c.radius == pytest.approx(0.25 * special.ndtri(0.001 ** (1 / 1000) - missed(3)), rel=1e-12)
    # of all draws in d dimensions the part with a pair beyond is at most d 2^-53
    assert missed(10**6) >= 10**6 * np.exp(-(REACH**2) / 2) * (1 - 1e-9)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_base_classifier_that_draws_at_random_itself_is_refused(sequential):
    class Noisy(nn.Module):
        def forward(self, x):
            return half_space()(x + 0.1 * torch.randn_like(x))

    x, y, ids = at(1.0, 3)
    for model in (Noisy().eval(), nn.Sequential(_Live(), half_space()).eval()):
        with pytest.raises(UnsupportedError, match="differently each time"):
            Cohen(n=100, sequential=sequential).certify(
                ModuleAsk(model), x, y, ids, 0, norm=Norm.L2, radius_max=0.1 if sequential else None
            )


class _Live(nn.Module):
    """A dropout that stays on in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


# The sequential mode


def test_wealth_is_a_martingale():
    p, k, n = 0.3, np.arange(8), 7
    now = np.exp(log_wealth(k, n, p))
    heads, tails = np.exp(log_wealth(k + 1, n + 1, p)), np.exp(log_wealth(k, n + 1, p))
    assert p * heads + (1 - p) * tails == pytest.approx(now)
    assert stats.binom.pmf(k, n, p) @ now == pytest.approx(1.0)


@pytest.mark.parametrize("p", [0.5, 0.84, 0.99])
def test_betting_is_valid_at_all_times_together_and_peeking_is_not(p):
    runs, steps, alpha = 3000, 1000, 0.05
    tosses = np.random.default_rng(0).random((runs, steps)) < p
    k = tosses.cumsum(1)
    betting = np.zeros(runs, dtype=bool)
    peeking = np.zeros(runs, dtype=bool)
    for n in range(1, steps + 1):
        heads = k[:, n - 1]
        # the lower bound exceeds p exactly when the bet against p is won by heads
        betting |= (log_wealth(heads, n, p) >= np.log(1 / alpha)) & (heads > n * p)
        if n % 25 == 0:
            assert ((betting_lower(heads, n, alpha) > p) <= betting).all()
            peeking |= one_sided_lower(heads, n, alpha) > p
    assert betting.sum() <= stats.binom.ppf(0.999, runs, alpha)
    assert peeking.mean() > 2 * alpha  # what the bet is for; also shows that the simulation can tell


def test_sequential_decisions_hold_at_level_alpha():
    runs, alpha, radius = 3000, 0.1, 0.2
    x, y, ids = at(radius * 0.9999, runs)
    cohen = Cohen(n=1500, alpha=alpha, sequential=True)
    found = radii(cohen.certify(ModuleAsk(half_space(), 4096), x, y, ids, 0, norm=Norm.L2, radius_max=radius))
    wrong = int((found > radius * 0.9999).sum())
    assert 0 < wrong <= stats.binom.ppf(0.999, runs, alpha)


def test_sequential_agrees_with_fixed_at_a_fraction_of_the_draws():
    far, near, lost = at(0.6, 10), at(0.1, 10), at(-0.5, 10)
    x, y, ids = torch.cat([far[0], near[0], lost[0]]), torch.zeros(30, dtype=torch.int64), range(30)
    fixed, early = ModuleAsk(half_space()), ModuleAsk(half_space())
    a = radii(Cohen().certify(fixed, x, y, ids, 0, norm=Norm.L2, radius_max=0.25)) >= 0.25
    b = radii(Cohen(sequential=True).certify(early, x, y, ids, 0, norm=Norm.L2, radius_max=0.25)) >= 0.25
    assert a.tolist() == b.tolist() == [True] * 10 + [False] * 20
    assert early.forwards * 50 < fixed.forwards


def test_sequential_at_its_cap_is_nearly_the_fixed_bound():
    x, y, ids = at(0.3, 20)
    fixed = radii(Cohen().certify(ModuleAsk(half_space()), x, y, ids, 0, norm=Norm.L2))
    capped = radii(Cohen(sequential=True).certify(ModuleAsk(half_space()), x, y, ids, 0, norm=Norm.L2, radius_max=0.31))
    assert np.median(capped) > 0.98 * np.median(fixed)
    assert (capped <= 0.3).all()


def test_sequential_decides_in_the_norm_that_was_asked():
    x, y, ids = at(0.4, d=4)
    cohen = Cohen(sequential=True)
    for radius, reached in [(0.15, True), (0.3, False)]:
        (c,) = cohen.certify(ModuleAsk(half_space(4)), x, y, ids, 0, norm=Norm.LINF, radius_max=radius)
        assert (c is not None and c.radius >= radius) == reached
        assert c is None or c.radius <= 0.2


def test_sequential_needs_a_radius():
    x, y, ids = at(0.3)
    with pytest.raises(UsageError, match="radius_max"):
        Cohen(sequential=True).certify(ModuleAsk(half_space()), x, y, ids, 0, norm=Norm.L2)


# The predictor


def test_prediction_abstains_at_a_tie_and_is_rarely_wrong():
    g, alpha = Smoothed(ModuleAsk(half_space()), 0.25, 0), 0.05
    x, _, ids = at(0.01, 3000)
    label, p_value = g.predict(x, ids, 200, alpha)
    assert int((label == 1).sum()) <= stats.binom.ppf(0.999, 3000, alpha)
    assert ((label == -1) == (p_value > alpha)).all()
    assert int((label == -1).sum()) > 2000
    assert (g.predict(*at(1.0)[::2], 200, alpha)[0] == 0).all()


def test_prediction_is_the_two_sided_binomial_test():
    g = Smoothed(ModuleAsk(small_net()), 1.0, 0)
    x = torch.zeros(1, 2, 3, 3)
    first, second = sorted(g.votes(x, [0], 100, "predict")[0].tolist())[:0:-1]
    _, p_value = g.predict(x, [0], 100, 0.01)
    assert p_value.item() == pytest.approx(stats.binomtest(first, first + second, 0.5).pvalue)


# The surrogate


def test_surrogate_is_deterministic_and_the_same_for_each_row():
    f = small_net()
    g = SmoothedSurrogate(f, sigma=0.5, k=6, seed=0)
    x = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    assert torch.equal(g(x), g(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(g(x)[3:4], g(x[3:4]), atol=1e-6)
    assert not torch.allclose(g(x), SmoothedSurrogate(f, sigma=0.5, k=6, seed=1)(x))
    assert not g.training
    assert list(g.state_dict()) == [f"module.{name}" for name in f.state_dict()]


def test_surrogate_is_the_log_of_the_mean_softmax():
    f, x = half_space(), torch.tensor([[0.2, 0.0, 0.0]])
    g = SmoothedSurrogate(f, sigma=0.5, k=40_000, seed=0)
    z = np.random.default_rng(0).normal(0.2, 0.5, 400_000)
    assert g(x).exp()[0, 0].item() == pytest.approx(special.expit(z).mean(), abs=0.003)


def test_surrogate_gradient():
    g = SmoothedSurrogate(small_net().double(), sigma=0.5, k=4, seed=0)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(g, (x,))


# The contract


def test_refusals():
    x, y, ids = at(0.3, 2)
    ask, cohen = ModuleAsk(half_space()), Cohen()
    with pytest.raises(UnsupportedError, match="l0"):
        cohen.certify(ask, x, y, ids, 0, norm=Norm.L0)
    with pytest.raises(UsageError, match="floating"):
        cohen.certify(ask, x.long(), y, ids, 0, norm=Norm.L2)
    with pytest.raises(UsageError, match="as many labels"):
        cohen.certify(ask, x, y[:1], ids, 0, norm=Norm.L2)
    with pytest.raises(UsageError, match="as many labels"):
        cohen.certify(ask, x, y, [0], 0, norm=Norm.L2)
    with pytest.raises(UsageError, match="radius_max"):
        cohen.certify(ask, x, y, ids, 0, norm=Norm.L2, radius_max=0.0)
    with pytest.raises(UsageError, match="eval"):
        ModuleAsk(half_space().train())
    for bad in ({"sigma": 0.0}, {"n": 0}, {"n0": 0}, {"alpha": 1.0}):
        with pytest.raises(UsageError):
            Cohen(**bad).certify(ask, x, y, ids, 0, norm=Norm.L2)


def test_no_samples():
    assert Cohen().certify(ModuleAsk(half_space()), torch.zeros(0, 3), torch.zeros(0).long(), [], 0, norm=Norm.L2) == []


def test_ask_counts_rows_and_leaves_no_trace_on_the_model():
    f = small_net()
    ask = ModuleAsk(f, batch=4)
    x = torch.randn(10, 2, 3, 3)
    a, b = torch.zeros(10).long(), torch.full((10,), 2)
    leaf = x.clone().requires_grad_()
    answer = f(leaf)
    (answer[:, 0] - answer[:, 2]).sum().backward()
    f.zero_grad(set_to_none=True)
    assert torch.allclose(ask.gradient(x, a, b), leaf.grad, atol=1e-6)
    assert torch.allclose(ask.logits(x), answer, atol=1e-6)
    assert (ask.forwards, ask.backwards) == (20, 10)
    assert all(p.grad is None and p.requires_grad for p in f.parameters())
    assert not x.requires_grad
    assert not ask.logits(x).requires_grad


class _Manners(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        return self.act(x)


def _centred(x):
    return x - x.mean(0, keepdim=True)


def _halves(x):
    with torch.no_grad():
        x.sub_(0.5)
    return x


class TestWhatTheModelDoes:
    def test_a_model_that_writes_into_its_input_moves_no_sample(self):
        x = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
        before, y = x.clone(), (x[:, 1] > x[:, 0]).long()
        plain, writes = (
            Cohen(sigma=0.1, n=300).certify(ModuleAsk(_Manners(act).eval()), x, y, range(4), 0, norm=Norm.L2)
            for act in (lambda z: z - 0.5, _halves)
        )
        assert torch.equal(x, before)
        assert writes == plain
        assert any(plain)

    def test_an_answer_that_depends_on_the_batch_is_refused(self):
        x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        with pytest.raises(UnsupportedError, match="depends on the others in its batch"):
            Cohen(n=50).certify(ModuleAsk(_Manners(_centred).eval()), x, torch.tensor([1, 0]), [0, 1], 0, norm=Norm.L2)

    @pytest.mark.parametrize(
        ("act", "words"),
        [
            (lambda z: (z, z), "answers with tuple"),
            (lambda z: z[:, :1], "single output"),
            (lambda z: z[:1], "must answer"),
        ],
    )
    def test_answers_that_are_no_scores_are_refused(self, act, words):
        ask = ModuleAsk(_Manners(act).eval())
        with pytest.raises(ModelError, match=words):
            Cohen(n=50).certify(ask, torch.rand(4, 2), torch.zeros(4).long(), range(4), 0, norm=Norm.L2)
