"""The suite of applications must notice what is planted here."""

from dataclasses import replace

import pytest
import torch
from planted import Breaches, noticed

from holdfast.applications.fingerprint import Fingerprint
from holdfast.core.cost import Cost
from holdfast.core.manifest import Samples
from holdfast.core.threat import Access

breaches = Breaches()


@breaches.of(control="have no control")
class NoControl(Fingerprint):
    """Says nothing of what others get."""

    def run(self, session):
        return replace(super().run(session), control={})


@breaches.of(control="no figure of their name")
class OtherControl(Fingerprint):
    """Its control is of something else."""

    def run(self, session):
        return replace(super().run(session), control={"loss": 1.0})


@breaches.of(result="names another")
class Named(Fingerprint):
    """Signs as another application."""

    def run(self, session):
        return replace(super().run(session), name="another")


@breaches.of(result="inputs lie in .0, 1.")
class Outside(Fingerprint):
    """Makes samples that no input can be."""

    def run(self, session):
        told = super().run(session)
        return replace(told, artefact=Samples(told.artefact.x * 2 - 0.5, told.artefact.y))


@breaches.of(result="in the data's shape")
class Flat(Fingerprint):
    """Makes samples in another shape."""

    def run(self, session):
        told = super().run(session)
        return replace(told, artefact=Samples(told.artefact.x.flatten(1), told.artefact.y))


@breaches.of(cost="went through the model")
class Free(Fingerprint):
    """Says that it costs nothing."""

    def run(self, session):
        return replace(super().run(session), cost=Cost())


@breaches.of(cost="inputs went through the model")
class Modest(Fingerprint):
    """Tells what its search cost, and not what was asked beside it."""

    def run(self, session):
        told = super().run(session)
        return replace(told, cost=Cost(told.cost.backwards, told.cost.backwards, 0))


@breaches.of(untouched="the model was changed in place")
class Marks(Fingerprint):
    """Changes the model that it was given."""

    def run(self, session):
        with torch.no_grad():
            next(session.module.parameters()).mul_(1.0001)
        return super().run(session)


@breaches.of(same_again="gave another result")
class Casts(Fingerprint):
    """Draws its figure."""

    def run(self, session):
        told = super().run(session)
        return replace(told, figures={**told.figures, "match": float(torch.rand(1))})


@breaches.of(access="can only be asked", cost="queries")
class ByGradient(Fingerprint):
    """Says that it needs labels alone, and takes gradients."""

    card = replace(Fingerprint.card, access=Access.HARD_LABEL)


@pytest.mark.parametrize(("method", "check", "message"), breaches.cases)
def test_a_breach_is_noticed(method, check, message):
    noticed(method, check, message)
