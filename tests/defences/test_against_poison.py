"""Defences of the training phase and of inputs against closed forms, NumPy and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from torch import nn

from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.data.dataset import Dataset
from holdfast.defences.aggregation.median import Median
from holdfast.defences.aggregation.trimmed_mean import TrimmedMean
from holdfast.defences.detection.feature_squeezing import FeatureSqueezing
from holdfast.defences.inspector import ScanFinding
from holdfast.defences.sanitisation.spectral_signatures import SpectralSignatures
from holdfast.defences.trojans.fine_pruning import FinePruning
from holdfast.defences.trojans.neural_cleanse import NeuralCleanse
from holdfast.models.penultimate import penultimate
from holdfast.testing._training_case import clean_digits, planted, reached, some


def updates(clients: int, parameters: int = 17) -> torch.Tensor:
    stream = torch.Generator().manual_seed(clients)
    return torch.randn(clients, parameters, generator=stream, dtype=torch.float64)


@pytest.mark.parametrize("clients", [1, 2, 5, 8])
def test_the_median_is_numpy_s(clients: int) -> None:
    u, sizes = updates(clients), torch.ones(clients, dtype=torch.int64)
    joined, _ = Median().aggregate(u, sizes, Median().start(u[0]))
    np.testing.assert_allclose(joined.numpy(), np.median(u.numpy(), axis=0), rtol=1e-12)


@pytest.mark.parametrize(("clients", "trim"), [(5, 0), (5, 2), (9, 3)])
def test_the_trimmed_mean_is_that_of_what_is_left(clients: int, trim: int) -> None:
    u, sizes, rule = updates(clients), torch.arange(1, clients + 1), TrimmedMean(trim=trim)
    joined, _ = rule.aggregate(u, sizes, rule.start(u[0]))
    wanted = np.sort(u.numpy(), axis=0)[trim : clients - trim].mean(0)
    np.testing.assert_allclose(joined.numpy(), wanted, rtol=1e-12)


def test_a_round_with_too_few_clients_to_trim_is_refused() -> None:
    rule = TrimmedMean(trim=2)
    assert rule.tolerates(4) == 0
    with pytest.raises(UsageError, match="needs at least 5 clients with these settings, and got 4"):
        rule.aggregate(updates(4), torch.ones(4, dtype=torch.int64), rule.start(torch.zeros(17)))


def test_spectral_signatures_are_the_singular_vectors_of_numpy() -> None:
    stream = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 5, generator=stream), torch.arange(60) % 2
    net = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 2))
    scores = SpectralSignatures().scores(Dataset.of(x, y), net)
    for label in (0, 1):
        rows = (y == label).numpy()
        features = penultimate(net, x).numpy()[rows]
        centred = features - features.mean(0)
        squares = (centred @ np.linalg.svd(centred)[2][0]) ** 2
        wanted = squares / np.sort(squares)[(len(squares) - 1) // 2]
        np.testing.assert_allclose(scores.numpy()[rows], wanted, rtol=1e-9)


def test_a_planted_direction_ranks_first() -> None:
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=stream)
    x[:10, 2] += 9
    scores = SpectralSignatures().scores(Dataset.of(x, torch.zeros(200, dtype=torch.int64)), nn.Linear(6, 2))
    assert set(scores.argsort(descending=True)[:10].tolist()) == set(range(10))


def test_a_class_of_equal_representations_has_finite_scores() -> None:
    x = torch.zeros(40, 3)
    x[0], x[1], x[20:] = 1e3, -1e3, 0.1
    y = torch.zeros(40, dtype=torch.int64)
    y[20:] = 1  # of which all are equal
    scores = SpectralSignatures().scores(Dataset.of(x, y), nn.Linear(3, 2))
    assert scores.isfinite().all()
    assert set(scores.argsort(descending=True)[:2].tolist()) == {0, 1}


@pytest.mark.parametrize("window", [2, 3])
def test_the_squeezing_median_is_scipy_s(window: int) -> None:
    x = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    wanted = median_filter(x.numpy(), size=(1, 1, window, window), mode="reflect")
    assert torch.equal(FeatureSqueezing(window=window).squeezed(x)[1], torch.from_numpy(wanted))


def test_squeezed_bits_are_the_nearest_grey_levels() -> None:
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = torch.linspace(0, 1, 8)
    nearest = levels[(x.unsqueeze(-1) - levels).abs().argmin(-1)]
    torch.testing.assert_close(FeatureSqueezing(bits=3).squeezed(x)[0], nearest)


class _Brightness(nn.Module):
    """Two classes with the probabilities m and 1 - m, where m is the mean of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = x.flatten(1).mean(1)
        return torch.stack([bright, 1 - bright], 1).log()


def test_the_squeezing_distance_is_the_larger_l1_one_of_the_two_squeezers() -> None:
    x = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    x[0] = 0.25  # is 0 in one bit and its own median: the mean moves by 1/4, and so do both probabilities
    x[1, 0, 0, 0] = 1  # is whole in one bit, and its median is 0: the mean moves by 1/9
    wanted = torch.tensor([2 / 4, 2 / 9], dtype=torch.float64) - 0.1
    torch.testing.assert_close(FeatureSqueezing(bits=1, window=3, threshold=0.1).score(_Brightness(), x), wanted)


