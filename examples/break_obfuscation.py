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

import holdfast as hf
from holdfast.attacks import Attack
from holdfast.attacks.evasion.white.eot_pgd import EotPGD
from holdfast.attacks.evasion.white.pgd import PGD
from holdfast.models import Bpda, InputTransform
from holdfast.models.zoo import digits_cnn
from holdfast.training.batch import Batch
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

LEVELS, SAMPLES = 8, 60
THREAT = hf.ThreatModel.of("linf", "0.15")


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

    fit(defended, hf.load_data("digits:train"), loss, settings=TrainingSettings(epochs=epochs, validation=0.0))
    return defended.eval()


@dataclass(frozen=True)
class Case:
    """A defence, and what breaks it.

    Attributes:
        name: of the defence.
        defended: the model as it is deployed.
        adaptive: the attack.
        opened: what the adaptive attacker searches in the place of the model: same answers, useful gradients; None: itself.
    """

    name: str
    defended: nn.Module
    adaptive: Attack[Any, Any]
    opened: nn.Module | None = None


def cases() -> list[Case]:
    """The three defences, trained."""
    torch.manual_seed(0)
    plain = trained(network())
    resized = trained(InputTransform(resize, network(side=12)), epochs=25)
    bits = network(LEVELS)
    coded = trained(InputTransform(thermometer, bits))
    strong = PGD(loss="margin", restarts=2)
    return [
        Case("quantisation", InputTransform(quantise, plain), strong, InputTransform(Bpda(quantise), plain)),
        Case("resizing", resized, EotPGD(loss="margin", draws=15, relative_step=0.2)),
        Case("thermometer", coded, strong, InputTransform(Bpda(thermometer, ramp), bits)),
    ]


def accuracies(case: Case) -> tuple[float, float, float]:
    """Shares of the samples that the deployed model gets right: as they are, under plain PGD, under the adaptive attack."""
    data = hf.load_data("digits:test").head(SAMPLES)
    plain = hf.attack(case.defended, data, PGD(loss="margin", restarts=2), THREAT)
    adaptive = hf.attack(case.defended, data, case.adaptive, THREAT, surrogate=case.opened)
    clean = float((plain.distance > 0).double().mean())  # 0 where the model is wrong as it is
    return clean, clean - float(plain.broken.double().mean()), clean - float(adaptive.broken.double().mean())


def main(say: Callable[[str], None] = print) -> None:
    """Prints a table: clean accuracy, accuracy under the plain attack, accuracy under the adaptive one."""
    say(f"{'defence':14}{'clean':>8}{'plain PGD':>12}{'adaptive':>10}   {THREAT.describe()}, {SAMPLES} samples")
    for case in cases():
        clean, plain, broken = accuracies(case)
        say(f"{case.name:14}{clean:8.1%}{plain:12.1%}{broken:10.1%}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
