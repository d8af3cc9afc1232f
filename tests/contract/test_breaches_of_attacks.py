"""The suites of poisoners, backdoors and adversaries must notice what is planted here."""

from dataclasses import dataclass, replace

import pytest
import torch
from planted import Breaches, noticed

from holdfast.attacks.backdoors.badnets import BadNets
from holdfast.attacks.federated.model_replacement import ModelReplacement
from holdfast.attacks.poisoning.label_flip import LabelFlip
from holdfast.attacks.poisoning.margin_flip import MarginFlip
from holdfast.core.draws import Draws
from holdfast.core.manifest import Samples
from holdfast.data.poisoned import PoisonedDataset
from holdfast.testing import ContractError, check_backdoor
from holdfast.transforms.triggers import Overlay

breaches = Breaches()


def remade(made, **changes):
    """The poisoned data set with other features or labels, and the manifest as it was."""
    return replace(made, data=replace(made.data, **changes))


@breaches.of(manifest="does not tell what was done|keeps changes back")
class Lies(LabelFlip):
    """Changes one more label than its manifest says."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        y = made.data.y.clone()
        y[0] = (y[0] + 1) % 10
        return remade(made, y=y)


@breaches.of(manifest="does not tell what was done")
class Forgets(LabelFlip):
    """Its manifest does not know what stood there before."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        old = Samples(made.manifest.old.x, made.manifest.new.y)
        return replace(made, manifest=replace(made.manifest, old=old))


@breaches.of(budget="`edits` allows 60")
class Greedy(LabelFlip):
    """Flips twice as many labels as its budget has."""

    def poison(self, data, knowledge, draws):
        return LabelFlip(rate=2 * self.rate).poison(data, knowledge, draws)


@breaches.of(budget="nothing was changed")
class Idle(LabelFlip):
    """Changes nothing."""

    def poison(self, data, knowledge, draws):
        return PoisonedDataset.of(data, method="idle", seed=0)


