"""The suites of defences, certifiers of training sets and applications must notice what is planted here."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from holdfast.applications.fingerprint import Fingerprint
from holdfast.certifiers.data.deep_partition import DeepPartition
from holdfast.core.cost import Cost
from holdfast.core.threat import Access
from holdfast.data.dataset import Dataset
from holdfast.defences.adversarial_training.pgd_training import PGDTraining
from holdfast.defences.aggregation.median import Median
from holdfast.defences.detection.feature_squeezing import FeatureSqueezing
from holdfast.defences.sanitisation.spectral_signatures import SpectralSignatures
from holdfast.defences.trojans.fine_pruning import FinePruning
from holdfast.defences.trojans.neural_cleanse import NeuralCleanse
from holdfast.testing import (
    ContractError,
    check_aggregator,
    check_application,
    check_detector,
    check_inspector,
    check_learner_certifier,
    check_repair,
    check_sanitiser,
    check_training_defence,
)
from holdfast.training.hooks import Hooks
from holdfast.transforms.triggers import Overlay


def breached(suite, method, check, message):
    with pytest.raises(ContractError, match=message):
        suite(method, only=[check])


# aggregators


@dataclass(frozen=True)
class First(Median):
    """Trusts the first client most."""

    def combine(self, updates, sizes, state):
        return 0.9 * updates.median(0).values + 0.1 * updates[0], state


@dataclass(frozen=True)
class Mean(Median):
    """A mean that says that it withstands half of the clients."""

    def combine(self, updates, sizes, state):
        return updates.mean(0), state


@dataclass(frozen=True)
class Middle(Median):
    """Trusts the client in the middle most, whoever that is."""

    def combine(self, updates, sizes, state):
        return 0.9 * updates.median(0).values + 0.1 * updates[len(updates) // 2], state


@dataclass(frozen=True)
class Believes(Median):
    """Counts a client as often as it says that it has samples."""

    def combine(self, updates, sizes, state):
        rows = updates.argsort(0)
        weight = sizes[rows].double().cumsum(0) / sizes.sum()
        return updates.gather(0, rows).gather(0, (weight < 0.5).sum(0, keepdim=True))[0], state


@dataclass(frozen=True)
class Halves(Median):
    """Shrinks what all agree on."""

    def combine(self, updates, sizes, state):
        return updates.median(0).values / 2, state


@dataclass(frozen=True)
class Flat(Median):
    """Joins to one number."""

    def combine(self, updates, sizes, state):
        return updates.median(), state


@dataclass(frozen=True)
class Single(Median):
    """Joins in float32."""

    def combine(self, updates, sizes, state):
        return updates.float().median(0).values, state


@dataclass(frozen=True)
class InPlace(Median):
    """Clips the updates that it was handed."""

    def combine(self, updates, sizes, state):
        return updates.clamp_(-0.5, 0.5).median(0).values, state


@dataclass(frozen=True)
class Trusting(Median):
    """Takes what comes."""

    def aggregate(self, updates, sizes, state):
        return self.combine(updates.double().nan_to_num(), sizes, state)


@pytest.mark.parametrize(
    ("aggregator", "check", "message"),
    [
        (First, "order", "the order of the clients"),
        (Middle, "order", "the order of the clients"),
        (Believes, "outliers", "when they lie about their samples"),
        (Mean, "outliers", "which it says it tolerates"),
        (Halves, "unanimous", "another one back"),
        (Flat, "shape", "updates became"),
        (Single, "shape", "joined in float64"),
        (InPlace, "untouched", "an input was changed in place"),
        (Trusting, "what-came-in", "must refuse an update that is not a number"),
    ],
)
def test_an_aggregator_s_breach_is_noticed(aggregator, check, message):
    breached(check_aggregator, aggregator, check, message)


# sanitisers


@dataclass(frozen=True)
class Alike(SpectralSignatures):
    """Finds every sample as suspicious as the next."""

    def scores(self, data, model=None):
        return torch.ones(len(data), dtype=torch.float64)


@dataclass(frozen=True)
class Wrong(SpectralSignatures):
    """Ranks the other way round."""

    def scores(self, data, model=None):
        return -super().scores(data, model)


@dataclass(frozen=True)
class ByRow(SpectralSignatures):
    """Suspects who comes late."""

    def scores(self, data, model=None):
        return super().scores(data, model) + torch.arange(len(data))


@dataclass(frozen=True)
class Dice(SpectralSignatures):
    """Throws dice."""

    def scores(self, data, model=None):
        return super().scores(data, model) + 1e-3 * torch.rand(len(data), dtype=torch.float64)


@dataclass(frozen=True)
class Peeks(SpectralSignatures):
    """Looks for the manifest."""

    def scores(self, data, model=None):
        getattr(data, "manifest", None)
        return super().scores(data, model)


@dataclass(frozen=True)
class Blank(SpectralSignatures):
    """Has no score for some."""

    def scores(self, data, model=None):
        found = super().scores(data, model)
        found[3] = float("nan")
        return found


@dataclass(frozen=True)
class LeavesHooks(SpectralSignatures):
    """Leaves a hook in the model."""

    def scores(self, data, model=None):
        self.needed(model).register_forward_hook(lambda *_: None)
        return super().scores(data, model)


@dataclass(frozen=True)
class Needy(SpectralSignatures):
    """Has no words for a model that is not there."""

    def needed(self, model):
        return model


@pytest.mark.parametrize(
    ("sanitiser", "check", "message"),
    [
        (Alike, "ranks-poison-first", "50% of all pairs"),
        (Wrong, "ranks-poison-first", "chance is 50 %"),
        (ByRow, "order", "the order of the data"),
        (Dice, "same-again", "the second time"),
        (Dice, "untouched", "global random state"),
        (Peeks, "blind", "reads the manifest"),
        (Blank, "shape", "must be finite"),
        (LeavesHooks, "untouched", "the model was changed"),
        (Needy, "without-model", "AttributeError"),
    ],
)
def test_a_sanitiser_s_breach_is_noticed(sanitiser, check, message):
    breached(check_sanitiser, sanitiser, check, message)


# detectors


@dataclass(frozen=True)
class Everything(FeatureSqueezing):
    """Flags everything."""

    def score(self, model, x):
        return super().score(model, x) + 10


@dataclass(frozen=True)
class Never(FeatureSqueezing):
    """Tells apart, and flags nothing."""

    def score(self, model, x):
        return super().score(model, x) - 10


@dataclass(frozen=True)
class Nothing(FeatureSqueezing):
    """Scores every input alike."""

    def score(self, model, x):
        return super().score(model, x) * 0 - 1


@dataclass(frozen=True)
class Unfitted(FeatureSqueezing):
    """Has a threshold of its own."""

    def score(self, model, x):
        return replace(self, threshold=self.threshold or 0.3)._distance(model, x)


class Learns(FeatureSqueezing):
    """Remembers the fit in itself."""

    def fit(self, model, data):
        object.__setattr__(self, "threshold", super().fit(model, data).threshold)
        return self


@dataclass(frozen=True)
class Relative(FeatureSqueezing):
    """Scores an input against those beside it."""

    def score(self, model, x):
        found = super().score(model, x)
        return found - found.mean()


@dataclass(frozen=True)
class Trains(FeatureSqueezing):
    """Leaves the model in training mode."""

    def fit(self, model, data):
        model.train()
        return super().fit(model, data)


@dataclass(frozen=True)
class Spies(FeatureSqueezing):
    """Looks for a manifest."""

    def fit(self, model, data):
        assert not hasattr(data, "manifest")
        return super().fit(model, data)


@pytest.fixture(autouse=True)
def same_networks():
    """A breach may change the networks that all checks share; they are put back."""
    from holdfast.testing._training_case import planted

    kept = [(m, copy.deepcopy(m.state_dict())) for m in (planted().clean, planted().model)]
    yield
    for model, state in kept:
        model.load_state_dict(state)
        model.eval()
        for module in model.modules():
            module._forward_hooks.clear()


@pytest.mark.parametrize(
    ("detector", "check", "message"),
    [
        (Everything, "false-positives", "flags 100% of new clean inputs"),
        (Never, "false-positives", "flags 0% of new clean inputs where it is allowed half"),
        (Nothing, "tells-apart", "50% of all pairs"),
        (Unfitted, "fits", "must refuse a score before it is fitted"),
        (Learns, "fits", "fitting changed the detector itself"),
        (Relative, "alone", "another score alone"),
        (Trains, "untouched", "the model was changed"),
        (Spies, "blind", "reads the manifest"),
    ],
)
def test_a_detector_s_breach_is_noticed(detector, check, message):
    breached(check_detector, detector, check, message)


# inspectors


@dataclass(frozen=True)
class Suspects(NeuralCleanse):
    """Flags every model."""

    def inspect(self, model, data=None):
        return replace(super().inspect(model, data), threshold=-1.0)


@dataclass(frozen=True)
class Trusts(NeuralCleanse):
    """Flags none."""

    def inspect(self, model, data=None):
        return replace(super().inspect(model, data), threshold=1e9)


@dataclass(frozen=True)
class Guesses(NeuralCleanse):
    """Tells another target."""

    def inspect(self, model, data=None):
        found = super().inspect(model, data)
        return replace(found, target=(found.target + 1) % 10)


@dataclass(frozen=True)
class Paints(NeuralCleanse):
    """Shows a trigger that does nothing."""

    def inspect(self, model, data=None):
        return replace(super().inspect(model, data), trigger=Overlay(torch.zeros(8, 8), torch.tensor(1.0)))


@dataclass(frozen=True)
class Covers(NeuralCleanse):
    """Shows the picture of a seven for a trigger."""

    def inspect(self, model, data=None):
        seven = data.x[data.y == 7].mean(0)
        return replace(super().inspect(model, data), trigger=Overlay(torch.ones(8, 8), seven))


@dataclass(frozen=True)
class Infinite(NeuralCleanse):
    """Has no number for its suspicion."""

    def inspect(self, model, data=None):
        return replace(super().inspect(model, data), score=float("inf"))


@dataclass(frozen=True)
class Reads(NeuralCleanse):
    """Reads the manifest."""

    def inspect(self, model, data=None):
        return super().inspect(
            model, data if data is None else replace(data, notes=(repr(getattr(data, "manifest", 0)),))
        )


@dataclass(frozen=True)
class Moody(NeuralCleanse):
    """Has a score of its own each time."""

    def inspect(self, model, data=None):
        found = super().inspect(model, data)
        return replace(found, score=found.score + float(torch.rand(1)) * 1e-3)


@pytest.mark.parametrize(
    ("inspector", "check", "message"),
    [
        (Suspects, "spares", "above the threshold"),
        (Trusts, "finds", "below the threshold"),
        (Guesses, "finds", "the backdoor's target is 7"),
        (Paints, "trigger", "carries 0% of other classes|carries [0-9]% of other classes"),
        (Covers, "trigger", "shows the class, not the backdoor"),
        (Infinite, "finding", "must be finite"),
        (Reads, "blind", "reads the manifest"),
        (Moody, "same-again", "another finding the second time"),
        (Moody, "untouched", "global random state"),
    ],
)
def test_an_inspector_s_breach_is_noticed(inspector, check, message):
    breached(check_inspector, inspector, check, message)


# repairs


@dataclass(frozen=True)
class Same(FinePruning):
    """Gives a copy back."""

    def repair(self, model, data):
        return copy.deepcopy(model).eval()


@dataclass(frozen=True)
class Itself(FinePruning):
    """Gives the model itself back."""

    def repair(self, model, data):
        return model


@dataclass(frozen=True)
class Original(FinePruning):
    """Repairs the model that it was given."""

    def repair(self, model, data):
        model.load_state_dict(super().repair(model, data).state_dict())
        return copy.deepcopy(model)


@dataclass(frozen=True)
class Ruins(FinePruning):
    """Removes the backdoor and all else."""

    def repair(self, model, data):
        found = copy.deepcopy(model).eval()
        with torch.no_grad():
            for p in found.parameters():
                p.mul_(0.01)
        return found


@dataclass(frozen=True)
class Drops(FinePruning):
    """Gives a model with fewer classes."""

    def repair(self, model, data):
        return nn.Sequential(copy.deepcopy(model), nn.Linear(10, 9)).eval()


@dataclass(frozen=True)
class Training(FinePruning):
    """Forgets the mode."""

    def repair(self, model, data):
        return copy.deepcopy(model).train()


@dataclass(frozen=True)
class Random(FinePruning):
    """Ends elsewhere each time."""

    def repair(self, model, data):
        found = super().repair(model, data)
        with torch.no_grad():
            next(found.parameters()).add_(1e-6 * torch.rand(1))
        return found


@pytest.mark.parametrize(
    ("repair", "check", "message"),
    [
        (Same, "changes", "it changes nothing"),
        (Same, "removes", "the trigger's success falls"),
        (Itself, "changes", "gives the model itself back"),
        (Original, "untouched", "the model was changed in place"),
        (Ruins, "keeps", "clean accuracy falls"),
        (Drops, "same-interface", "have scores of the shape"),
        (Training, "same-interface", "in evaluation mode"),
        (Random, "same-again", "the models differ"),
    ],
)
def test_a_repair_s_breach_is_noticed(repair, check, message):
    breached(check_repair, repair, check, message)


# defences that train


@dataclass(frozen=True)
class Detached(PGDTraining):
    """Its loss does not reach the first layer."""

    def loss(self, model, batch):
        with torch.no_grad():
            hidden = model[:-1](batch.x)
        return nn.functional.cross_entropy(model[-1](hidden), batch.y)


@dataclass(frozen=True)
class Evaluates(PGDTraining):
    """Leaves the model in evaluation mode."""

    def loss(self, model, batch):
        return super().loss(model.eval(), batch)


@dataclass(frozen=True)
class Backward(PGDTraining):
    """Takes the gradient itself."""

    def loss(self, model, batch):
        value = super().loss(model, batch)
        value.backward(retain_graph=True)
        return value


@dataclass(frozen=True)
class GlobalNoise(PGDTraining):
    """Draws from the global generator."""

    def loss(self, model, batch):
        return super().loss(model, replace(batch, x=(batch.x + 0.01 * torch.rand_like(batch.x)).clamp(0, 1)))


@dataclass(frozen=True)
class Counts(PGDTraining):
    """Scores by numbers."""

    def score(self, model, batch):
        return super().score(model, batch).float()


@dataclass(frozen=True)
class Updates(PGDTraining):
    """Lets the score move batch norm's statistics."""

    def score(self, model, batch):
        model.train()
        found = super().score(model, batch)
        model.eval()
        return found


