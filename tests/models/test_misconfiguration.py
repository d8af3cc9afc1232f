"""What a model that does badly is told: another order of the classes, and never a picture's remedy for a table."""

from __future__ import annotations

import torch
from torch import nn

from holdfast.models.misconfiguration import likely_misconfiguration
from holdfast.models.wrap import Normalisation

torch.manual_seed(0)
X = torch.rand(120, 4)
LINEAR = nn.Linear(4, 3)
with torch.no_grad():
    LINEAR.bias -= LINEAR(X).mean(0)
    Y = LINEAR(X).argmax(1)


def slip(y, model=LINEAR, x=X):
    with torch.no_grad():
        return likely_misconfiguration(model, x, y, model(x).argmax(1), at_least=0.5)


def test_classes_in_another_order_are_told_with_the_mapping():
    order = torch.tensor([2, 0, 1])
    found = slip(order[Y])
    assert found is not None
    assert (found.name, found.accuracy) == ("labels-order", 1.0)
    assert "0 of the model is 2 of the data" in found.cause
    assert "--class-names" in found.remedy


def test_labels_that_count_from_one_are_not_called_an_order():
    found = slip(Y + 1)
    assert found is not None
    assert found.name == "labels+1"


def test_labels_by_chance_have_no_order():
    for seed in range(5):
        y = torch.randint(3, (120,), generator=torch.Generator().manual_seed(seed))
        assert slip(y) is None


def test_few_rows_of_many_classes_have_no_order():
    model, x = nn.Linear(4, 50), torch.rand(60, 4)
    y = torch.randint(50, (60,))
    assert slip(y, model, x) is None


def test_a_table_gets_no_remedy_for_pictures():
    # the model was trained on 1 - x: for pictures that is inverted brightness, for a table it means nothing
    class Inverted(nn.Module):
        def forward(self, x):
            return LINEAR(1 - x)

    found = slip(Y, Inverted())
    assert found is None or found.name.startswith("labels")


def test_the_remedy_can_be_typed():
    class Levels(nn.Module):
        def forward(self, x):
            return LINEAR(x.flatten(1) / 255)

    x = X.view(-1, 1, 2, 2)
    found = slip(Y, Levels(), x)
    assert found is not None
    assert found.name == "scale-255"
    typed = found.remedy.split("--normalise ")[1].split()[0]
    declared = Normalisation.parse(typed)
    assert declared.mean == (0.0,)
    assert declared.std == (1 / 255,)
