"""The suites of defences that train and of certifiers of training sets must notice what is planted here."""

from dataclasses import replace

import pytest
import torch
from planted import Breaches, noticed
from torch import nn

from holdfast.certifiers.data.deep_partition import DeepPartition
from holdfast.data.dataset import Dataset
from holdfast.defences.adversarial_training.pgd_training import PGDTraining
from holdfast.training.hooks import Hooks
from holdfast.training.learner import RidgeLearner

breaches = Breaches()


# defences that train


@breaches.of(loss="does not reach")
class Detached(PGDTraining):
    """Its loss does not reach the first layer."""

    def loss(self, model, batch):
        with torch.no_grad():
            hidden = model[:-1](batch.x)
        return nn.functional.cross_entropy(model[-1](hidden), batch.y)


@breaches.of(mean="take the mean over the batch")
class Sums(PGDTraining):
    """Sums over the batch."""

    def loss(self, model, batch):
        return super().loss(model, batch) * len(batch.x)


@breaches.of(draws="an input was changed in place")
class Marks(PGDTraining):
    """Makes a leaf of the batch that it was handed."""

    def loss(self, model, batch):
        batch.x.requires_grad_()
        return super().loss(model, batch)


@breaches.of(mode="in another mode")
class Evaluates(PGDTraining):
    """Leaves the model in evaluation mode."""

    def loss(self, model, batch):
        return super().loss(model.eval(), batch)


@breaches.of(mode="gradients were left")
class Backward(PGDTraining):
    """Takes the gradient itself."""

    def loss(self, model, batch):
        value = super().loss(model, batch)
        value.backward(retain_graph=True)
        return value


@breaches.of(draws="global random state")
class GlobalNoise(PGDTraining):
    """Draws from the global generator."""

    def loss(self, model, batch):
        return super().loss(model, replace(batch, x=(batch.x + 0.01 * torch.rand_like(batch.x)).clamp(0, 1)))


@breaches.of(score="is .n,. bool")
class Counts(PGDTraining):
    """Scores by numbers."""

    def score(self, model, batch):
        return super().score(model, batch).float()


@breaches.of(mode="batch norm's statistics included")
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


@breaches.of(resumes="belongs into its `state`")
class Forgets(PGDTraining):
    """Its hook's memory is not in the checkpoint."""

    def hooks(self):
        return Pulls()


SHARED = Pulls()


@breaches.of(fresh_hooks="share their hooks")
class OneForAll(PGDTraining):
    """Gives every training the same hooks."""

    def hooks(self):
        return SHARED


@breaches.of(learns="of others right")
class Idle(PGDTraining):
    """Its loss teaches nothing."""

    def loss(self, model, batch):
        return super().loss(model, batch) * 1e-6 - model(batch.x).square().mean()


# certifiers of training sets


def widened(told, by):
    return replace(told, certificates=tuple(c and replace(c, radius=c.radius + by) for c in told.certificates))


@breaches.of(greedy_edits="edits moved a prediction")
class OneMore(DeepPartition):
    """Certifies one edit more than it proves."""

    def certify(self, learner, data, x):
        return widened(super().certify(learner, data, x), 1)


@breaches.of(greedy_edits="edits moved a prediction")
class Doubles(DeepPartition):
    """Counts a changed vote once."""

    def certify(self, learner, data, x):
        told = super().certify(learner, data, x)
        return replace(told, certificates=tuple(c and replace(c, radius=2 * c.radius) for c in told.certificates))


@breaches.of(random_edits="edits moved a prediction")
class Boundless(DeepPartition):
    """Certifies thirty edits whatever the votes."""

    def certify(self, learner, data, x):
        return widened(super().certify(learner, data, x), 30)


@breaches.of(learner="never trains the learner")
class Own(DeepPartition):
    """Trains a learner of its own choice."""

    def certify(self, learner, data, x):
        return super().certify(RidgeLearner(), data, x)


@breaches.of(learner="classes, and the data have 3")
class FromLabels(DeepPartition):
    """Counts the classes in the labels."""

    def certify(self, learner, data, x):
        return super().certify(learner, Dataset.of(data.x, data.y), x)


@breaches.of(greedy_edits="edits moved a prediction")
class Ties(DeepPartition):
    """Forgets that the other class may win a tie."""

    def certify(self, learner, data, x):
        told, votes = super().certify(learner, data, x), torch.zeros(len(x), data.class_count)
        for rows in self._parts(data):
            votes[torch.arange(len(x)), learner.learn(data.x[rows], data.y[rows], data.class_count)(x)] += 1
        first, second = votes.topk(2).values.T
        radii = ((first - second) // 2).tolist()
        return replace(
            told, certificates=tuple(c and replace(c, radius=r) for c, r in zip(told.certificates, radii, strict=True))
        )


@breaches.of(order="must see the samples alone")
class ByIndex(DeepPartition):
    """Splits by the place in the data set."""

    def _parts(self, data):
        return [rows for rows in torch.arange(len(data)).chunk(self.parts) if len(rows)]


@breaches.of(same_again="two runs differ", untouched="global random state")
class Draws(DeepPartition):
    """Splits by lot."""

    def certify(self, learner, data, x):
        keep = torch.rand(len(data)) < 0.8
        return super().certify(learner, Dataset.of(data.x[keep], data.y[keep], classes=data.classes), x)


@breaches.of(shape="certifies nothing")
class Zeros(DeepPartition):
    """Gives certificates of nothing."""

    def certify(self, learner, data, x):
        told = super().certify(learner, data, x)
        return widened(told, -max(c.radius for c in told.certificates if c))


@breaches.of(shape="its card says None")
class Boasts(DeepPartition):
    """Its card says more than its certificates."""

    card = replace(DeepPartition.card, guarantee=None)


@pytest.mark.parametrize(("method", "check", "message"), breaches.cases)
def test_a_breach_is_noticed(method, check, message):
    noticed(method, check, message)
