"""Min-max over domains: the simplex, one domain, the worst domain; and how archive and referee judge domains."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from holdfast.attacks.engine import Run, run
from holdfast.attacks.evasion.white.min_max import MinMax
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.criterion import AllOf, AnyOf, Misclassified, Targeted
from holdfast.core.errors import ModelError, UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Goal, Norm
from holdfast.judge.archive import Keep
from holdfast.judge.referee import Referee, Ruling
from holdfast.models.domains import Domains
from holdfast.numerics.project import project_on_simplex
from holdfast.testing.toys import AffineModel, digits, net
from holdfast.transforms.geometry import RotationTranslation
from holdfast.transforms.random_transform import RandomTransform


def problem_of(n=12, eps=0.12, norm=Norm.LINF, criterion=None, **more):
    x, y = digits(n)
    return Problem.of(x, y, LpBall.uniform(norm, eps, n, dtype=torch.float64), criterion=criterion, **more)


class TestSimplex:
    @given(st.integers(0, 10**6), st.integers(1, 6))
    @settings(max_examples=40, deadline=None)
    def test_it_is_the_nearest_point(self, seed, k):
        w = np.random.default_rng(seed).normal(scale=2.0, size=k)
        ours = project_on_simplex(torch.from_numpy(w)[None])[0].numpy()
        assert (ours >= 0).all()
        assert ours.sum() == pytest.approx(1.0, abs=1e-12)
        # Optimal exactly if w - p is constant on the support and no larger off it.
        rest = w - ours
        level = rest[ours > 0]
        assert np.ptp(level) < 1e-9
        assert (rest[ours == 0] <= level.max() + 1e-9).all()
        solved = minimize(
            lambda p: ((p - w) ** 2).sum(), np.full(k, 1 / k), bounds=[(0, 1)] * k,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1}, options={"ftol": 1e-12},
        )  # fmt: skip
        assert ((ours - w) ** 2).sum() <= solved.fun + 1e-7

    def test_points_of_it_stay_and_shifts_do_not_matter(self):
        w = torch.tensor([[0.2, 0.3, 0.5]]).double()
        assert torch.allclose(project_on_simplex(w), w, atol=1e-15)
        assert torch.allclose(project_on_simplex(w + 1e6), w, atol=1e-9)
        assert project_on_simplex(torch.tensor([[1e12, 0.0], [3.0, 3.0]]).double()).tolist() == [[1.0, 0.0], [0.5, 0.5]]


class TestOneDomain:
    @pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
    def test_it_is_pgd(self, norm):
        problem = problem_of(eps={Norm.L1: 4.0, Norm.L2: 0.8, Norm.LINF: 0.12}[norm], norm=norm)
        same = {"steps": 9, "loss": "margin", "random_start": False}
        theirs = run(PGD(**same), problem, net(), keep=Keep.NEAREST)
        for model, criterion in ((net(), Misclassified()), (Domains([net()]), AllOf(Misclassified()))):
            ours = run(MinMax(**same), replace(problem, criterion=criterion), model, keep=Keep.NEAREST)
            assert torch.equal(ours.x, theirs.x)
            assert torch.equal(ours.distance, theirs.distance)

    def test_parameters_below_0_are_refused(self):
        with pytest.raises(UsageError, match="gamma"):
            run(MinMax(gamma=-1.0), problem_of(), net())


def easy_and_hard():
    """One feature moves an easy model past 0.1, the other a hard one past 0.4; an l2 ball of 0.42 holds both.

    The mean of the two losses has its steepest direction in the easy one's feature: equal weights spend the budget there.
    """
    easy = AffineModel(torch.tensor([[0.0, 0.0], [100.0, 0.0]]).double(), torch.tensor([0.0, -10.0]).double())
    hard = AffineModel(torch.tensor([[0.0, 0.0], [0.0, 10.0]]).double(), torch.tensor([0.0, -4.0]).double())
    return [easy, hard]


class TestDomains:
    def test_the_worst_domain_needs_weights(self):
        x, y = torch.zeros(1, 2).double(), torch.tensor([0])
        problem = Problem.of(
            x, y, LpBall.uniform(Norm.L2, 0.45, 1, dtype=torch.float64), criterion=AllOf(Misclassified())
        )
        group = Domains(easy_and_hard())
        equal = MinMax(rate=0.0, random_start=False)
        assert not bool(run(equal, problem, group).found[0])
        found = run(MinMax(random_start=False), problem, group)
        assert bool(found.found[0])
        assert bool((group(found.x).argmax(-1) == 1).all())

    def test_the_weights_stay_on_the_simplex_and_go_to_the_hardest(self):
        x, y = torch.zeros(3, 2).double(), torch.zeros(3, dtype=torch.int64)
        problem = Problem.of(
            x, y, LpBall.uniform(Norm.L2, 0.3, 3, dtype=torch.float64), criterion=AllOf(Misclassified())
        )
        job = Run(MinMax(random_start=False), problem, Domains(easy_and_hard()), keep=Keep.NEAREST)
        job.advance(30)
        weight = job._state.weight
        assert torch.allclose(weight.sum(1), torch.ones(3).double())
        assert bool((weight >= 0).all())
        assert bool((weight[:, 1] > 0.6).all())

    def test_it_breaks_as_many_under_the_worst_of_several_views_as_equal_weights(self):
        turn = RotationTranslation((1, 8, 8), 25.0, 0.1)
        group = Domains([net(), *(RandomTransform(net(), turn, seed=k) for k in range(3))])
        problem = problem_of(48, eps=0.07, criterion=AllOf(Misclassified()))
        ours, equal = (run(MinMax(steps=20, rate=r), problem, group) for r in (1 / 8, 0.0))
        assert int(ours.found.sum()) >= int(equal.found.sum())
        rows = ours.found.nonzero().squeeze(-1)
        group.eval()
        assert bool((group(ours.x[rows]).argmax(-1) != problem.y[rows, None]).all())
        group.train()

    def test_the_referee_asks_every_domain(self):
        group = Domains([net(), AffineModel(torch.zeros(10, 64).double(), torch.eye(10)[3].double())])
        problem = problem_of(criterion=AllOf(Misclassified()))
        once = run(PGD(steps=10), problem_of(), net())
        rows = once.found.numpy().nonzero()[0]
        part = problem.select(rows)
        ruled = Referee(group).judge(part, once.x[rows])
        assert [r is Ruling.HOLDS for r in ruled.ruling] == (part.y != 3).tolist()
        anyone = Referee(group).judge(replace(part, criterion=AnyOf(Misclassified())), once.x[rows])
        assert all(r is Ruling.HOLDS for r in anyone.ruling)

    def test_targets_of_the_inner_criterion_are_targets(self):
        y = digits(6)[1]
        problem = problem_of(6, eps=0.4, target=(y + 1) % 10, criterion=AllOf(Targeted()))
        assert problem.goal is Goal.TARGETED
        found = run(MinMax(steps=20), problem, Domains([net(), net()]))
        assert bool(found.found.any())
        model = net().eval()
        assert torch.equal(model(found.x).argmax(1)[found.found], problem.target[found.found])
        model.train()

    def test_who_cannot_serve_domains_says_so(self):
        problem = problem_of(criterion=AllOf(Misclassified()))
        with pytest.raises(UnsupportedError, match="min_max"):
            run(PGD(), problem, Domains([net(), net()]))
        with pytest.raises(ModelError, match="domains"):
            run(MinMax(), problem, net())
        with pytest.raises(ModelError, match="agree"):
            Domains([nn.Identity(), nn.Linear(3, 2)])(torch.zeros(1, 3))