class Pulls(Hooks):
    """Pulls the weights towards their mean over the steps, and does not say what it remembers."""

    def __init__(self):
        self.mean = {}

    def after_step(self, model, batch):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.lerp_(self.mean.setdefault(name, p.clone()).lerp_(p, 0.5), 0.3)


@dataclass(frozen=True)
class Forgets(PGDTraining):
    """Its hook's memory is not in the checkpoint."""

    def hooks(self):
        return Pulls()


SHARED = Pulls()


@dataclass(frozen=True)
class OneForAll(PGDTraining):
    """Gives every training the same hooks."""

    def hooks(self):
        return SHARED


@dataclass(frozen=True)
class Idle(PGDTraining):
    """Its loss teaches nothing."""

    def loss(self, model, batch):
        return super().loss(model, batch) * 1e-6 - model(batch.x).square().mean()


@pytest.mark.parametrize(
    ("defence", "check", "message"),
    [
        (Detached, "loss", "does not reach"),
        (Evaluates, "mode", "in another mode"),
        (Backward, "mode", "gradients were left"),
        (GlobalNoise, "draws", "global random state"),
        (Counts, "score", "is .n,. bool"),
        (Updates, "mode", "batch norm's statistics included"),
        (Forgets, "resumes", "belongs into its `state`"),
        (OneForAll, "fresh-hooks", "share their hooks"),
        (Idle, "learns", "of others right"),
    ],
)
def test_a_training_defence_s_breach_is_noticed(defence, check, message):
    breached(check_training_defence, defence, check, message)


