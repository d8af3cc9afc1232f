"""Deep partition aggregation: votes, ties and radii against counting by hand, and figures on the digits."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.certifiers.data.deep_partition import DeepPartition
from holdfast.core.errors import UsageError
from holdfast.core.threat import Guarantee
from holdfast.data.dataset import Dataset
from holdfast.data.digits import load_digits
from holdfast.training.learner import Learner, RidgeLearner


class Majority(Learner):
    """The most frequent label, of equal ones the least."""

    def learn(self, x: Tensor, y: Tensor, classes: int):
        label = int(y.bincount(minlength=classes).argmax())
        return lambda z: torch.full((len(z),), label)

    def describe(self) -> str:
        return "majority"


def data_of(labels: list[int]) -> Dataset:
    return Dataset.of(torch.arange(len(labels)).float().unsqueeze(1), torch.tensor(labels), classes=["a", "b", "c"])


def told(data: Dataset, parts: int) -> tuple[int, float]:
    found = DeepPartition(parts=parts).certify(Majority(), data, torch.zeros(1, 1))
    (certificate,) = found.certificates
    return int(found.prediction), 0.0 if certificate is None else certificate.radius


def test_with_one_sample_a_part_the_radius_is_half_the_lead_less_the_tie() -> None:
    """So many parts that no two samples share one: each label is a vote."""
    for a, b in ((9, 0), (0, 9), (6, 3), (3, 6), (5, 4), (4, 5)):
        prediction, radius = told(data_of([0] * a + [1] * b), 10**9)
        first, second = (a, b) if a >= b else (b, a)
        tie = int(b > a)  # the other class has the smaller index and wins a tie
        assert prediction == int(b > a)
        assert radius == max(0, (first - second - tie) // 2)


def test_no_edit_within_the_radius_moves_the_prediction() -> None:
    """Every removal of one or two samples, and every addition of up to two, on a small set."""
    data = data_of([1, 1, 1, 1, 1, 1, 0, 2, 1, 0])
    prediction, radius = told(data, 5)
    assert radius >= 1
    rows = range(len(data))
    extras = [(float(v), label) for v, label in product((20.0, 21.0, 22.5, 31.0), range(3))]
    edits = [([r], []) for r in rows] + [([], [e]) for e in extras]
    if radius >= 2:
        edits += [([r, s], []) for r in rows for s in rows if r < s] + [([r], [e]) for r in rows for e in extras]
    for gone, came in edits:
        keep = torch.tensor([r for r in rows if r not in gone])
        x = torch.cat([data.x[keep], torch.tensor([[v] for v, _ in came]).view(-1, 1)])
        y = torch.cat([data.y[keep], torch.tensor([label for _, label in came], dtype=torch.int64)])
        assert told(Dataset.of(x, y, classes=data.classes), 5)[0] == prediction


def test_digits_are_certified_as_well_as_the_survey_of_peers_measured() -> None:
    train, test = load_digits("train"), load_digits("test")
    found = DeepPartition(parts=50).certify(RidgeLearner(), train, test.x)
    right = (found.prediction == test.y).numpy()
    radius = np.array([0 if c is None else c.radius for c in found.certificates])
    assert right.mean() >= 0.90
    assert (right & (radius >= 4)).mean() >= 0.84
    assert {c.guarantee for c in found.certificates if c is not None} == {Guarantee.SOUND}


def test_ridge_regression_is_the_normal_equations_in_both_forms() -> None:
    stream = torch.Generator().manual_seed(0)
    for n, d in ((30, 4), (4, 30)):
        x, y = torch.randn(n, d, generator=stream), torch.arange(n) % 3
        z = torch.randn(50, d, generator=stream)
        centre, middle = x.double().mean(0), torch.nn.functional.one_hot(y, 3).double().mean(0)
        inputs = (x.double() - centre).numpy()
        outputs = (torch.nn.functional.one_hot(y, 3).double() - middle).numpy()
        weights = np.linalg.solve(inputs.T @ inputs + 0.5 * np.eye(d), inputs.T @ outputs)
        wanted = ((z.double() - centre).numpy() @ weights + middle.numpy()).argmax(1)
        assert (RidgeLearner(0.5).learn(x, y, 3)(z).numpy() == wanted).all()


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        DeepPartition(parts=0)
    with pytest.raises(UsageError, match="above 0"):
        RidgeLearner(0.0)
