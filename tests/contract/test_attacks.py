"""Every registered attack under the public contract."""

from dataclasses import dataclass, replace

import pytest
import torch

from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.cards import parameter
from holdfast.core.errors import UsageError
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


@pytest.mark.parametrize(
    ("attack", "check", "message"),
    [
        (Idle, "inside", "nothing found"),
        (Idle, "beats-noise", "random noise breaks"),
        (GlobalNoise, "order", "in another order"),
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
