"""What a model's logits are counted in is no business of an attack's: they are told in a unit of each sample's own."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from holdfast.attacks.engine import Run, run
from holdfast.core.criterion import AnyOf, Misclassified, RegressionMargin, Targeted, WithDetector
from holdfast.core.problem import Problem
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.inquiry import Inquiry
from holdfast.judge.ledger import Budget
from holdfast.judge.units import ScoreUnits
from holdfast.testing.toys import digits, net

N = 6


class After(nn.Module):
    def __init__(self, after, dtype=torch.float64):
        super().__init__()
        self.inner, self.after = net(dtype), after

    def forward(self, x):
        return self.after(self.inner(x))


def times(by):
    return After(lambda s: s * by)


def problem_of(norm=Norm.LINF, eps=0.2, dtype=torch.float64, **more):
    x, y = digits(N, dtype)
    return Problem.of(x, y, LpBall.uniform(norm, eps, N, dtype=dtype), **more)


def oracle_of(model, problem, access=Access.WHITE_BOX, top_k=None, **more):
    inquiry = Inquiry.of(model.eval(), problem, units=ScoreUnits(problem, top_k), **more)
    return inquiry, inquiry.oracle(access)


def told(model, problem, **more):
    _, oracle = oracle_of(model, problem, **more)
    oracle.clean(problem.rows)
    return oracle.logits(problem.x, problem.rows)[0]


def test_usual_logits_are_told_bit_for_bit_and_cost_nothing_more():
    problem = problem_of()
    with torch.no_grad():
        scores = net().eval()(problem.x)
    assert torch.equal(told(net(), problem), scores)
    assert torch.equal(told(times(0.5), problem), scores / 2)
    net().train()
    for attack in ("pgd", "square"):
        runs = [run(method(attack)(), problem, m, budget=Budget(passes=60)) for m in (net(), times(1.0))]
        assert torch.equal(runs[0].x, runs[1].x)


@pytest.mark.parametrize("power", [-60, -20, 12, 20, 60])
def test_every_scale_that_is_not_usual_is_told_as_the_same_one(power):
    problem = problem_of()
    assert torch.equal(told(times(2.0**power), problem), told(times(2.0**-21), problem))
    assert torch.equal(told(times(-(2.0**power)), problem), told(times(-(2.0**-21)), problem))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("by", [2.0**-8, 2.0**8])
def test_logits_of_every_type_stay_finite_and_exact(dtype, by):
    problem = problem_of(dtype=torch.float32)
    plain = After(lambda s: s.to(dtype), torch.float32)
    got = told(After(lambda s: s.to(dtype) * by, torch.float32), problem).double()
    unit = got / told(plain, problem).double()
    assert got.isfinite().all()
    assert torch.equal(unit, unit[:, :1].expand_as(unit))
    assert torch.equal(unit[:, 0].log2(), unit[:, 0].log2().round())


def test_gradients_and_jacobians_are_those_of_what_is_told():
    problem = problem_of()
    y = problem.y.unsqueeze(1)
    for model in (times(2.0**-20), times(2.0**20)):
        inquiry, oracle = oracle_of(model, problem)
        oracle.clean(problem.rows)
        scores, _ = oracle.logits(problem.x, problem.rows)
        g = oracle.gradient(problem.x, problem.rows, lambda s, y: s.gather(1, y).squeeze(1), y)
        j = oracle.jacobian(problem.x, problem.rows, y)
        assert torch.equal(g.scores, scores)
        assert torch.equal(g.value, scores.gather(1, y).squeeze(1))
        assert torch.allclose(g.grad, j.grad[:, 0])
        step = 1e-6 * torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(0)).double()
        moved, _ = oracle.logits(problem.x + step, problem.rows)
        change = (moved - scores).gather(1, y).squeeze(1)
        assert torch.allclose((g.grad * step).flatten(1).sum(1), change, rtol=1e-3)
        real = model(problem.x).detach()
        assert torch.equal(
            inquiry.archive.low_margin <= problem.criterion.margin(real, problem.y, problem.target), torch.ones(N) > 0
        )
    net().train()


def test_a_sample_near_an_edge_between_two_classes_has_no_small_scores():
    near = torch.tensor([[0.3, 0.302], [5.0, -4.0], [1e-5, 3e-5], [1e5, -3e5]])
    assert _units(near).tolist() == [1.0, 1.0, 2.0**20, 2.0**-15]


def test_masked_classes_and_ties_do_not_set_the_unit():
    some = torch.tensor([[3.0, 2.0, -4.0, -6.0, -1e9, -1e30], [3e-4, 2e-4, -4e-4, -6e-4, -1e9, -1e30]])
    assert _units(some).tolist() == [1.0, 2.0**14]
    assert _units(torch.zeros(2, 5)).tolist() == [0.0, 0.0]
    assert _units(torch.tensor([[torch.nan, 1.0, 2.0, 3.0]])).tolist() == [0.0]


def _units(scores, criterion=None, top_k=None):
    x, y = torch.zeros(len(scores), 1), torch.zeros(len(scores), dtype=torch.int64)
    target = y + 1 if isinstance(criterion, Targeted) else None
    ball = LpBall.uniform(Norm.LINF, 1.0, len(scores))
    problem = Problem.of(x, y, ball, target=target, criterion=criterion or Misclassified())
    units = ScoreUnits(problem, top_k)
    units.see(scores, problem.rows)
    return units.values


class Sure(Misclassified):
    """Asks for a whole unit of margin."""

    def margin(self, scores, y, target):
        return super().margin(scores, y, target) + 1


def test_only_a_criterion_that_does_not_see_the_scale_has_another_told():
    tiny = torch.tensor([[3e-4, 2e-4, -4e-4, -6e-4, 5.0]])
    assert _units(tiny[:, :4]).item() != 1
    assert _units(tiny[:, :4], Targeted()).item() != 1
    assert _units(tiny, WithDetector(Misclassified())).item() != 1, "the detector's own score is no class"
    assert _units(tiny[:, :4].unsqueeze(1), AnyOf(Misclassified())).item() != 1
    for criterion in (Sure(), AnyOf(Sure()), WithDetector(Sure()), RegressionMargin(0.1)):
        assert not criterion.blind_to_scale
        assert _units(tiny, criterion).item() == 0


@dataclass(frozen=True)
class _Confident(method("pgd")):
    kappa: float = 0.5


def test_a_confidence_is_in_the_logits_of_the_model():
    job = Run(_Confident(), problem_of(), times(2.0**-20))
    job.advance()
    assert job.search.units.plain
    assert not (job.outcome().distance > 0).logical_and(job.outcome().found).any()


def test_the_first_answer_sets_the_unit_whatever_the_batches():
    problem = problem_of()
    away = torch.cat([problem.x, (problem.x * 0.3).flip(0)])
    rows = torch.cat([problem.rows, problem.rows.flip(0)])
    known = []
    for batch in (1, 5, 12):
        inquiry, oracle = oracle_of(times(2.0**-18), problem, micro_batch=batch)
        oracle.logits(away, rows)
        oracle.gradient(away.flip(0), rows.flip(0), lambda s: s.sum(1))
        known.append(inquiry.units.values)
        assert not inquiry.units.open
    net().train()
    clean, oracle = oracle_of(times(2.0**-18), problem)
    oracle.clean(problem.rows)
    assert all(torch.equal(k, clean.units.values) for k in known)


@pytest.mark.parametrize("top_k", [2, 4, 9])
def test_what_is_not_shown_is_shared_alike_in_every_unit(top_k):
    problem = problem_of()
    _, oracle = oracle_of(times(2.0**-20), problem, Access.SOFT_LABEL, top_k=top_k)
    _, whole = oracle_of(times(2.0**-20), problem, Access.SOFT_LABEL)
    oracle.clean(problem.rows)
    log_p, _ = oracle.log_probs(problem.x, problem.rows)
    full, _ = whole.log_probs(problem.x, problem.rows)
    net().train()
    shown = log_p.isfinite()
    assert torch.equal(shown.sum(1), torch.full((N,), top_k))
    assert (log_p.exp().sum(1) <= 1 + 1e-12).all()
    real = [p.amax(1) - p.masked_fill(~shown, torch.inf).amin(1) for p in (log_p, full)]
    ratio = (real[0] / real[1]).log2()
    assert torch.allclose(ratio, ratio.round(), atol=1e-6), "differences of what is shown are those of logits in a unit"


def _small():
    """A network of four classes in which the first soft-label faults of this kind were found."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4))
        x = torch.rand(5, 1, 4, 4) * 0.6 + 0.2
    with torch.no_grad():
        base[3].weight *= 3
        base[3].bias -= base(x).mean(0)
        return base, x, base(x).argmax(1)


@pytest.mark.parametrize(
    ("name", "norm", "eps"),
    [
        ("zoo", Norm.L2, 0.8), ("zo_svrg", Norm.L2, 0.8), ("autozoom", Norm.L2, 0.8), ("nes", Norm.LINF, 0.2),
        ("finite_differences", Norm.LINF, 0.2), ("zo_signsgd", Norm.LINF, 0.2), ("pgd", Norm.LINF, 0.2),
        ("apgd_ce", Norm.LINF, 0.2),
    ],
)  # fmt: skip
def test_no_constant_before_the_logits_hides_a_sample(name, norm, eps):
    base, x, y = _small()
    problem = Problem.of(x, y, LpBall.uniform(norm, eps, len(x)))

    def found(after):
        return int(run(method(name)(), problem, lambda z: after(base(z)), budget=Budget(queries=600)).found.sum())

    assert found(lambda s: s) == 5
    for after in (
        lambda s: s * 1e-4, lambda s: s * 1e-6, lambda s: s * 1e3, lambda s: s * 1e6, lambda s: s.double() * 1e-9,
        lambda s: s.double() * 1e-9 + 1,
    ):  # fmt: skip
        assert found(after) >= 4