# certifiers of training sets


def widened(told, by):
    return replace(told, certificates=tuple(c and replace(c, radius=c.radius + by) for c in told.certificates))


@dataclass(frozen=True)
class OneMore(DeepPartition):
    """Certifies one edit more than it proves."""

    def certify(self, learner, data, x):
        return widened(super().certify(learner, data, x), 1)


@dataclass(frozen=True)
class Doubles(DeepPartition):
    """Counts a changed vote once."""

    def certify(self, learner, data, x):
        told = super().certify(learner, data, x)
        return replace(told, certificates=tuple(c and replace(c, radius=2 * c.radius) for c in told.certificates))


@dataclass(frozen=True)
class Boundless(DeepPartition):
    """Certifies thirty edits whatever the votes."""

    def certify(self, learner, data, x):
        return widened(super().certify(learner, data, x), 30)


@dataclass(frozen=True)
class ByIndex(DeepPartition):
    """Splits by the place in the data set."""

    def _parts(self, data):
        return [rows for rows in torch.arange(len(data)).chunk(self.parts) if len(rows)]


@dataclass(frozen=True)
class Draws(DeepPartition):
    """Splits by lot."""

    def certify(self, learner, data, x):
        keep = torch.rand(len(data)) < 0.8
        return super().certify(learner, Dataset.of(data.x[keep], data.y[keep], classes=data.classes), x)


