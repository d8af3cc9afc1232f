"""Substitute training: what is asked, of whom it is charged, and that imitation grows with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from holdfast.attacks.evasion.transfer.substitute import Substitute
from holdfast.attacks.shared import evaluate, fit
from holdfast.core.errors import UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.ledger import Budget
from holdfast.models.zoo import substitute
from holdfast.testing.toys import Queried, digits, net

QUICK = Substitute(rounds=2)


def problem_of(n, offset=0, eps=0.2, **more):
    x, y = digits(offset + n)
    ball = LpBall.uniform(Norm.LINF, eps, n, dtype=torch.float64, **more)
    return Problem.of(x[offset:], y[offset:], ball, ids=np.arange(offset, offset + n))


def victim(tells=lambda scores: scores):
    """The network behind a query interface; it keeps what it was asked."""
    return Queried(net(), tells)


def labels_only(scores):
    return torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1]).to(scores).log()


def agreement(made, x):
    """Share of inputs to which the substitute answers as the victim does."""
    model = substitute(tuple(made.facts["shape"]), made.facts["classes"])
    model.load_state_dict({k.removeprefix("weights."): v for k, v in made.tensors.items()})
    with torch.no_grad():
        right = net().eval()(x).argmax(1)
        net().train()
        return float((model(x.float()).argmax(1) == right).double().mean())


def test_each_round_doubles_the_inputs_and_charges_the_sample_they_stem_from():
    made = fit(replace(QUICK, rounds=3), problem_of(10), victim())
    assert made.ledger.queries.tolist() == [8] * 10
    assert made.artefact.facts["inputs"] == 80
    assert (made.ledger.backwards == 0).all()


def test_the_reservoir_holds_the_queries():
    made = fit(Substitute(rounds=4, free_rounds=1, reservoir=15), problem_of(10), victim())
    assert int(made.ledger.queries.sum()) == 10 + 10 + 3 * 15


def test_a_spent_budget_ends_the_asking_not_the_fit():
    made = fit(replace(QUICK, rounds=3), problem_of(10), victim(), budget=Budget(queries=3))
    assert (made.ledger.queries == 3).all()
    assert made.artefact.facts["inputs"] == 30


def test_new_inputs_lie_along_the_jacobian_inside_the_box():
    asked = []

    class Recording(torch.nn.Module):
        differentiable = False

        def forward(self, z):
            asked.append(z)
            return net()(z).detach()

    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :2] = False
    problem = problem_of(6, mask=mask)
    fit(Substitute(rounds=1, move=0.3), problem, Recording())
    first, second = asked
    assert torch.equal(first, problem.x)
    assert (second >= 0).all()
    assert (second <= 1).all()
    assert torch.equal(second[..., :2], first[..., :2])
    moved = (second - first).abs()
    inside = (second > 0) & (second < 1) & (moved > 0)
    torch.testing.assert_close(moved[inside], torch.full_like(moved[inside], 0.3))


@pytest.mark.parametrize("answers", ["scores", "labels"])
def test_imitation_grows_with_the_rounds(answers):
    x, _ = digits(600)
    few, many = (
        agreement(fit(Substitute(rounds=r, answers=answers), problem_of(40), victim()).artefact, x[100:])
        for r in (0, 3)
    )
    assert many > few
    assert many > 0.6


def test_labels_are_enough_and_no_more_is_read():
    """An interface that shows labels alone gives the same substitute as one that shows scores, if labels are asked."""
    quick = replace(QUICK, answers="labels")
    one, other = (fit(quick, problem_of(20), victim(tells)) for tells in (labels_only, lambda scores: scores))
    assert one.artefact.sha256 == other.artefact.sha256


def test_scores_of_the_top_classes_can_be_distilled_too():
    def top(scores):
        log_p = scores.log_softmax(1)
        return log_p.masked_fill(log_p < log_p.topk(3, 1).values[:, -1:], float("-inf"))

    made = fit(QUICK, problem_of(40), victim(top)).artefact
    assert all(bool(t.isfinite().all()) for t in made.tensors.values())


def test_what_breaks_the_substitute_breaks_the_model():
    made = fit(Substitute(rounds=4), problem_of(60), victim()).artefact
    held = problem_of(80, 100)
    learned = evaluate(Substitute(), made, held, net())
    untrained = {f"weights.{k}": v for k, v in substitute((1, 8, 8), 10, seed=5).state_dict().items()}
    idle = evaluate(Substitute(), replace(made, tensors=untrained), held, net())
    assert learned.success > idle.success + 0.2


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (Substitute(answers="logits"), "scores or labels"),
        (Substitute(rounds=-1), "rounds"),
        (Substitute(move=0.0), "lie apart"),
        (Substitute(reservoir=0), "reservoir"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, told):
    with pytest.raises(UsageError, match=told):
        fit(wrong, problem_of(2), victim())


def test_one_victim_and_a_problem():
    with pytest.raises(UsageError, match="learns one model"):
        fit(QUICK, problem_of(2), [victim(), victim()])
    made = fit(replace(QUICK, rounds=0), problem_of(2), victim()).artefact
    with pytest.raises(UsageError, match="hand over the problem"):
        QUICK.apply(made, problem_of(2).x, None)
