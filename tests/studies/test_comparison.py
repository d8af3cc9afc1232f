"""Attacks side by side: budgets are kept, distances are true, curves only fall."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from holdfast.attacks.evasion.soft.square import Square
from holdfast.attacks.evasion.white.deepfool import DeepFool
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Goal, Norm
from holdfast.numerics.affine import affine_optimum
from holdfast.report.studies import page
from holdfast.session.allowance import candidates
from holdfast.studies.comparison import compare
from holdfast.testing.toys import affine_digits, digits, net

PASSES = 240


@pytest.fixture(scope="module")
def problem():
    x, y = digits(24)
    return Problem.of(x, y, LpBall.uniform(Norm.L2, 1.0, 24, dtype=torch.float64))


@pytest.fixture(scope="module")
def found(problem):
    attacks = {"deepfool": DeepFool(), "pgd": PGD(), "square": Square()}
    return compare(affine_digits(), problem, attacks, passes=PASSES)


def test_the_radius_search_comes_near_the_optimum_and_never_below(problem, found):
    model = affine_digits()
    edges = torch.zeros(()).double(), torch.ones(()).double()
    best = affine_optimum(Norm.L2, model.weight.detach(), model.bias.detach(), problem.x, problem.y, *edges).distance
    best = best[best > 0].numpy()
    by_name = {e.name: e for e in found.entries}
    for name, most in (("deepfool", 1.001), ("pgd", 1.05)):
        ratio = np.array(by_name[name].distance, dtype=float) / best
        assert ratio.min() >= 1 - 1e-6
        assert np.median(ratio) <= most
    assert by_name["square"].success > 0.5


def test_no_sample_costs_more_than_the_passes(found):
    assert all(e.forwards + e.backwards <= PASSES for e in found.entries)


def test_curves_fall_and_end_at_the_median(found):
    for e in found.entries:
        told = [d for _, d in e.curve if d is not None]
        assert all(b <= a for a, b in pairwise(told))
        assert told[-1] == pytest.approx(e.median, rel=1e-9)
        assert found.best <= e.median
        assert e.area >= e.median - 1e-12


def test_entries_are_ordered_by_their_medians(found):
    assert found.entries[0].name == "deepfool"
    assert [e.median for e in found.entries] == sorted(e.median for e in found.entries)


def test_what_cannot_serve_is_told_and_does_not_end_the_rest(problem):
    edge = torch.full((), float("inf"), dtype=torch.float64)
    boundless = replace(problem, set=replace(problem.set, lower=-edge, upper=edge))
    found = compare(net(), boundless, {"deepfool": DeepFool(), "pgd": PGD()}, passes=80)
    assert [e.name for e in found.entries] == ["deepfool"]
    assert "box with edges" in found.refused["pgd"]


def test_candidates_keep_to_norm_goal_and_access():
    assert "deepfool" not in candidates(Norm.L0, Goal.UNTARGETED, Access.WHITE_BOX)
    hard = candidates(Norm.L2, Goal.UNTARGETED, Access.HARD_LABEL)
    assert "hopskipjump" in hard
    assert "square" not in hard
    assert "surrogate_transfer" not in candidates(Norm.L2, Goal.UNTARGETED, Access.WHITE_BOX)


def test_the_page_shows_every_attack(found):
    shown = page(found, "affine digits")
    assert all(e.title in shown for e in found.entries)
    assert shown.count('class="line series') >= 3
