"""Three defences that only hide the gradient, and the adaptive attack that breaks each: ``python examples/break_obfuscation.py``.

    quantisation   a step function in front of the model: its gradient is 0; BPDA passes the gradient through unchanged
    resizing       random size and padding: every answer is about another input; EOT follows the mean over the draws
    thermometer    bits instead of grey values, the model trained on them: BPDA with a ramp in place of each step

The plain attack and the adaptive one have the same set, and every find is judged on the deployed model: a randomised one
by a majority of fresh draws. Components can be removed before they are attacked: if the adaptive attack fails, attack the
bare model (``network()`` here) next, to learn which part withstands. About half a minute.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import run
from holdfast.attacks.evasion.white.eot_pgd import EotPGD
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.data import load_data
from holdfast.judge.referee import Referee
from holdfast.models import Bpda, InputTransform
from holdfast.models.zoo import digits_cnn
from holdfast.training.batch import Batch
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

LEVELS, SAMPLES, EPS, VOTES = 8, 60, 0.15, 25


def quantise(x: Tensor) -> Tensor:
    """Grey values rounded to one of a few levels."""
    return (x * (LEVELS - 1)).round() / (LEVELS - 1)


def resize(x: Tensor) -> Tensor:
    """Each input at a random size from 7 to 12, at a random place of a black 12 by 12 image (Xie et al. 2018)."""
    share = 7 / 12 + 5 / 12 * torch.rand(len(x), 1, 1, dtype=x.dtype, device=x.device)
    place = (2 * torch.rand(len(x), 2, 1, dtype=x.dtype, device=x.device) - 1) * (1 - share)
    scale = torch.eye(2, dtype=x.dtype, device=x.device) / share
    grid = F.affine_grid(torch.cat([scale, -place / share], 2), [len(x), 1, 12, 12], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def edges(x: Tensor) -> Tensor:
    """How far each grey value is above each of the thermometer's marks."""
    return x - (torch.arange(LEVELS, dtype=x.dtype, device=x.device).view(-1, 1, 1) + 0.5) / LEVELS


def thermometer(x: Tensor) -> Tensor:
    """(n, 1, 8, 8) -> (n, LEVELS, 8, 8) bits: which marks each grey value passes (Buckman et al. 2018)."""
    return (edges(x) > 0).to(x.dtype)


def ramp(x: Tensor) -> Tensor:
    """The thermometer's stand-in: a ramp around each mark instead of a step."""
    return (2 * edges(x) + 0.5).clamp(0, 1)


def network(channels: int = 1, side: int = 8) -> nn.Sequential:
    """The digits network for inputs of another shape."""
    net = digits_cnn()
    net[0], net[5] = nn.Conv2d(channels, 16, 3, padding=1), nn.Linear(32 * (side // 2) ** 2, 64)
    return net


def trained(defended: nn.Module, epochs: int = 12) -> nn.Module:
    """Trained with its defence in place, as it is deployed."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y)

    fit(defended, load_data("digits:train"), loss, settings=TrainingSettings(epochs=epochs, validation=0.0))
    return defended.eval()


@dataclass(frozen=True)
class Case:
    """A defence, and the model that the adaptive attacker searches in its place: same answers, useful gradients."""

    name: str
    defended: nn.Module
    opened: nn.Module
    adaptive: Attack[Any, Any]
    randomised: bool = False


def cases() -> list[Case]:
    """The three defences, trained."""
    torch.manual_seed(0)
    plain = trained(network())
    resized = trained(InputTransform(resize, network(side=12)), epochs=25)
    bits = network(LEVELS)
    coded = trained(InputTransform(thermometer, bits))
    strong = PGD(loss="margin", restarts=2)
    return [
        Case("quantisation", InputTransform(quantise, plain), InputTransform(Bpda(quantise), plain), strong),
        Case("resizing", resized, resized, EotPGD(loss="margin", draws=15, relative_step=0.2), randomised=True),
        Case("thermometer", coded, InputTransform(Bpda(thermometer, ramp), bits), strong),
    ]


def accuracy(case: Case, attack: Attack[Any, Any] | None, search: nn.Module) -> float:
    """Share of the samples that the deployed model gets right, under an attack on ``search``; the referee judges."""
    data = load_data("digits:test").head(SAMPLES)
    problem = Problem.of(data.x, data.y, LpBall.uniform(Norm.LINF, EPS, SAMPLES))
    x = data.x
    if attack is not None:
        x = run(attack, problem, search).x
    ruling = Referee(case.defended, draws=VOTES if case.randomised else 0).judge(problem, x)
    return int((~ruling.holds).sum()) / SAMPLES


def main(say: Callable[[str], None] = print) -> None:
    """Prints a table: clean accuracy, accuracy under the plain attack, accuracy under the adaptive one."""
    say(f"{'defence':14}{'clean':>8}{'plain PGD':>12}{'adaptive':>10}   linf <= {EPS}, {SAMPLES} samples")
    for case in cases():
        clean = accuracy(case, None, case.defended)
        plain = accuracy(case, PGD(loss="margin", restarts=2), case.defended)
        broken = accuracy(case, case.adaptive, case.opened)
        say(f"{case.name:14}{clean:8.1%}{plain:12.1%}{broken:10.1%}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
