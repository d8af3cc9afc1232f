"""Every registered attack under the public contract."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.cards import parameter
from holdfast.core.errors import UsageError
from holdfast.core.threat import Access
from holdfast.numerics.project import project
from holdfast.testing import ContractError, check_attack, parametrize_with_checks

# pairs that take four seconds and more; make test-all runs them
_DEAR = {
    "affine": (
        "apgd_t", "boundary", "brendel_bethge", "carlini_wagner", "fab_t", "geoda", "opt", "pdpgd", "sign_opt", "surfree",
    ),
    "slots": (
        "autozoom", "bandits", "boundary", "brendel_bethge", "geoda", "hopskipjump", "lbfgs", "nes_label_only", "opt", "rays",
        "sign_opt", "simba", "spsa", "square", "str_attack", "surfree",
    ),
    "ledger": ("hopskipjump",), "beats-noise": ("square",),
}  # fmt: skip


@parametrize_with_checks("attack", slow=_DEAR)
def test_an_attack_keeps_its_contract(method, check):
    check(method)


def test_an_unknown_check_is_refused():
    with pytest.raises(UsageError, match="known: card, inside"):
        check_attack("pgd", only=["speed"])


# the suite itself must notice


@dataclass(frozen=True)
class Idle(PGD):
    """Asks about the clean input for ever."""

    def step(self, ask, state):
        ask.scores(ask.problem.x)
        return replace(state, x=ask.problem.x)


@dataclass(frozen=True)
class GlobalNoise(PGD):
    """Draws from the global generator."""

    def step(self, ask, state):
        return super().step(ask, replace(state, x=state.x + 0.01 * torch.rand_like(state.x)))


@dataclass(frozen=True)
class Shared(PGD):
    """Lets one sample's step depend on the others."""

    def step(self, ask, state):
        after = super().step(ask, state)
        return replace(after, x=torch.where(after.x.mean() > 0.31, after.x, state.x))


@dataclass(frozen=True)
class Backward(PGD):
    """Leaves gradients in the model."""

    def step(self, ask, state):
        def loss(scores, y, target):
            scores.sum().backward(retain_graph=True)
            return scores.sum(1)

        ask.gradient(state.x, loss)
        return super().step(ask, state)


@dataclass(frozen=True)
class Boasts(PGD):
    """Promises more than it has."""

    card = replace(PGD.card, affine_ratio={norm: 1.0000001 for norm in PGD.card.norms if norm != "l0"})


@dataclass(frozen=True)
class Undeclared(PGD):
    """Has a parameter that nobody explains."""

    secret: int = 3


@dataclass(frozen=True)
class Crashes(PGD):
    """Cannot take inputs that are no images."""

    def step(self, ask, state):
        assert state.x.ndim == 4
        return super().step(ask, state)


@dataclass(frozen=True)
class Proud(PGD):
    """Takes a large spread of the scores for a reason to stop."""

    def step(self, ask, state):
        spread = ask.scores(state.x).scores.std(1)
        after = super().step(ask, state)
        return replace(after, x=torch.where((spread < 100).view(-1, 1, 1, 1), after.x, state.x))


@dataclass(frozen=True)
class Narrow(PGD):
    """Knows no other inputs than those in [0, 1]."""

    def step(self, ask, state):
        after = super().step(ask, state)
        return replace(after, x=after.x.clamp(0, 1))


@dataclass(frozen=True)
class Content(PGD):
    """Has a kappa, and stops without it."""

    kappa: float = parameter(0.0, "margin of a witness", "planted")
    random_start: bool = parameter(False, "whether it starts elsewhere", "planted")
    relative_step: float = parameter(0.05, "step as a share of eps", "planted")

    def step(self, ask, state):
        after = super().step(ask, state)
        right = ask.scores(state.x).scores.argmax(1) == ask.problem.y
        return replace(after, x=torch.where(right.view(-1, *(1,) * (state.x.ndim - 1)), after.x, state.x))


@dataclass(frozen=True)
class Absolute(PGD):
    """Is content with no margin below a number of its own, whatever the model's logits are like."""

    confidence = 0.01


@dataclass(frozen=True)
class Careless(PGD):
    """Checks nothing."""

    def check(self, problem):
        pass


