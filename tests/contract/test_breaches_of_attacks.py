"""The suites of poisoners, backdoors and adversaries must notice what is planted here."""

from dataclasses import dataclass, replace

import pytest
import torch

from holdfast.attacks.backdoors.badnets import BadNets
from holdfast.attacks.federated.model_replacement import ModelReplacement
from holdfast.attacks.poisoning.label_flip import LabelFlip
from holdfast.attacks.poisoning.margin_flip import MarginFlip
from holdfast.core.draws import Draws
from holdfast.core.manifest import Samples
from holdfast.data.poisoned import PoisonedDataset
from holdfast.testing import ContractError, check_adversary, check_backdoor, check_poisoner
from holdfast.transforms.triggers import Overlay


def remade(made, **changes):
    """The poisoned data set with other features or labels, and the manifest as it was."""
    return replace(made, data=replace(made.data, **changes))


@dataclass(frozen=True)
class Lies(LabelFlip):
    """Changes one more label than its manifest says."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        y = made.data.y.clone()
        y[0] = (y[0] + 1) % 10
        return remade(made, y=y)


@dataclass(frozen=True)
class Forgets(LabelFlip):
    """Its manifest does not know what stood there before."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        old = Samples(made.manifest.old.x, made.manifest.new.y)
        return replace(made, manifest=replace(made.manifest, old=old))


@dataclass(frozen=True)
class Greedy(LabelFlip):
    """Flips twice as many labels as its budget has."""

    def poison(self, data, knowledge, draws):
        return LabelFlip(rate=2 * self.rate).poison(data, knowledge, draws)


@dataclass(frozen=True)
class Idle(LabelFlip):
    """Changes nothing."""

    def poison(self, data, knowledge, draws):
        return PoisonedDataset.of(data, method="idle", seed=0)


@dataclass(frozen=True)
class Fixed(LabelFlip):
    """Knows one rate."""

    def poison(self, data, knowledge, draws):
        return LabelFlip(rate=0.02).poison(data, knowledge, draws)


