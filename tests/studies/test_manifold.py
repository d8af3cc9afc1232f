"""The study of on-manifold error against test error."""

from __future__ import annotations

import pytest
import torch

from holdfast.attacks.evasion.semantic.on_manifold import OnManifold
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.data.load import load_data
from holdfast.report.studies import page
from holdfast.studies.manifold import ManifoldResult, compare_on_manifold, models_of_sizes


@pytest.fixture(scope="module")
def found() -> ManifoldResult:
    known, test = load_data("digits:train"), load_data("digits:test").head(60)
    models = models_of_sizes(known, [40, 200, 800], epochs=6)
    problem = Problem.of(test.x, test.y, LpBall.uniform(Norm.LINF, 0.1, 60))
    method = OnManifold(epochs=12, steps=8, restarts=1)
    return compare_on_manifold(models, problem, known.head(800), method, regular_steps=8)


def test_on_manifold_errors_fall_with_the_test_error(found: ManifoldResult) -> None:
    """Stutz et al. 2019: on-manifold examples are errors of generalisation; regular ones leave the manifold."""
    test, on = [r.test_error for r in found.rows], [r.on_manifold_error for r in found.rows]
    assert test == sorted(test, reverse=True)
    assert on[0] > on[-1]
    assert found.rank_on is not None
    assert found.rank_on > 0.8
    for row in found.rows:
        assert row.regular_error >= row.test_error  # the attack may leave a sample as it is
        assert row.test_interval[0] <= row.test_error <= row.test_interval[1]
    worst = found.rows[0]
    assert worst.off_on is not None
    assert worst.off_regular is not None
    assert worst.off_on < 0.3 * found.off_clean < worst.off_regular


def test_the_page_shows_every_model_and_loads_nothing(found: ManifoldResult) -> None:
    shown = page(found, "<digits>", "holdfast study manifold")
    for row in found.rows:
        assert row.name in shown
    assert shown.count('class="dot series s0"') >= len(found.rows)
    assert "&lt;digits&gt;" in shown
    assert "http://" not in shown.replace("http://www.w3.org", "")
    assert "https://" not in shown


def test_sizes_that_the_data_do_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="training sizes"):
        models_of_sizes(load_data("digits:train").head(20), [10, 30])
    problem = Problem.of(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), LpBall.uniform(Norm.LINF, 0.1, 0))
    with pytest.raises(UsageError, match="at least one"):
        compare_on_manifold({}, problem, load_data("digits:train").head(20))
