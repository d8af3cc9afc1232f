"""Minimum-norm attacks against other libraries, where those are installed; see benchmarks/peers.py for more of it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.attacks.engine import run
from holdfast.core.problem import Problem
from holdfast.core.registry import method
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.judge.archive import Keep
from holdfast.judge.ledger import Budget
from holdfast.numerics.distance import between
from holdfast.testing.toys import digits, net

pytestmark = pytest.mark.parity

STEPS, SAMPLES = 100, 24
_OURS: dict[Norm, tuple[str, ...]] = {
    Norm.L0: ("sigma_zero", "fmn"), Norm.L1: ("fmn", "pdpgd"), Norm.L2: ("ddn", "fmn"), Norm.LINF: ("fmn", "pdpgd"),
}  # fmt: skip


@pytest.fixture(scope="module")
def adv_lib() -> Any:
    if "visdom" not in sys.modules:  # imported for plots alone
        sys.modules["visdom"] = types.ModuleType("visdom")
    return pytest.importorskip("adv_lib.attacks", reason="adv-lib is not installed")


@pytest.fixture(scope="module")
def foolbox() -> Any:
    return pytest.importorskip("foolbox", reason="foolbox is not installed")


@pytest.fixture(scope="module")
def torchattacks() -> Any:
    return pytest.importorskip("torchattacks", reason="torchattacks is not installed")


@pytest.fixture(scope="module")
def art() -> Any:
    return pytest.importorskip("art.attacks.evasion", reason="adversarial-robustness-toolbox is not installed")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return net(torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def samples(model: nn.Module) -> tuple[Tensor, Tensor]:
    x, y = digits(2 * SAMPLES, torch.float32)
    right = model(x).argmax(1) == y
    return x[right][:SAMPLES], y[right][:SAMPLES]


def ours(model: nn.Module, x: Tensor, y: Tensor, norm: Norm, name: str) -> float:
    problem = Problem.of(x, y, LpBall.uniform(norm, float("inf"), len(x)))
    out = run(method(name)().within(2 * STEPS), problem, model, budget=Budget(passes=2 * STEPS + 2), keep=Keep.NEAREST)
    return float(out.distance.median())


def theirs(model: nn.Module, x: Tensor, y: Tensor, norm: Norm, attack: Callable[[], Tensor]) -> float:
    torch.manual_seed(0)
    found = attack().clamp(0, 1)
    d = between(norm, found, x).masked_fill(model(found).argmax(1) == y, float("inf"))
    return float(d.median())


@pytest.mark.parametrize("norm", list(_OURS))
def test_the_best_of_ours_is_at_least_as_near_as_adversarial_library(adv_lib, model, samples, norm: Norm) -> None:
    x, y = samples
    p = {Norm.L0: 0, Norm.L1: 1, Norm.L2: 2, Norm.LINF: float("inf")}[norm]
    peers: list[Callable[[], Tensor]] = [lambda: adv_lib.fmn(model, x, y, norm=p, steps=STEPS)]
    if norm is Norm.L0:
        peers.append(lambda: adv_lib.sigma_zero(model, x, y, num_steps=STEPS))
    else:
        peers.append(lambda: adv_lib.pdpgd(model, x, y, norm=p, num_steps=STEPS))
    if norm is Norm.L2:
        peers.append(lambda: adv_lib.ddn(model, x, y, steps=STEPS, levels=None))
        peers.append(lambda: adv_lib.alma(model, x, y, num_steps=STEPS, init_lr_distance=0.1))
    best = min(theirs(model, x, y, norm, attack) for attack in peers)
    assert min(ours(model, x, y, norm, name) for name in _OURS[norm]) <= best * 1.001


def test_ddn_and_fmn_are_no_further_than_foolboxs(foolbox, model, samples) -> None:
    x, y = samples
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for attack, name in ((foolbox.attacks.DDNAttack, "ddn"), (foolbox.attacks.L2FMNAttack, "fmn")):
        reached = theirs(model, x, y, Norm.L2, lambda a=attack: a(steps=STEPS)(wrapped, x, y, epsilons=None)[0])
        assert ours(model, x, y, Norm.L2, name) <= reached * 1.001


def test_carlini_wagner_is_no_further_than_torchattacks(torchattacks, model, samples) -> None:
    x, y = samples
    reached = theirs(model, x, y, Norm.L2, lambda: torchattacks.CW(model, steps=STEPS)(x, y))
    assert ours(model, x, y, Norm.L2, "carlini_wagner") <= reached * 1.001


def test_deepfool_is_within_two_per_cent_of_arts(art, model, samples) -> None:
    from art.estimators.classification import PyTorchClassifier

    x, y = samples
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
    attack = art.DeepFool(classifier, max_iter=50, batch_size=64, verbose=False)
    reached = theirs(model, x, y, Norm.L2, lambda: torch.from_numpy(attack.generate(x.numpy())))
    assert ours(model, x, y, Norm.L2, "deepfool") <= reached * 1.02