@dataclass(frozen=True)
class Bright(LabelFlip):
    """Leaves the range of the data."""

    def poison(self, data, knowledge, draws):
        rows = torch.arange(len(data))[: self.edits(len(data)) // 2]
        new = Samples(data.x[rows] + 1, data.y[rows])
        return PoisonedDataset.of(data, method="bright", seed=0, replacing=(rows, new))


@dataclass(frozen=True)
class Foreign(LabelFlip):
    """Gives a label that is no class."""

    def poison(self, data, knowledge, draws):
        rows = torch.arange(len(data))[: self.edits(len(data)) // 2]
        new = Samples(data.x[rows], torch.full_like(rows, 10))
        return PoisonedDataset.of(data, method="foreign", seed=0, replacing=(rows, new))


@dataclass(frozen=True)
class Unkeyed(LabelFlip):
    """Draws from a generator that nobody seeded."""

    def poison(self, data, knowledge, draws):
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(id(object())))
        rows = rows[: self.edits(len(data)) // 2].sort().values
        shift = int(torch.randint(1, 10, (1,), generator=torch.Generator().manual_seed(torch.seed())))
        new = Samples(data.x[rows], (data.y[rows] + shift) % 10)
        return PoisonedDataset.of(data, method="unkeyed", seed=0, replacing=(rows, new))


@dataclass(frozen=True)
class Stubborn(LabelFlip):
    """Flips the same labels whatever the seed."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, Draws(0, draws.method))
        return replace(made, manifest=replace(made.manifest, seed=draws.seed))


@dataclass(frozen=True)
class Seedless(LabelFlip):
    """Tells no seed, and has drawn."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        return replace(made, manifest=replace(made.manifest, seed=None))


@dataclass(frozen=True)
class Nameless(LabelFlip):
    """Signs as another method."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        return replace(made, manifest=replace(made.manifest, method="badnets"))


@dataclass(frozen=True)
class Global(LabelFlip):
    """Draws from the global generator."""

    def poison(self, data, knowledge, draws):
        torch.rand(1)
        return super().poison(data, knowledge, draws)


@dataclass(frozen=True)
class Trains(MarginFlip):
    """Trains the model that it may only ask."""

    def poison(self, data, knowledge, draws):
        made = super().poison(data, knowledge, draws)
        with torch.no_grad():
            next(knowledge.known_surrogate().parameters()).mul_(1.0001)
        return made


@dataclass(frozen=True)
class Curious(MarginFlip):
    """Uses a surrogate that its card does not ask for."""

    card = replace(MarginFlip.card, knows=())


@dataclass(frozen=True)
class Reckless(LabelFlip):
    """Takes every rate."""

    def check(self, data):
        pass


@dataclass(frozen=True)
class Undeclared(LabelFlip):
    """Has a parameter that nobody explains."""

    secret: int = 3


@pytest.fixture(autouse=True)
def same_surrogate():
    """A breach may train the network that all checks share; it is put back."""
    from holdfast.testing._training_case import planted

    before = {k: v.clone() for k, v in planted().clean.state_dict().items()}
    yield
    planted().clean.load_state_dict(before)


@pytest.mark.parametrize(
    ("poisoner", "check", "message"),
    [
        (Lies, "manifest", "does not tell what was done|keeps changes back"),
        (Forgets, "manifest", "does not tell what was done"),
        (Greedy, "budget", "`edits` allows 60"),
        (Idle, "budget", "nothing was changed"),
        (Fixed, "grows", "they must grow"),
        (Bright, "valid", "the data in"),
        (Foreign, "valid", "no class of the data"),
        (Unkeyed, "seeds", "draw from `draws`"),
        (Stubborn, "seeds", "another seed gives the same data"),
        (Seedless, "seeds", "tells no seed, and another one gives other data"),
        (Nameless, "manifest", "names the method badnets"),
        (Global, "untouched", "global random state"),
        (Trains, "untouched", "the model was changed in place"),
        (Curious, "budget", "no surrogate is known"),
        (Reckless, "bad-rates", "must refuse a rate"),
        (Undeclared, "card", "secret"),
    ],
)
def test_a_poisoner_s_breach_is_noticed(poisoner, check, message):
    with pytest.raises(ContractError, match=message):
        check_poisoner(poisoner, only=[check])


@dataclass(frozen=True)
class OtherTrigger(BadNets):
    """Stamps one square and shows another."""

    def poison(self, data, knowledge, draws):
        return BadNets(rate=self.rate, target=self.target, side=2).poison(data, knowledge, draws)

    def trigger(self, shape):
        return Overlay(torch.eye(8), torch.tensor(0.5))


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Glaring(BadNets):
    """Its trigger leaves the range of the data."""

    def trigger(self, shape):
        return Overlay.patch(shape, self.side, 3.0)


@dataclass(frozen=True)
class Shy(BadNets):
    """Its trigger changes nothing."""

    def trigger(self, shape):
        return Overlay(torch.zeros(8, 8), torch.tensor(1.0))


@dataclass(frozen=True)
class Drawn(BadNets):
    """Has another trigger each time that it is asked."""

    def trigger(self, shape):
        return Overlay(torch.rand(8, 8), torch.tensor(1.0))


@dataclass(frozen=True)
class AnyTarget(BadNets):
    """Takes every number for a class."""

    def check(self, data):
        pass


@pytest.mark.parametrize(
    ("backdoor", "check", "message"),
    [
        (OtherTrigger, "works", "not what was stamped"),
        (KeepsLabels, "works", "do not teach the target"),
        (Glaring, "trigger", "leaves the range"),
        (Shy, "trigger", "leaves some inputs as they are"),
        (Drawn, "trigger", "two triggers of one backdoor differ"),
        (AnyTarget, "target", "must refuse class"),
        (Glaring, "valid", "the data in"),
    ],
)
def test_a_backdoor_s_breach_is_noticed(backdoor, check, message):
    with pytest.raises(ContractError, match=message):
        check_backdoor(backdoor, only=[check])


def test_a_trigger_that_works_on_a_clean_model_is_no_backdoor():
    from holdfast.testing._training_case import clean_digits, planted, reached

    hidden = Wipes().trigger((1, 8, 8))
    answers = [reached(planted().clean, hidden, k, clean_digits()[1]) for k in range(10)]
    with pytest.raises(ContractError, match="on a clean model: it is no backdoor"):
        check_backdoor(Wipes(target=int(max(range(10), key=answers.__getitem__))), only=["works"])


@dataclass(frozen=True)
class Honest(ModelReplacement):
    """Sends what it was given."""

    def update(self, round, own, draws):
        return own


@dataclass(frozen=True)
class Sums(ModelReplacement):
    """Sends one update for all its clients."""

    def update(self, round, own, draws):
        return super().update(round, own, draws).sum(0)


@dataclass(frozen=True)
class Explodes(ModelReplacement):
    """Sends what no server takes."""

    def update(self, round, own, draws):
        return own / 0


@dataclass(frozen=True)
class Coarse(ModelReplacement):
    """Sends another type."""

    def update(self, round, own, draws):
        return super().update(round, own, draws).float()


@dataclass(frozen=True)
class Noisy(ModelReplacement):
    """Draws from the global generator."""

    def update(self, round, own, draws):
        return super().update(round, own, draws) + torch.randn_like(own)


@dataclass(frozen=True)
class Places(ModelReplacement):
    """Lets a client's place decide."""

    def update(self, round, own, draws):
        return own * torch.arange(1, len(own) + 1).unsqueeze(1)


@dataclass(frozen=True)
class Writes(ModelReplacement):
    """Scales in place."""

    def update(self, round, own, draws):
        return own.mul_(7)


@pytest.mark.parametrize(
    ("adversary", "check", "message"),
    [
        (Honest, "acts", "does nothing"),
        (Sums, "shape", "one for each client"),
        (Explodes, "shape", "not finite"),
        (Coarse, "shape", "became torch.float32"),
        (Noisy, "seeds", "draw from `draws`"),
        (Noisy, "untouched", "global random state"),
        (Places, "order", "the order of its clients"),
        (Writes, "untouched", "an input was changed in place"),
    ],
)
def test_an_adversary_s_breach_is_noticed(adversary, check, message):
    with pytest.raises(ContractError, match=message):
        check_adversary(adversary, only=[check])