def test_the_squeezing_threshold_is_the_quantile_that_flags_the_share_of_clean_inputs() -> None:
    grey = torch.tensor([0.4, 0.0, 0.3, 0.1, 0.2])  # distances of 0.8, 0, 0.6, 0.2 and 0.4
    clean = Dataset.of(grey.view(5, 1, 1, 1).expand(5, 1, 3, 3), torch.zeros(5, dtype=torch.int64))
    fitted = FeatureSqueezing(bits=1, false_positives=0.25).fit(_Brightness(), clean)
    assert fitted.threshold == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"bits": 0}, "1 to 8 bits and windows of 2 or 3, got 0 and 2"),
        ({"window": 1}, "windows of 2 or 3, got 5 and 1"),
        ({"window": 4}, "windows of 2 or 3, got 5 and 4"),
        ({"false_positives": 0.0}, r"lies between 0 and 1, got 0\.0"),
        ({"false_positives": 1.0}, r"lies between 0 and 1, got 1\.0"),
        ({"false_positives": float("nan")}, "lies between 0 and 1, got nan"),
    ],
)
def test_senseless_settings_of_squeezing_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        FeatureSqueezing(**settings)


def test_a_detector_without_a_threshold_says_so() -> None:
    with pytest.raises(UsageError, match="fit it on clean data first"):
        FeatureSqueezing().score(planted().clean, clean_digits()[1].x[:2])
    for shape in ((1, 4), (1, 4, 4)):  # one picture without its channel is none, and neither is a stack of them
        with pytest.raises(UnsupportedError, match="squeezes images"):
            FeatureSqueezing(threshold=0.0).score(nn.Linear(4, 2), torch.zeros(shape))
    with pytest.raises(UsageError, match="1 to 8 bits"):
        FeatureSqueezing(bits=9)


def test_neural_cleanse_finds_the_patch_and_no_patch_in_a_clean_network() -> None:
    data = some(clean_digits()[1], 0, 200)
    cleanse = NeuralCleanse(steps=200, samples=100)
    bad, good = cleanse.inspect(planted().model, data), cleanse.inspect(planted().clean, data)
    assert bad.flagged
    assert bad.target == 7
    assert not good.flagged
    assert bad.trigger is not None
    assert reached(planted().model, bad.trigger, 7, clean_digits()[1]) > 0.9
    assert bad.trigger.covered < 10  # the planted patch covers four pixels of 64


def test_neural_cleanse_without_enough_triggers_to_compare_says_so() -> None:
    """After a few steps one class alone is reached; beside nine of which nothing is known it would be an outlier."""
    with pytest.raises(UsageError, match=r"carried enough samples to \d of 10 classes in 5 steps.*give more steps"):
        NeuralCleanse(steps=5, samples=5).inspect(planted().clean, some(clean_digits()[1], 0, 20))


def test_a_finding_is_flagged_above_its_threshold_alone() -> None:
    assert ScanFinding(detector="x", score=2.1, threshold=2.0).flagged
    assert not ScanFinding(detector="x", score=2.0, threshold=2.0).flagged


def test_pruned_units_stay_silent_through_fine_tuning() -> None:
    known = some(clean_digits()[1], 0, 150)
    repaired = FinePruning(drop=0.1, epochs=2).repair(planted().model, known)
    hidden = [m for m in repaired.modules() if isinstance(m, nn.Linear)][-2]
    silent = (hidden.weight == 0).all(1) & (hidden.bias == 0)
    assert silent.sum() >= 5
    assert not any((m.weight == 0).all(1).any() for m in planted().model.modules() if isinstance(m, nn.Linear))


def test_a_pruned_unit_is_silent_behind_its_batch_norm_too() -> None:
    norm = nn.BatchNorm2d(6)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    with torch.no_grad():
        norm.bias.fill_(0.5)
    repaired = FinePruning(drop=1.0, epochs=1).repair(net, some(clean_digits()[1], 0, 40))  # every unit is pruned
    assert isinstance(repaired, nn.Sequential)
    with torch.no_grad():
        assert not repaired[:3](clean_digits()[1].x[:8]).any()
        assert net[:3](clean_digits()[1].x[:8]).any()


def test_pruning_alone_keeps_the_accuracy_that_it_promises() -> None:
    known = some(clean_digits()[1], 0, 150)

    def right(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(known.x).argmax(1) == known.y).double().mean())

    repaired = FinePruning(drop=0.02, epochs=1, rate=1e-12).repair(planted().model, known)
    assert right(repaired) >= right(planted().model) - 0.02


def test_what_cannot_be_repaired_or_inspected_is_refused() -> None:
    data = some(clean_digits()[1], 0, 20)
    with pytest.raises(UnsupportedError, match="hidden layer"):
        FinePruning().repair(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data)
    with pytest.raises(UsageError, match="needs clean samples"):
        NeuralCleanse().inspect(planted().model)
    with pytest.raises(UsageError, match="give a model trained on them"):
        SpectralSignatures().scores(data)
    with pytest.raises(UnsupportedError, match="runs no linear layer"):
        penultimate(nn.Flatten(), data.x)
