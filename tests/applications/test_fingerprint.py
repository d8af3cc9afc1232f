"""Fingerprints: the model itself and its copies match, an independent model does not."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.applications.fingerprint import Fingerprint
from holdfast.core.cost import Cost
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.threat import Norm, ThreatModel
from holdfast.session.opening import open_session
from holdfast.session.session import Session
from holdfast.session.spec import Surrogates
from holdfast.testing._training_case import clean_digits, learnt, planted, some


def session(seed: int = 0) -> Session:
    threat = ThreatModel(norm=Norm.LINF, eps=Fraction(1, 10))
    return open_session(planted().clean, some(clean_digits()[1], 0, 20), threat, seed=seed)


def test_a_model_and_its_copies_answer_as_planned_an_independent_one_less_often() -> None:
    told = Fingerprint(count=40).run(session())
    assert told.figures["match"] == 1
    assert told.figures["match_of_copies"] > 0.8
    assert told.figures["uniqueness"] == pytest.approx(told.figures["match_of_copies"] - told.control["match"])
    assert told.artefact is not None
    independent = learnt(clean_digits()[0], seed=5)
    with torch.no_grad():
        match = float((independent(told.artefact.x).argmax(1) == told.artefact.y).double().mean())
    assert match < told.figures["match_of_copies"] - 0.2


def test_more_noise_on_the_weights_matches_less() -> None:
    kept = [Fingerprint(count=40, noise=n).run(session()).figures["match_of_copies"] for n in (0.0, 0.05, 1.0)]
    assert kept[0] == 1
    assert kept[0] >= kept[1] > kept[2]


class _Side(nn.Module):
    """Class 0 on the one side of ``edge`` and class 1 on the other, by the sign of its only weight."""

    def __init__(self, edge: float, weight: float = 1.0) -> None:
        super().__init__()
        self.edge, self.weight = edge, nn.Parameter(torch.tensor([weight]))

    def forward(self, x: Tensor) -> Tensor:
        score = self.weight * (x.flatten(1)[:, 0] - self.edge)
        return torch.stack([score, -score], 1)


def _of_side(model: nn.Module, *, seed: int = 0, surrogates: Surrogates | None = None) -> Session:
    """Inputs of one feature in [-1, 3]."""
    threat = ThreatModel(norm=Norm.LINF, eps=Fraction(1, 10), low=-1.0, high=3.0)
    return open_session(model, (torch.zeros(2, 1), [0, 1]), threat, seed=seed, surrogates=surrogates)


def test_inputs_start_anywhere_in_the_range_and_move_by_a_share_of_it() -> None:
    """From the ends of the range to the edge in its middle is half of it, so that every input gets there."""
    told = Fingerprint(count=40, copies=1).run(_of_side(_Side(edge=1.0)))
    assert told.artefact is not None
    x, y = told.artefact.x.flatten(), told.artefact.y
    assert len(x) == 40
    assert torch.equal(y, (x < 1.0).long())
    near = Fingerprint(count=40, copies=1, radius=0.05).run(_of_side(_Side(edge=1.0)))
    assert near.artefact is not None
    assert 0 < len(near.artefact) < 20  # a tenth of all starts are so near
    assert (near.artefact.x - 1.0).abs().max() <= 0.2  # 5 % of 4
    assert near.figures["match"] == 1


@pytest.mark.parametrize("edge", [-0.6, 2.6])
def test_inputs_start_at_both_ends_of_the_range(edge: float) -> None:
    """A tenth of them is beyond the edge, and is led back; the others do not get there."""
    told = Fingerprint(count=80, copies=1, radius=0.02).run(_of_side(_Side(edge)))
    assert told.artefact is not None
    assert set(told.artefact.y.tolist()) == {0, 1}


def test_no_input_is_led_to_the_class_that_it_has() -> None:
    with pytest.raises(UnsupportedError, match="pgd led none of 10 inputs to its class; raise radius or count"):
        Fingerprint(count=10, radius=1e-9).run(_of_side(_Side(edge=1.0)))


def test_every_copy_has_a_noise_of_its_own_of_the_size_of_its_weights() -> None:
    """A copy answers all as planned, or, with its weight's sign turned, nothing."""
    for weight in (1.0, 1000.0):
        told = Fingerprint(count=10, copies=8, noise=1.0).run(_of_side(_Side(1.0, weight)))
        turned = 8 * (1 - told.figures["match_of_copies"])
        assert turned == pytest.approx(round(turned))
        assert 0 < round(turned) < 8  # the share that standard normal numbers below -1 have, 16 %


def test_a_surrogate_is_the_control_and_shuffled_weights_where_there_is_none() -> None:
    same = Fingerprint(count=10, noise=0.0).run(_of_side(_Side(1.0), surrogates=Surrogates(models=(_Side(1.0, 5.0),))))
    assert (same.control["match"], same.figures["uniqueness"], same.notes) == (1, 0, ())
    turned = Surrogates(models=(_Side(1.0, -1.0),))
    other = Fingerprint(count=10, noise=0.0).run(_of_side(_Side(1.0), surrogates=turned))
    assert (other.control["match"], other.figures["uniqueness"]) == (0, 1)
    alone = Fingerprint(count=40, noise=0.0).run(session())
    assert alone.control["match"] < 0.5
    assert "shuffled weights" in alone.notes[0]


def test_another_seed_makes_other_inputs_and_other_copies() -> None:
    """FGSM draws nothing by itself, so that what differs was drawn here."""
    tool = Fingerprint(count=10, copies=8, attack="fgsm", noise=1.0)
    one, same, two = (tool.run(_of_side(_Side(1.0), seed=k)) for k in (0, 0, 1))
    assert one.artefact is not None
    assert same.artefact is not None
    assert two.artefact is not None
    assert torch.equal(one.artefact.x, same.artefact.x)
    assert one.figures == same.figures
    assert not torch.equal(one.artefact.x, two.artefact.x)
    assert one.figures["match_of_copies"] != two.figures["match_of_copies"]


def test_what_it_costs_is_the_plan_the_attack_and_the_judging_of_each_input() -> None:
    """Once to know its class, three times and a gradient for FGSM, and in three ways for the referee, who is no query."""
    cost = Fingerprint(count=10, copies=3, attack="fgsm").run(_of_side(_Side(1.0))).cost
    assert cost == Cost(forwards=10 * (1 + 3 + 3), backwards=10, queries=10 * (1 + 3))


class _Ends(nn.Module):
    """Class 1 at the one end of [-1, 3], class 2 at the other, and class 0 nearly everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, -1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x - 1.0) - 1.9 * self.weight.abs()


def test_inputs_of_one_class_are_led_to_every_other_one() -> None:
    told = Fingerprint(count=20, copies=1, attack="fgsm", radius=1.0).run(_of_side(_Ends()))
    assert told.artefact is not None
    assert set(told.artefact.y.tolist()) >= {1, 2}


@pytest.mark.parametrize(
    "settings", [{"radius": 0.0}, {"radius": 1.1}, {"count": 0}, {"copies": 0}, {"noise": -0.1}], ids=str
)
def test_senseless_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="takes a count"):
        Fingerprint(**settings)


def test_the_whole_range_is_a_radius() -> None:
    assert Fingerprint(radius=1.0).radius == 1