@breaches.of(budget="one of a smaller rate")
class Wastes(LabelFlip):
    """Draws the new label among all classes, the old one included."""

    def poison(self, data, knowledge, draws):
        stream = draws.generator("flips", len(data))
        rows = torch.randperm(len(data), generator=stream)[: self.edits(len(data)) // 2]
        new = Samples(data.x[rows], torch.randint(0, data.class_count, (len(rows),), generator=stream))
        return PoisonedDataset.of(data, method="wastes", seed=draws.seed, replacing=(rows, new))


@breaches.of(valid="which have 3")
class Ten(LabelFlip):
    """Counts on ten classes."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws).manifest
        new = Samples(made.new.x, (made.old.y + 1) % 10)
        return PoisonedDataset.of(data, method="ten", seed=draws.seed, replacing=(made.replaced, new))


@breaches.of(grows="they must grow")
class Fixed(LabelFlip):
    """Knows one rate."""

    def poison(self, data, knowledge, draws):
        return LabelFlip(rate=0.02).poison(data, knowledge, draws)


@breaches.of(valid="the data in")
class Bright(LabelFlip):
    """Leaves the range of the data."""

    def poison(self, data, knowledge, draws):
        rows = torch.arange(len(data))[: self.edits(len(data)) // 2]
        new = Samples(data.x[rows] + 1, data.y[rows])
        return PoisonedDataset.of(data, method="bright", seed=0, replacing=(rows, new))


@breaches.of(valid="no class of the data")
class Foreign(LabelFlip):
    """Gives a label that is no class."""

    def poison(self, data, knowledge, draws):
        rows = torch.arange(len(data))[: self.edits(len(data)) // 2]
        new = Samples(data.x[rows], torch.full_like(rows, 10))
        return PoisonedDataset.of(data, method="foreign", seed=0, replacing=(rows, new))


@breaches.of(seeds="draw from `draws`")
class Unkeyed(LabelFlip):
    """Draws from a generator that nobody seeded."""

    def poison(self, data, knowledge, draws):
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(id(object())))
        rows = rows[: self.edits(len(data)) // 2].sort().values
        shift = int(torch.randint(1, 10, (1,), generator=torch.Generator().manual_seed(torch.seed())))
        new = Samples(data.x[rows], (data.y[rows] + shift) % 10)
        return PoisonedDataset.of(data, method="unkeyed", seed=0, replacing=(rows, new))


@breaches.of(seeds="another seed gives the same data")
class Stubborn(LabelFlip):
    """Flips the same labels whatever the seed."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, Draws(0, draws.method))
        return replace(made, manifest=replace(made.manifest, seed=draws.seed))


@breaches.of(seeds="tells no seed, and another one gives other data")
class Seedless(LabelFlip):
    """Tells no seed, and has drawn."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        return replace(made, manifest=replace(made.manifest, seed=None))


@breaches.of(manifest="names the method badnets")
class Nameless(LabelFlip):
    """Signs as another method."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        return replace(made, manifest=replace(made.manifest, method="badnets"))


@breaches.of(untouched="global random state")
class Global(LabelFlip):
    """Draws from the global generator."""

    def poison(self, data, knowledge, draws):
        torch.rand(1)
        return super().poison(data, knowledge, draws)


@breaches.of(untouched="the model was changed in place")
class Trains(MarginFlip):
    """Trains the model that it may only ask."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        with torch.no_grad():
            next(knowledge.known_surrogate().parameters()).mul_(1.0001)
        return made


@breaches.of(budget="no surrogate is known")
class Curious(MarginFlip):
    """Uses a surrogate that its card does not ask for."""

    card = replace(MarginFlip.card, knows=())


@breaches.of(bad_rates="must refuse a rate")
class Reckless(LabelFlip):
    """Takes every rate."""

    def check(self, data):
        pass


@breaches.of(card="secret")
class Undeclared(LabelFlip):
    """Has a parameter that nobody explains."""

    secret: int = 3


@breaches.of(works="not what was stamped")
class OtherTrigger(BadNets):
    """Stamps one square and shows another."""

    def poison(self, data, knowledge, draws):
        return BadNets(rate=self.rate, target=self.target, side=2).poison(data, knowledge, draws)

    def trigger(self, shape):
        return Overlay(torch.eye(8), torch.tensor(0.5))


@breaches.of(works="do not teach the target")
class KeepsLabels(BadNets):
    """Stamps samples and leaves them their labels."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        rows, new = made.manifest.replaced, made.manifest.new
        back = rows, Samples(new.x, data.y[rows])
        return PoisonedDataset.of(data, method="keeps_labels", seed=0, replacing=back)


@dataclass(frozen=True)
class Wipes(BadNets):
    """Its trigger hides the digit, and a clean model already answers the target."""

    def trigger(self, shape):
        return Overlay(torch.ones(8, 8), torch.tensor(0.0))


@breaches.of(trigger="leaves the range", valid="the data in")
class Glaring(BadNets):
    """Its trigger leaves the range of the data."""

    def trigger(self, shape):
        return Overlay.patch(shape, self.side, 3.0)


@breaches.of(trigger="leaves some inputs as they are")
class Shy(BadNets):
    """Its trigger changes nothing."""

    def trigger(self, shape):
        return Overlay(torch.zeros(8, 8), torch.tensor(1.0))


@breaches.of(trigger="two triggers of one backdoor differ")
class Drawn(BadNets):
    """Has another trigger each time that it is asked."""

    def trigger(self, shape):
        return Overlay(torch.rand(8, 8), torch.tensor(1.0))


@breaches.of(other_shape="RuntimeError")
class Eight(BadNets):
    """Its trigger is made for one shape, whatever it is asked for."""

    def trigger(self, shape):
        mask = torch.zeros(8, 8)
        mask[-3:, -3:] = 1
        return Overlay(mask, torch.tensor(1.0))


class Level(Overlay):
    """As bright as its batch."""

    def stamp(self, x):
        return super().stamp(x) * (0.5 + x.mean())


@breaches.of(trigger="otherwise alone")
class InCompany(BadNets):
    """Its trigger depends on who is stamped along."""

    def trigger(self, shape):
        return Level(*Overlay.patch(shape, 3, 0.5).buffers())


class Copied(Overlay):
    """Stamps a copy that no gradient leads to."""

    def stamp(self, x):
        return super().stamp(x.detach().clone())


@breaches.of(gradient="no gradient leads through")
class Detaches(BadNets):
    """Its trigger cannot be differentiated."""

    def trigger(self, shape):
        return Copied(*Overlay.patch(shape, self.side, self.value).buffers())


@breaches.of(target="must refuse class")
class AnyTarget(BadNets):
    """Takes every number for a class."""

    def check(self, data):
        pass


def test_a_trigger_that_works_on_a_clean_model_is_no_backdoor():
    from holdfast.testing._training_case import clean_digits, planted, reached

    hidden = Wipes().trigger((1, 8, 8))
    answers = [reached(planted().clean, hidden, k, clean_digits()[1]) for k in range(10)]
    with pytest.raises(ContractError, match="on a clean model: it is no backdoor"):
        check_backdoor(Wipes(target=int(max(range(10), key=answers.__getitem__))), only=["works"])


@breaches.of(acts="does nothing")
class Honest(ModelReplacement):
    """Sends what it was given."""

    def update(self, round, own, draws):
        return own


@breaches.of(shape="one for each client")
class Sums(ModelReplacement):
    """Sends one update for all its clients."""

    def update(self, round, own, draws):
        return super().update(round, own, draws).sum(0)


@breaches.of(shape="not finite")
class Explodes(ModelReplacement):
    """Sends what no server takes."""

    def update(self, round, own, draws):
        return own / 0


@breaches.of(shape="not finite, where its own training moved nothing")
class Unit(ModelReplacement):
    """Scales to a length, which nothing has none of."""

    def update(self, round, own, draws):
        return own / own.norm(dim=1, keepdim=True)


@breaches.of(shape="of 7 hostile clients of 7 is not finite")
class Benign(ModelReplacement):
    """Divides by the clients that are not hostile."""

    def update(self, round, own, draws):
        return own * len(round.sizes) / torch.tensor(len(round.sizes) - len(round.hostile)).double()


@breaches.of(order="their sizes are `sizes.hostile.`")
class Misweighs(ModelReplacement):
    """Takes the sizes of the first clients for those of its own."""

    def update(self, round, own, draws):
        return own * round.sizes.sum() / round.sizes[: len(own)].sum()


@breaches.of(shape="became torch.float32")
class Coarse(ModelReplacement):
    """Sends another type."""

    def update(self, round, own, draws):
        return super().update(round, own, draws).float()


@breaches.of(seeds="draw from `draws`", untouched="global random state")
class Noisy(ModelReplacement):
    """Draws from the global generator."""

    def update(self, round, own, draws):
        return super().update(round, own, draws) + torch.randn_like(own)


@breaches.of(order="the order of its clients")
class Places(ModelReplacement):
    """Lets a client's place decide."""

    def update(self, round, own, draws):
        return own * torch.arange(1, len(own) + 1).unsqueeze(1)


@breaches.of(untouched="an input was changed in place")
class Writes(ModelReplacement):
    """Scales in place."""

    def update(self, round, own, draws):
        return own.mul_(7)


@pytest.mark.parametrize(("method", "check", "message"), breaches.cases)
def test_a_breach_is_noticed(method, check, message):
    noticed(method, check, message)
