"""The suites of shared and of semantic attacks must notice what is planted here."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import Breaches, noticed

from holdfast.attacks.evasion.semantic.brightness_contrast import LightShift
from holdfast.attacks.evasion.universal.sgd_uap import SgdUap
from holdfast.attacks.shared import Applied, Artefact
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


# semantic attacks


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