@dataclass(frozen=True)
class Zeros(DeepPartition):
    """Gives certificates of nothing."""

    def certify(self, learner, data, x):
        told = super().certify(learner, data, x)
        return widened(told, -max(c.radius for c in told.certificates if c))


@dataclass(frozen=True)
class Boasts(DeepPartition):
    """Its card says more than its certificates."""

    card = replace(DeepPartition.card, guarantee=None)


@pytest.mark.parametrize(
    ("certifier", "check", "message"),
    [
        (OneMore, "greedy-edits", "edits moved a prediction"),
        (Doubles, "greedy-edits", "edits moved a prediction"),
        (Boundless, "random-edits", "edits moved a prediction"),
        (ByIndex, "order", "must see the samples alone"),
        (Draws, "same-again", "two runs differ"),
        (Draws, "untouched", "global random state"),
        (Zeros, "shape", "certifies nothing"),
        (Boasts, "shape", "its card says None"),
    ],
)
def test_a_learner_certifier_s_breach_is_noticed(certifier, check, message):
    breached(check_learner_certifier, certifier, check, message)


# applications


@dataclass(frozen=True)
class NoControl(Fingerprint):
    """Says nothing of what others get."""

    def run(self, session):
        return replace(super().run(session), control={})


@dataclass(frozen=True)
class OtherControl(Fingerprint):
    """Its control is of something else."""

    def run(self, session):
        return replace(super().run(session), control={"loss": 1.0})


