"""The predictor of a smoothed model, against its closed form for a linear classifier on a line."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import torch
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from holdfast.core.threat import ThreatModel
from holdfast.core.verdict import Subject
from holdfast.session import open_session
from holdfast.session.smoothed_predictor import SmoothedPredictor, smoothed_subject

SIGMA, DRAWS = 0.5, 1000


class Signs(nn.Module):
    """Class 1 above 0, class 0 below, class 2 never; with a dropout of everything, so that its mode matters."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.weight = nn.Dropout(1.0), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        score = self.drop(self.weight * x)
        return torch.cat([-score, score, torch.full_like(score, -1e9)], 1)


def shares(x: float, seed: int = 0) -> Tensor:
    return SmoothedPredictor(Signs().eval(), SIGMA, seed)(torch.tensor([[x]]))[0]


def test_the_scores_are_the_logs_of_the_shares_of_votes_that_normal_noise_gives() -> None:
    for x in (-0.4, 0.3, 0.5):
        got = shares(x).exp()
        assert abs(float(got[1]) - norm.cdf(x / SIGMA)) < 4 * np.sqrt(0.25 / DRAWS)
        assert abs(float(got.sum()) - 1) < 1e-6  # half a vote is added to each class
    certain = shares(9.0)
    wanted = [log(0.5 / 1001.5), log(1000.5 / 1001.5), log(0.5 / 1001.5)]
    torch.testing.assert_close(certain, torch.tensor(wanted))


def test_it_abstains_where_the_two_first_classes_are_no_more_unequal_than_chance() -> None:
    assert shares(0.0).isnan().all()
    counted = 0
    for x in np.linspace(0.02, 0.1, 9):
        votes = [round(float(v) * (DRAWS + 1.5) - 0.5) for v in shares(float(x)).exp().nan_to_num(0.5)]
        if shares(float(x)).isnan().any():
            continue
        counted += 1
        assert binomtest(max(votes), votes[0] + votes[1], 0.5).pvalue <= 0.001
    assert 0 < counted < 9


class Thirds(nn.Module):
    """A third of the votes for each of two classes, and no usable answer for the rest."""

    def forward(self, x: Tensor) -> Tensor:
        far = norm.ppf(2 / 3) * SIGMA
        score = torch.where(x > far, 1.0, torch.where(x < -far, -1.0, torch.nan))
        return torch.cat([-score, score], 1)


def test_copies_without_an_answer_are_no_votes_against() -> None:
    """Of the third and its double, the double is chosen, though it is not half of all draws."""
    assert SmoothedPredictor(Thirds().eval(), SIGMA, 0)(torch.zeros(1, 1)).isnan().all()
    tilted = SmoothedPredictor(Thirds().eval(), SIGMA, 0)(torch.full((1, 1), 0.2))[0]
    assert tilted.argmax() == 1
    assert 0.4 < float(tilted[1].exp()) < 0.5 + 2 * np.sqrt(0.25 / DRAWS)


def test_an_answer_depends_on_the_seed_and_neither_on_the_batch_nor_on_the_mode_of_the_model() -> None:
    model = Signs().train()
    x = torch.tensor([[0.3], [0.3], [-0.4]])
    together = SmoothedPredictor(model, SIGMA, 0)(x)
    assert model.training
    assert torch.equal(together[0], together[1])
    for k in range(3):
        assert torch.equal(SmoothedPredictor(model, SIGMA, 0)(x[k : k + 1])[0], together[k])
    assert not torch.equal(SmoothedPredictor(model, SIGMA, 1)(x), together)


def test_a_session_of_a_smoothed_model_asks_its_predictor_and_searches_on_a_stand_in() -> None:
    session = open_session(Signs().eval(), (torch.tensor([[0.3], [-0.4]]), [1, 0]), ThreatModel.of("l2", "0.1"), seed=3)
    x = session.inputs(session.ids)
    assert session.model is session.search is session.base
    session = replace(session, sigma=SIGMA)
    assert torch.equal(session.model(x), SmoothedPredictor(Signs().eval(), SIGMA, 3)(x))
    assert session.search is not session.base
    leaf = x.clone().requires_grad_()
    session.search(leaf).sum().backward()
    assert leaf.grad is not None
    assert session.classes == 3
    assert session.referee().runs == ("batch 64", "batch 1")  # its votes are no function that float64 refines


def test_verdicts_on_a_smoothed_model_are_about_its_base_its_noise_and_its_seed() -> None:
    base = Subject("model", "00")
    made = {smoothed_subject(base, sigma, seed) for sigma, seed in ((0.5, 0), (0.25, 0), (0.5, 1))}
    assert len(made) == 3
    assert {(subject.kind, subject.sha256) for subject in made} == {("smoothed", "00")}
