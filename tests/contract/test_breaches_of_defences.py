"""The suites of aggregators, sanitisers, detectors, inspectors and repairs must notice what is planted here."""

import copy
from dataclasses import replace

import pytest
import torch
from planted import Breaches, noticed
from torch import nn

from holdfast.defences.aggregation.median import Median
from holdfast.defences.detection.feature_squeezing import FeatureSqueezing
from holdfast.defences.sanitisation.spectral_signatures import SpectralSignatures
from holdfast.defences.trojans.fine_pruning import FinePruning
from holdfast.defences.trojans.neural_cleanse import NeuralCleanse
from holdfast.testing._manners import weights_of
from holdfast.transforms.triggers import Overlay

breaches = Breaches()


# aggregators


@breaches.of(order="the order of the clients")
class First(Median):
    """Trusts the first client most."""

    def combine(self, updates, sizes, state):
        return 0.9 * updates.median(0).values + 0.1 * updates[0], state


@breaches.of(outliers="which it says it tolerates")
class Mean(Median):
    """A mean that says that it withstands half of the clients."""

    def combine(self, updates, sizes, state):
        return updates.mean(0), state


@breaches.of(order="the order of the clients")
class Middle(Median):
    """Trusts the client in the middle most, whoever that is."""

    def combine(self, updates, sizes, state):
        return 0.9 * updates.median(0).values + 0.1 * updates[len(updates) // 2], state


@breaches.of(outliers="when they lie about their samples")
class Believes(Median):
    """Counts a client as often as it says that it has samples."""

    def combine(self, updates, sizes, state):
        rows = updates.argsort(0)
        weight = sizes[rows].double().cumsum(0) / sizes.sum()
        return updates.gather(0, rows).gather(0, (weight < 0.5).sum(0, keepdim=True))[0], state


@breaches.of(outliers="6 of 12 clients")
class Half(Median):
    """Says that half of the clients may be hostile, the half of an even number too."""

    def tolerates(self, clients):
        return clients // 2


@breaches.of(unanimous="another one back")
class Scaled(Median):
    """Gives the median the mean length, by a division that nothing does not bear."""

    def combine(self, updates, sizes, state):
        joined = super().combine(updates, sizes, state)[0]
        return joined / joined.norm() * updates.norm(dim=1).median(), state


@breaches.of(few_clients="round of 1 clients")
class Spread(Median):
    """Divides by a deviation that one client does not have."""

    def combine(self, updates, sizes, state):
        middle = updates.median(0).values
        return middle + 0 * (updates - middle).square().sum(0) / (len(updates) - 1), state


@breaches.of(rounds="its state is None")
class NoMemory(Median):
    """Gives no state back."""

    def combine(self, updates, sizes, state):
        return super().combine(updates, sizes, state)[0], None


@breaches.of(unanimous="another one back")
class Halves(Median):
    """Shrinks what all agree on."""

    def combine(self, updates, sizes, state):
        return updates.median(0).values / 2, state


@breaches.of(shape="updates became")
class Flat(Median):
    """Joins to one number."""

    def combine(self, updates, sizes, state):
        return updates.median(), state


@breaches.of(shape="joined in float64")
class Single(Median):
    """Joins in float32."""

    def combine(self, updates, sizes, state):
        return updates.float().median(0).values, state


@breaches.of(untouched="an input was changed in place")
class InPlace(Median):
    """Clips the updates that it was handed."""

    def combine(self, updates, sizes, state):
        return updates.clamp_(-0.5, 0.5).median(0).values, state


@breaches.of(what_came_in="must refuse an update that is not a number")
class Trusting(Median):
    """Takes what comes."""

    def aggregate(self, updates, sizes, state):
        return self.combine(updates.double().nan_to_num(), sizes, state)


# sanitisers


@breaches.of(ranks_poison_first="50% of all pairs")
class Alike(SpectralSignatures):
    """Finds every sample as suspicious as the next."""

    def scores(self, data, model=None):
        return torch.ones(len(data), dtype=torch.float64)


@breaches.of(ranks_poison_first="chance is 50 %")
class Wrong(SpectralSignatures):
    """Ranks the other way round."""

    def scores(self, data, model=None):
        return -super().scores(data, model)


@breaches.of(order="the order of the data")
class ByRow(SpectralSignatures):
    """Suspects who comes late."""

    def scores(self, data, model=None):
        return super().scores(data, model) + torch.arange(len(data))


@breaches.of(few_of_a_class="alone in its class")
class Deviations(SpectralSignatures):
    """Counts the scores of a class in their deviation, which one sample has none of."""

    def scores(self, data, model=None):
        found = super().scores(data, model)
        for label in data.y.unique():
            mine = found[data.y == label]
            found[data.y == label] = (mine - mine.mean()) / ((mine - mine.mean()).square().sum() / (len(mine) - 1))
        return found


@breaches.of(mode="in training mode has other scores")
class AsItIs(SpectralSignatures):
    """Asks the model in the mode that it comes in."""

    def scores(self, data, model=None):
        with torch.no_grad():
            return -self.needed(model)(data.x).log_softmax(1).gather(1, data.y.unsqueeze(1)).squeeze(1).double()


@breaches.of(same_again="the second time", untouched="global random state")
class Dice(SpectralSignatures):
    """Throws dice."""

    def scores(self, data, model=None):
        return super().scores(data, model) + 1e-3 * torch.rand(len(data), dtype=torch.float64)


@breaches.of(blind="reads the manifest")
class Peeks(SpectralSignatures):
    """Looks for the manifest."""

    def scores(self, data, model=None):
        getattr(data, "manifest", None)
        return super().scores(data, model)


@breaches.of(shape="must be finite")
class Blank(SpectralSignatures):
    """Has no score for some."""

    def scores(self, data, model=None):
        found = super().scores(data, model)
        found[3] = float("nan")
        return found


@breaches.of(untouched="the model was changed")
class LeavesHooks(SpectralSignatures):
    """Leaves a hook in the model."""

    def scores(self, data, model=None):
        self.needed(model).register_forward_hook(lambda *_: None)
        return super().scores(data, model)


@breaches.of(without_model="AttributeError")
class Needy(SpectralSignatures):
    """Has no words for a model that is not there."""

    def needed(self, model):
        return model


# detectors


@breaches.of(false_positives="flags 100% of new clean inputs")
class Everything(FeatureSqueezing):
    """Flags everything."""

    def score(self, model, x):
        return super().score(model, x) + 10


@breaches.of(false_positives="flags 0% of new clean inputs where it is allowed half")
class Never(FeatureSqueezing):
    """Tells apart, and flags nothing."""

    def score(self, model, x):
        return super().score(model, x) - 10


@breaches.of(tells_apart="50% of all pairs")
class Nothing(FeatureSqueezing):
    """Scores every input alike."""

    def score(self, model, x):
        return super().score(model, x) * 0 - 1


@breaches.of(fits="must refuse a score before it is fitted")
class Unfitted(FeatureSqueezing):
    """Has a threshold of its own."""

    def score(self, model, x):
        return replace(self, threshold=self.threshold or 0.3)._distance(model, x)


@breaches.of(same_again="it scores differently")
class Wavers(FeatureSqueezing):
    """Draws a part of its threshold."""

    def fit(self, model, data):
        made = super().fit(model, data)
        return replace(made, threshold=made.threshold + 0.01 * float(torch.rand(1)))


@breaches.of(fits="fitting changed the detector itself")
class Learns(FeatureSqueezing):
    """Remembers the fit in itself."""

    def fit(self, model, data):
        object.__setattr__(self, "threshold", super().fit(model, data).threshold)
        return self


@breaches.of(alone="another score alone")
class Relative(FeatureSqueezing):
    """Scores an input against those beside it."""

    def score(self, model, x):
        found = super().score(model, x)
        return found - found.mean()


@breaches.of(fits="keeps something of the fit before")
class Once(FeatureSqueezing):
    """Is fitted once and for all."""

    def fit(self, model, data):
        return super().fit(model, data) if self.threshold is None else replace(self)


@breaches.of(mode="in training mode has other scores")
class Asks(FeatureSqueezing):
    """Asks the model in the mode that it comes in."""

    def _distance(self, model, x):
        with torch.no_grad():
            return (model(x).softmax(1) - model(self.squeezed(x)[1]).softmax(1)).abs().sum(1)


@breaches.of(alone="RuntimeError: amax")
class Crowd(FeatureSqueezing):
    """Needs an input to look at the range."""

    def score(self, model, x):
        assert x.amax() <= 1
        return super().score(model, x)


@breaches.of(untouched="the model was changed")
class Trains(FeatureSqueezing):
    """Leaves the model in training mode."""

    def fit(self, model, data):
        model.train()
        return super().fit(model, data)


@breaches.of(blind="reads the manifest")
class Spies(FeatureSqueezing):
    """Looks for a manifest."""

    def fit(self, model, data):
        assert not hasattr(data, "manifest")
        return super().fit(model, data)


# inspectors


FOUND = {}


class Remembered(NeuralCleanse):
    """Inspects each network once for all breaches, which then tell another thing of what was found."""

    def inspect(self, model, data=None):
        key = self.steps, self.samples, type(model), weights_of(model), None if data is None else data.sha256
        if key not in FOUND:
            FOUND[key] = NeuralCleanse(steps=self.steps, samples=self.samples).inspect(model, data)
        return FOUND[key]


@breaches.of(spares="above the threshold")
class Suspects(Remembered):
    """Flags every model."""

    def inspect(self, model, data=None):
        return replace(super().inspect(model, data), threshold=-1.0)


@breaches.of(finds="below the threshold")
class Trusts(Remembered):
    """Flags none."""

    def inspect(self, model, data=None):
        return replace(super().inspect(model, data), threshold=1e9)


@breaches.of(finds="the backdoor's target is 7")
class Guesses(Remembered):
    """Tells another target."""

    def inspect(self, model, data=None):
        found = super().inspect(model, data)
        return replace(found, target=(found.target + 1) % 10)


@breaches.of(finds="the backdoor's target is 0, and it tells 7")
class Seven(Remembered):
    """Was written on one backdoored network."""

    def inspect(self, model, data=None):
        return replace(super().inspect(model, data), target=7)


@breaches.of(finding="names neural_cleanse")
class Unnamed(Remembered):
    """Signs as the method that it was copied from."""


@breaches.of(without_data="AttributeError")
class NeedsData(Remembered):
    """Needs data, and does not say so."""

    def inspect(self, model, data=None):
        bright = float(data.x.mean())
        return replace(super().inspect(model, data), score=bright)


@breaches.of(finding="the score of a class is not finite")
class Unreached(Remembered):
    """Has no number for a class that it did not reach."""

    def inspect(self, model, data=None):
        found = super().inspect(model, data)
        return replace(found, by_class=torch.where(found.by_class > 0, found.by_class, float("inf")))


@breaches.of(mode="RuntimeError")
class NeedsGradients(Remembered):
    """Takes gradients, and relies on its caller that they are on."""

    def inspect(self, model, data=None):
        x = data.x[:4].clone().requires_grad_()
        model(x).sum().backward()
        return super().inspect(model, data)


@breaches.of(mode="in training mode has another finding")
class Sleepy(Remembered):
    """Asks the model in the mode that it comes in."""

    def inspect(self, model, data=None):
        return replace(super().inspect(model, data), score=float(model(data.x).amax()))


@breaches.of(trigger="carries 0% of other classes|carries [0-9]% of other classes")
class Paints(Remembered):
    """Shows a trigger that does nothing."""

    def inspect(self, model, data=None):
        return replace(super().inspect(model, data), trigger=Overlay(torch.zeros(8, 8), torch.tensor(1.0)))


@breaches.of(trigger="shows the class, not the backdoor")
class Covers(Remembered):
    """Shows the picture of a seven for a trigger."""

    def inspect(self, model, data=None):
        seven = data.x[data.y == 7].mean(0)
        return replace(super().inspect(model, data), trigger=Overlay(torch.ones(8, 8), seven))


@breaches.of(finding="must be finite")
class Infinite(Remembered):
    """Has no number for its suspicion."""

    def inspect(self, model, data=None):
        return replace(super().inspect(model, data), score=float("inf"))


@breaches.of(blind="reads the manifest")
class Reads(Remembered):
    """Reads the manifest."""

    def inspect(self, model, data=None):
        return super().inspect(
            model, data if data is None else replace(data, notes=(repr(getattr(data, "manifest", 0)),))
        )


@breaches.of(same_again="another finding the second time", untouched="global random state")
class Moody(Remembered):
    """Has a score of its own each time."""

    def inspect(self, model, data=None):
        found = super().inspect(model, data)
        return replace(found, score=found.score + float(torch.rand(1)) * 1e-3)


# repairs


@breaches.of(blind="reads the manifest")
class Informed(FinePruning):
    """Reads the manifest."""

    def repair(self, model, data):
        assert data.manifest
        return super().repair(model, data)


@breaches.of(changes="it changes nothing", removes="the trigger's success falls")
class Same(FinePruning):
    """Gives a copy back."""

    def repair(self, model, data):
        return copy.deepcopy(model).eval()


@breaches.of(changes="gives the model itself back")
class Itself(FinePruning):
    """Gives the model itself back."""

    def repair(self, model, data):
        return model


@breaches.of(changes="are the given model's own")
class Shares(FinePruning):
    """Copies the layers that it changes, and no others."""

    def repair(self, model, data):
        found = copy.deepcopy(model).eval()
        found[1].weight = model[1].weight
        with torch.no_grad():
            found[3].weight.mul_(0.5)
        return found


@breaches.of(saved="must stand in them, not in hooks")
class Masks(FinePruning):
    """Silences units by a hook."""

    def repair(self, model, data):
        found = copy.deepcopy(model).eval()
        found[3].register_forward_hook(lambda _, __, output: output * (torch.arange(64) > 9))
        return found


@breaches.of(saved="cannot be trained any more")
class Freezes(FinePruning):
    """Freezes what it has repaired."""

    def repair(self, model, data):
        found = copy.deepcopy(model).eval()
        return found.requires_grad_(False)


@breaches.of(saved="do not fit the network")
class Wraps(FinePruning):
    """Wraps the network."""

    def repair(self, model, data):
        return nn.Sequential(copy.deepcopy(model)).eval()


@breaches.of(untouched="the model was changed in place")
class Original(FinePruning):
    """Repairs the model that it was given."""

    def repair(self, model, data):
        model.load_state_dict(super().repair(model, data).state_dict())
        return copy.deepcopy(model)


@breaches.of(keeps="clean accuracy falls")
class Ruins(FinePruning):
    """Removes the backdoor and all else."""

    def repair(self, model, data):
        found = copy.deepcopy(model).eval()
        with torch.no_grad():
            for p in found.parameters():
                p.mul_(0.01)
        return found


@breaches.of(same_interface="have scores of the shape")
class Drops(FinePruning):
    """Gives a model with fewer classes."""

    def repair(self, model, data):
        return nn.Sequential(copy.deepcopy(model), nn.Linear(10, 9)).eval()


@breaches.of(same_interface="in evaluation mode")
class Training(FinePruning):
    """Forgets the mode."""

    def repair(self, model, data):
        return copy.deepcopy(model).train()


@breaches.of(same_again="the models differ")
class Random(FinePruning):
    """Ends elsewhere each time."""

    def repair(self, model, data):
        found = super().repair(model, data)
        with torch.no_grad():
            next(found.parameters()).add_(1e-6 * torch.rand(1))
        return found


@pytest.mark.parametrize(("method", "check", "message"), breaches.cases)
def test_a_breach_is_noticed(method, check, message):
    noticed(method, check, message)