@dataclass(frozen=True)
class Inverse(PGD):
    """Counts its steps in a size that may be none."""

    def start(self, ask):
        assert 1 / float(ask.problem.set.eps.min()) > 0
        return super().start(ask)


@dataclass(frozen=True)
class Shy(PGD):
    """Does not dare to move in a large set."""

    def step(self, ask, state):
        after, small = super().step(ask, state), ask.problem.set.eps < 0.1
        return replace(after, x=torch.where(ask.problem.flat(small), after.x, ask.problem.x))


@dataclass(frozen=True)
class OneSize(PGD):
    """Takes the smallest set for that of every sample."""

    def step(self, ask, state):
        after, least = super().step(ask, state), float(ask.problem.set.eps.min())
        return replace(after, x=ask.problem.x + (after.x - ask.problem.x).clamp(-least, least))


@dataclass(frozen=True)
class Unmasked(PGD):
    """Gives up where some features must stay."""

    def step(self, ask, state):
        after = super().step(ask, state)
        return after if ask.problem.set.mask is None else replace(after, x=ask.problem.x)


@dataclass(frozen=True)
class Aimless(PGD):
    """Flees the label, whatever the target."""

    def step(self, ask, state):
        def away(scores, y, target):
            return -scores.gather(1, y.view(-1, 1)).squeeze(1)

        gradient = ask.gradient(state.x, away).grad
        return replace(state, x=project(ask.problem.ball, state.x + 0.1 * gradient.sign(), ask.problem.x))


@dataclass(frozen=True)
class ThreeClasses(PGD):
    """Looks at the three best classes."""

    def step(self, ask, state):
        ask.scores(state.x).scores.topk(3)
        return super().step(ask, state)


@dataclass(frozen=True)
class Unkeyed(PGD):
    """Draws a part of each step from NumPy's global generator."""

    def step(self, ask, state):
        after = super().step(ask, state)
        return replace(after, x=project(ask.problem.ball, after.x - 0.1 * np.random.random(), ask.problem.x))


@dataclass(frozen=True)
class Peeks(PGD):
    """Says that it needs labels alone, and asks for gradients."""

    card = replace(PGD.card, access=Access.HARD_LABEL)


@dataclass(frozen=True)
class Smuggles(PGD):
    """Goes round the ask to the model itself."""

    def step(self, ask, state):
        ask._oracle.logits.__self__.served.model(state.x)
        return super().step(ask, state)


@dataclass(frozen=True)
class Divides(PGD):
    """Divides by the length of a gradient that may be zero."""

    def step(self, ask, state):
        gradient = ask.gradient(state.x).grad
        return replace(
            super().step(ask, state), x=state.x + gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        )


@pytest.mark.parametrize(
    ("attack", "check", "message"),
    [
        (Idle, "inside", "nothing found"),
        (Idle, "beats-noise", "random noise breaks"),
        (Inverse, "eps-zero", "ZeroDivisionError"),
        (Shy, "monotone", "success must grow with eps"),
        (OneSize, "per-sample-eps", "no large one broke"),
        (Unmasked, "mask-and-bounds", "three quarters of the features free"),
        (Aimless, "targeted", "that only flees the label"),
        (ThreeClasses, "few", "RuntimeError"),
        (Divides, "no-gradient", "asked about values that are not finite"),
        (GlobalNoise, "order", "in another order"),
        (Unkeyed, "seeds", "the same seed gave another result"),
        (Peeks, "access", "AttributeError"),
        (Smuggles, "ledger", "forwards charged"),
        (Shared, "slots", "with Settings"),
        (Backward, "untouched", "gradients were left"),
        (Boasts, "affine", "the card promises half"),
        (Undeclared, "card", "secret"),
        (Crashes, "form-of-x", "AssertionError"),
        (Proud, "masked-classes", "whose score is always"),
        (Narrow, "units", r"inputs in \[-1, 1\]"),
        (Absolute, "scale", r"logits times 2\^-20"),
        (Content, "kappa", "reach a margin"),
        (Careless, "detector", "must refuse one"),
    ],
)
def test_a_breach_is_noticed(attack, check, message):
    with pytest.raises(ContractError, match=message):
        check_attack(attack, only=[check])
