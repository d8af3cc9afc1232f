"""The suites of shared and of semantic attacks must notice what is planted here."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from planted import Breaches, noticed
from torch import nn

from holdfast.attacks.evasion.semantic.brightness_contrast import LightShift
from holdfast.attacks.evasion.universal.sgd_uap import SgdUap
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.attacks.shared import Applied, Artefact
from holdfast.core.threat import Goal
from holdfast.transforms.colour import BrightnessContrast

breaches = Breaches()


# shared attacks


@breaches.of(works="a random artefact")
class Lazy(SgdUap):
    """Stays where it starts."""

    def step(self, asks, state, step):
        super().step(asks, state, step)
        return state


@breaches.of(seeds="the same seed gave another artefact", untouched="global random state")
class Noisy(SgdUap):
    """Draws from NumPy's global generator."""

    def step(self, asks, state, step):
        after = super().step(asks, state, step)
        return replace(after, v=after.v + 1e-3 * np.random.random())


VELOCITY = {}


@breaches.of(resume="belongs into the state")
class Remembers(SgdUap):
    """Keeps its velocity beside the state."""

    def step(self, asks, state, step):
        after = super().step(asks, state, step)
        last = VELOCITY.get("v", torch.zeros_like(after.v)) if step else torch.zeros_like(after.v)
        VELOCITY["v"] = after.v - state.v + 0.5 * last
        return replace(after, v=after.v + 0.5 * last)


@breaches.of(inside="an input was changed in place")
class InPlace(SgdUap):
    """Adds to the input that it was handed."""

    def apply(self, artefact, x, draws, problem=None):
        return Applied(x.add_(super().apply(artefact, x, draws, problem).x - x))


@breaches.of(inside="outside its set")
class Twice(SgdUap):
    """Adds the perturbation twice."""

    def apply(self, artefact, x, draws, problem=None):
        return Applied(x + 2 * artefact.tensors["v"].to(x))


@breaches.of(inside="AttributeError")
class NeedsASet(SgdUap):
    """Cannot be applied without a set to keep."""

    def apply(self, artefact, x, draws, problem=None):
        return super().apply(artefact, x, draws, problem.select(range(len(x))))


@breaches.of(alone="who else is in the batch")
class InCompany(SgdUap):
    """Adds more where the batch is bright."""

    def apply(self, artefact, x, draws, problem=None):
        applied = super().apply(artefact, x, draws, problem).x
        return Applied(x + (applied - x) * x.mean())


@breaches.of(artefact="as its method")
class Borrowed(SgdUap):
    """Signs as another method."""

    def artefact(self, state):
        return Artefact("uap", {"v": state.v})


@breaches.of(ledger="the ledger says")
class Smuggles(SgdUap):
    """Goes round the asks to the model itself."""

    def step(self, asks, state, step):
        asks[0]._oracle.logits.__self__.served.model(asks[0].problem.x)
        return super().step(asks, state, step)


@breaches.of(eps_zero="the clean input must come back")
class Brightens(SgdUap):
    """Lightens everything a little."""

    def apply(self, artefact, x, draws, problem=None):
        return Applied(super().apply(artefact, x, draws, problem).x + 0.01)


# semantic attacks


@breaches.of(axes="names of their own")
class Twins(LightShift):
    """Two parameters that nobody can tell apart."""

    def transform(self, shape):
        made = super().transform(shape)
        made.axes = (made.axes[0], replace(made.axes[1], name=made.axes[0].name))
        return made


class Inverted(nn.Module):
    """The negative."""

    def forward(self, x):
        return 1 - x


@breaches.of(upheld="that the model gets right")
class Elsewhere(LightShift):
    """Searches on another model than the one it was given, and is judged there."""

    def prepare(self, x, y, model, known, seed):
        inverted = nn.Sequential(Inverted(), model)
        return replace(super().prepare(x, y, model, known, seed), attacked=inverted)


@dataclass(frozen=True)
class Shy(PGD):
    """Does not dare to move in a large set."""

    def step(self, ask, state):
        after = super().step(ask, state)
        return replace(after, x=torch.where(ask.problem.flat(ask.problem.set.eps < 0.5), after.x, ask.problem.x))

    def finalize(self, ask, state):
        return ask.problem.x


class TwiceAsked(nn.Module):
    """Asks the model it holds twice."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        self.model(x)
        return self.model(x)


@breaches.of(ledger="the model saw")
class Doubles(LightShift):
    """Asks twice, and is charged once."""

    def prepare(self, x, y, model, known, seed):
        return replace(super().prepare(x, y, model, known, seed), attacked=TwiceAsked(model))


@breaches.of(works="it breaks 0% of the digits")
class Timid(LightShift):
    """Changes hardly anything."""

    def transform(self, shape):
        return BrightnessContrast(1e-6, 1e-6)


@breaches.of(range="fewer are broken in a larger range")
class Narrow(LightShift):
    """Finds nothing where it may do much."""

    def transform(self, shape):
        return BrightnessContrast(1.0, 1.0)

    def search(self, transform):
        return Shy(steps=8, random_start=False)


@breaches.of(targets="it must refuse targets")
class AnyGoal(LightShift):
    """Takes targets, which its card does not know."""

    card = replace(LightShift.card, goals=(Goal.UNTARGETED,))

    def check(self, x, goal):
        super().check(x, Goal.UNTARGETED)


@breaches.of(few="IndexError")
class Compares(LightShift):
    """Looks at the second image first."""

    def prepare(self, x, y, model, known, seed):
        x[1]
        return super().prepare(x, y, model, known, seed)


@breaches.of(refuses="it must refuse values outside")
class Careless(LightShift):
    """Checks nothing."""

    def check(self, x, goal):
        pass


@breaches.of(identity="theta = 0 changes the image")
class Dims(LightShift):
    """Starts from darker images than it was given."""

    def prepare(self, x, y, model, known, seed):
        made = super().prepare(x, y, model, known, seed)
        return replace(made, origin=0.9 * made.origin)


class Unclipped(BrightnessContrast):
    """Leaves the range of images."""

    def change(self, x, values):
        return x + 0.5 * sum(values.values()).unsqueeze(1)


@breaches.of(inside="outside .0, 1.")
class Glares(LightShift):
    """Its images are none."""

    def transform(self, shape):
        return Unclipped(self.brightness, self.contrast)


@breaches.of(alone="the origin of a sample depends")
class Levels(LightShift):
    """Starts from the mean of the batch."""

    def prepare(self, x, y, model, known, seed):
        made = super().prepare(x, y, model, known, seed)
        return replace(made, origin=(made.origin + made.origin.mean(0)) / 2)


@breaches.of(untouched="an input was changed in place")
class Writes(LightShift):
    """Darkens the images that it was handed."""

    def prepare(self, x, y, model, known, seed):
        return super().prepare(x.mul_(0.99), y, model, known, seed)


@breaches.of(seeds="the same seed gave another result", untouched="global random state")
class Casts(LightShift):
    """Draws from the global generator."""

    def prepare(self, x, y, model, known, seed):
        made = super().prepare(x, y, model, known, seed)
        return replace(made, origin=(made.origin + 0.05 * torch.rand_like(made.origin)).clamp(0, 1))


@pytest.mark.parametrize(("method", "check", "message"), breaches.cases)
def test_a_breach_is_noticed(method, check, message):
    noticed(method, check, message)
