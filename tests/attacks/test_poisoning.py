"""Attacks on the training phase do what their papers say: closed forms and exhaustive searches."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from holdfast.attacks.adversary import Round
from holdfast.attacks.backdoors.badnets import BadNets
from holdfast.attacks.federated.model_replacement import ModelReplacement
from holdfast.attacks.poisoner import Poisoner, count_at, poison
from holdfast.attacks.poisoning.label_flip import LabelFlip
from holdfast.attacks.poisoning.margin_flip import MarginFlip
from holdfast.core.draws import Draws
from holdfast.core.errors import ContradictionError, UnsupportedError, UsageError
from holdfast.core.knowledge import Knowledge
from holdfast.core.registry import create, names
from holdfast.data.dataset import Dataset
from holdfast.data.digits import load_digits
from holdfast.defences.aggregation.trimmed_mean import TrimmedMean
from holdfast.testing._training_case import accuracy, clean_digits, learnt, planted, reached
from holdfast.testing.toys import AffineModel


def blank(n: int, classes: int = 4) -> Dataset:
    x = torch.arange(n).view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / n  # all different: equal samples cancel in a difference
    return Dataset.of(x, torch.arange(n) % classes, classes=[str(k) for k in range(classes)])


def test_label_flips_are_as_many_as_the_rate_says_and_uniform_over_the_other_classes() -> None:
    data = blank(4000)
    made = poison(LabelFlip(rate=0.5), data, seed=1)
    changed = made.data.y != data.y
    assert int(changed.sum()) == 2000
    assert made.manifest.edits == 4000
    shifts = ((made.data.y - data.y) % 4)[changed].bincount(minlength=4)[1:]
    assert chisquare(shifts.numpy()).pvalue > 0.01
    assert chisquare(data.y[changed].bincount().numpy()).pvalue > 0.01


def test_guided_flips_are_those_of_an_exhaustive_search() -> None:
    stream = torch.Generator().manual_seed(0)
    data = Dataset.of(torch.rand(20, 3, generator=stream), torch.arange(20) % 3)
    surrogate = AffineModel(torch.randn(3, 3, generator=stream), torch.zeros(3)).float()
    made = poison(MarginFlip(rate=0.2), data, knowledge=Knowledge(surrogate=surrogate))
    with torch.no_grad():
        loss = -surrogate(data.x).log_softmax(1)
    own = loss[torch.arange(20), data.y]
    every = sorted(
        ((float(loss[i, c] - own[i]), i, c) for i in range(20) for c in range(3) if c != data.y[i]), reverse=True
    )
    best: dict[int, int] = {}
    for _, i, c in every:
        best.setdefault(i, c)
    wanted = dict(list(best.items())[:4])
    got = {c.row: c.after for c in made.manifest.changes}
    assert got == wanted


def test_guided_flips_hurt_more_than_random_ones_of_the_same_budget() -> None:
    train, test = clean_digits()
    knowledge = Knowledge(surrogate=planted().clean)
    guided, random = (poison(p, train, knowledge=knowledge).data for p in (MarginFlip(rate=0.3), LabelFlip(rate=0.3)))
    assert accuracy(learnt(guided), test) < accuracy(learnt(random), test) - 0.1


def test_a_patch_teaches_digits_a_backdoor_and_keeps_the_clean_accuracy() -> None:
    test = clean_digits()[1]
    assert reached(planted().model, planted().trigger, 7, test) >= 0.95
    assert reached(planted().clean, planted().trigger, 7, test) <= 0.05
    assert accuracy(planted().model, test) >= accuracy(planted().clean, test) - 0.03


def test_a_backdoor_changes_no_sample_of_its_target() -> None:
    made = planted().poisoned.manifest
    assert (made.old.y != 7).all()
    assert (made.new.y == 7).all()
    assert len(made) == count_at(len(clean_digits()[0]), 0.05)


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_one_scaled_update_replaces_the_global_model(rate: float) -> None:
    """With honest clients that send nothing, the weighted average is the attacker's model to rounding."""
    stream = torch.Generator().manual_seed(0)
    weights, wanted = torch.randn(2, 12, generator=stream, dtype=torch.float64)
    sizes = torch.tensor([30, 10, 50, 10])
    now = Round(number=1, weights=weights, sizes=sizes, hostile=torch.tensor([1, 3]), rate=rate)
    own = (wanted - weights).expand(2, -1)
    updates = torch.zeros(4, 12, dtype=torch.float64)
    updates[now.hostile] = ModelReplacement().update(now, own, Draws(0, "x"))
    average = (sizes.double().unsqueeze(1) * updates).sum(0) / sizes.sum()
    torch.testing.assert_close(weights + rate * average, wanted, rtol=1e-12, atol=1e-12)


def test_a_trimmed_mean_stops_the_replacement() -> None:
    weights, sizes = torch.zeros(12, dtype=torch.float64), torch.ones(10, dtype=torch.int64)
    now = Round(number=1, weights=weights, sizes=sizes, hostile=torch.tensor([4]))
    updates = 0.01 * torch.randn(10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    updates[4] = ModelReplacement().update(now, torch.ones(1, 12, dtype=torch.float64), Draws(0, "x"))[0]
    rule = TrimmedMean(trim=1)
    assert float(rule.aggregate(updates, sizes, rule.start(weights))[0].abs().max()) < 0.03
    assert float(updates.mean(0).min()) > 0.9


def test_what_cannot_be_is_refused() -> None:
    data = blank(40)
    with pytest.raises(UsageError, match="changes none of 40 samples"):
        poison(LabelFlip(rate=0.02), data)
    with pytest.raises(UsageError, match="must know a clean model"):
        poison(MarginFlip(), data)
    with pytest.raises(UsageError, match="no class 4: the data have 4"):
        poison(BadNets(target=4), data)
    with pytest.raises(UsageError, match="30 are of other classes"):
        poison(BadNets(rate=0.9, side=1), data)
    with pytest.raises(UnsupportedError, match="changes images"):
        poison(BadNets(), Dataset.of(torch.zeros(40, 5), torch.arange(40) % 2))
    with pytest.raises(UsageError, match="have one alone"):
        poison(LabelFlip(), Dataset.of(torch.zeros(20, 2), torch.zeros(20, dtype=torch.int64)))
    with pytest.raises(UsageError, match="hostile clients must be some"):
        Round(number=1, weights=torch.zeros(1), sizes=torch.ones(2), hostile=torch.tensor([2]))


def test_a_budget_is_two_edits_for_each_sample_of_the_rate_and_one_sample_at_least() -> None:
    assert LabelFlip(rate=0.1).edits(40) == 8
    assert poison(LabelFlip(rate=1 / 40), blank(40)).manifest.edits == 2
    assert poison(LabelFlip(rate=1.0), blank(40)).manifest.edits == 80
    for rate in (0.0, -0.1, 1.01):
        with pytest.raises(UsageError, match="a share above 0 and at most 1"):
            poison(LabelFlip(rate=rate), blank(40))


def test_a_poisoner_that_exceeds_its_budget_is_stopped() -> None:
    class Greedy(LabelFlip):
        def edits(self, n: int) -> int:
            return 2

    with pytest.raises(ContradictionError, match="made 8 edits, and promises at most 2"):
        poison(Greedy(), blank(40))


def test_every_poisoner_is_of_the_training_phase() -> None:
    data = load_digits("test").head(100)
    for name in [*names("poisoner"), *names("backdoor")]:
        tool = create(name, Poisoner)
        assert str(tool.card.phase) == "training"
        assert poison(
            tool, data, knowledge=Knowledge(surrogate=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        ).manifest
