"""The suite of certifiers over sets must notice what is planted here."""

from dataclasses import replace

import pytest
import torch
from planted import Breaches, noticed

from holdfast.certifiers.graph_certifier import margin_rows
from holdfast.certifiers.sets.patch_anywhere import PatchAnywhere
from holdfast.certifiers.sets.semantify_nn import SemantifyNN
from holdfast.certifiers.sets.weight_perturbation import WeightPerturbation
from holdfast.core.threat import Guarantee

breaches = Breaches()


@breaches.of(card="sound or it is nothing")
class Guesses(PatchAnywhere):
    """Says that it estimates."""

    card = replace(PatchAnywhere.card, guarantee=Guarantee.ESTIMATE)


@breaches.of(shape="nothing is proved of any sample")
class Timid(PatchAnywhere):
    """Proves a patch of no pixels."""

    def reach(self, graph, x, y):
        return replace(super().reach(graph, x, y), high=0.0)


@breaches.of(shape="0 is unchanged")
class Shifted(WeightPerturbation):
    """Leaves the model itself out of the range."""

    def reach(self, graph, x, y):
        found = super().reach(graph, x, y)
        return replace(found, low=found.high / 2)


@breaches.of(shape="names its unit")
class Unnamed(SemantifyNN):
    """Says a number of what."""

    def reach(self, graph, x, y):
        return replace(super().reach(graph, x, y), unit="")


@breaches.of(members="all the sample itself")
class Still(SemantifyNN):
    """Turns no image when it is checked."""

    def members(self, graph, x, reach, count, stream):
        return super().members(graph, x, replace(reach, high=0.0), count, stream)


@breaches.of(members="not the sample itself")
class Elsewhere(PatchAnywhere):
    """Is checked on any image at all."""

    def members(self, graph, x, reach, count, stream):
        return super().members(graph, torch.rand(x.shape, generator=stream).double(), reach, count, stream)


@breaches.of(members="something else than the stream")
class Unkeyed(WeightPerturbation):
    """Is checked on other networks each time."""

    def members(self, graph, x, reach, count, stream):
        return super().members(graph, x, reach, count, torch.Generator().manual_seed(int(torch.randint(1 << 30, ()))))


@breaches.of(inside="members of a reach of .* have another class")
class TwiceTheWeights(WeightPerturbation):
    """Says twice what it proves."""

    def reach(self, graph, x, y):
        found = super().reach(graph, x, y)
        return replace(found, low=-2 * found.high, high=2 * found.high)


@breaches.of(inside="members of a reach of .* have another class")
class OnePixelMore(PatchAnywhere):
    """Says a larger patch than it proves."""

    def reach(self, graph, x, y):
        found = super().reach(graph, x, y)
        return replace(found, high=found.high + 1)


@breaches.of(inside="members of a reach of .* have another class")
class OneCorner(PatchAnywhere):
    """Bounds the first place of the patch alone."""

    def proved(self, graph, x, y, region):
        return super().proved(graph, x[:1], y[:1], region.select(torch.tensor([0])))


@breaches.of(inside="members of a reach of .* have another class")
class OneWay(SemantifyNN):
    """Proves turns to one side and says both."""

    def proved(self, graph, x, y, region):
        held = super().proved(graph, x, y, region)
        return held | (torch.arange(len(held)) < len(held) // 2) if len(held) > 1 else held


@breaches.of(margin="with a larger margin less is proved")
class Backwards(WeightPerturbation):
    """Says less where it proves more."""

    def reach(self, graph, x, y):
        found = super().reach(graph, x, y)
        high = 0.01 / (1 + 100 * found.high)
        return replace(found, low=-high, high=high)


@breaches.of(already_wrong="a class that the model does not give")
class Trusting(WeightPerturbation):
    """Takes the label for proved."""

    def proved(self, graph, x, y, region):
        return torch.ones(len(x), dtype=torch.bool)


@breaches.of(not_a_number="no numbers prove a class")
class NotBelow(WeightPerturbation):
    """Takes what is not below 0 for proved."""

    def proved(self, graph, x, y, region):
        bounds = self.tool.bounds(graph, region, x, margin_rows(y, graph.output_shape[0]))
        return ~(bounds.nan_to_num(1.0, 1.0, 1.0) <= 0).any(1)


@breaches.of(same_again="two runs differ", untouched="global random state")
class Noisy(SemantifyNN):
    """Draws from the global generator."""

    def reach(self, graph, x, y):
        found = super().reach(graph, x, y)
        return replace(found, high=found.high * float(torch.rand(())), low=0.0)


CALLS: list[int] = []


@breaches.of(batch="a sample alone has another reach")
class Counting(WeightPerturbation):
    """Says less from call to call."""

    def reach(self, graph, x, y):
        CALLS.append(1)
        found = super().reach(graph, x, y)
        return replace(found, low=0.0, high=found.high / len(CALLS))


@breaches.of(untouched="an input was changed in place")
class Writes(PatchAnywhere):
    """Blackens a pixel of what it was handed."""

    def reach(self, graph, x, y):
        found = super().reach(graph, x, y)
        x.mul_(0.5).mul_(2.0).clamp_(max=0.5)
        return found


@pytest.mark.parametrize(("method", "check", "message"), breaches.cases)
def test_the_suite_notices(method, check, message):
    noticed(method, check, message)