@dataclass(frozen=True)
class Free(Fingerprint):
    """Says that it costs nothing."""

    def run(self, session):
        return replace(super().run(session), cost=Cost())


@dataclass(frozen=True)
class Modest(Fingerprint):
    """Tells what its search cost, and not what was asked beside it."""

    def run(self, session):
        told = super().run(session)
        return replace(told, cost=Cost(told.cost.backwards, told.cost.backwards, 0))


@dataclass(frozen=True)
class Marks(Fingerprint):
    """Changes the model that it was given."""

    def run(self, session):
        with torch.no_grad():
            next(session.module.parameters()).mul_(1.0001)
        return super().run(session)


@dataclass(frozen=True)
class Casts(Fingerprint):
    """Draws its figure."""

    def run(self, session):
        told = super().run(session)
        return replace(told, figures={**told.figures, "match": float(torch.rand(1))})


@dataclass(frozen=True)
class ByGradient(Fingerprint):
    """Says that it needs labels alone, and takes gradients."""

    card = replace(Fingerprint.card, access=Access.HARD_LABEL)


@pytest.mark.parametrize(
    ("application", "check", "message"),
    [
        (NoControl, "control", "have no control"),
        (OtherControl, "control", "no figure of their name"),
        (Free, "cost", "went through the model"),
        (Modest, "cost", "inputs went through the model"),
        (Marks, "untouched", "the model was changed in place"),
        (Casts, "same-again", "gave another result"),
        (ByGradient, "access", "can only be asked"),
        (ByGradient, "cost", "queries"),
    ],
)
def test_an_application_s_breach_is_noticed(application, check, message):
    breached(check_application, application, check, message)
