"""Fine-pruning: units that sleep on clean data may serve a backdoor; prune them, then fine-tune (Liu et al. 2018)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.threat import Phase
from holdfast.data.dataset import Dataset
from holdfast.defences.repair import Repair
from holdfast.numerics.evaluation import evaluate
from holdfast.training.batch import Batch
from holdfast.training.hooks import Hooks
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings

__all__ = ["FinePruning"]


@dataclass(frozen=True, kw_only=True)
class FinePruning(Repair):
    """Silences the least active units of the last hidden layer while clean accuracy holds, then fine-tunes the rest.

    The layer is the last convolution, or the last linear layer but one where there is none, with the batch norm that follows
    it: without, a unit of zeros would still give what the norm adds. Silenced units stay silent.
    """

    drop: float = parameter(0.04, "clean accuracy that pruning may cost, 0 to 1", "Liu et al. 2018: 4 points")
    epochs: int = parameter(20, "epochs of fine-tuning on the clean data, at least 1", "ours: little data, many passes")
    rate: float = parameter(0.02, "learning rate of fine-tuning, above 0", "ours: at .005 the digits backdoors survive")
    seed: int = parameter(0, "keys the order of the data in fine-tuning", "ours")

    card: ClassVar[Card] = Card(
        title="Fine-pruning",
        rows=("D05",),
        paper="Liu, Dolan-Gavitt, Garg 2018, Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks, "
        "RAID, arXiv:1805.12185",
        section="3.1",
        summary="Prunes units that clean data leave inactive, then fine-tunes on clean data.",
        phase=Phase.TRAINING,
        failure_modes=(
            "A backdoor that uses the same units as clean inputs survives the pruning; fine-tuning alone then decides.",
            "A low success afterwards is no proof of removal: a few poisoned samples may bring the backdoor back.",
            "It varies with the clean samples at hand; more of them help.",
        ),
        checked_by="the success of the trigger on backdoored digits networks before and after, and the clean accuracy",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1 or self.epochs < 1 or not self.rate > 0:
            raise UsageError(
                f"{self.card.title} takes a drop of 0 to 1, at least 1 epoch and a rate above 0; got {self.drop}, "
                f"{self.epochs} and {self.rate}"
            )

    @override
    def repair(self, model: nn.Module, data: Dataset) -> nn.Module:
        repaired = copy.deepcopy(model).eval()
        layer = _hidden(repaired)
        norm = _norm_after(repaired, layer, data.x[:1])
        weights = [p for m in (layer, norm) if m is not None for p in (m.weight, m.bias) if p is not None]
        silent = self._silenced(repaired, norm or layer, weights, data)
        settings = TrainingSettings(
            epochs=self.epochs, batch=64, rate=self.rate, schedule="cosine", validation=0.0, seed=self.seed
        )
        device = next(repaired.parameters()).device
        fit(repaired, data, _cross_entropy, settings=settings, hooks=[_Silence(weights, silent)], device=device)
        return repaired

    def _silenced(self, model: nn.Module, layer: nn.Module, weights: Sequence[Tensor], data: Dataset) -> Tensor:
        """The units that were silenced: the least active first, as many as clean accuracy bears.

        Args:
            model: the copy that is repaired.
            layer: whose output is looked at.
            weights: (units, ...) each, zeros of which make a unit silent.
            data: clean samples.
        """
        activity, accuracy = _activity(model, layer, data)
        order, least = activity.argsort(), accuracy - self.drop
        for count, unit in enumerate(map(int, order)):
            before = [w.detach()[unit].clone() for w in weights]
            _silence(weights, order[count : count + 1])
            if _accuracy(model, data) < least:
                with torch.no_grad():
                    for weight, value in zip(weights, before, strict=True):
                        weight[unit] = value
                return order[:count]
        return order


class _Silence(Hooks):
    """Keeps silenced units silent while the others learn."""

    def __init__(self, weights: Sequence[Tensor], units: Tensor) -> None:
        self.weights, self.units = weights, units

    @override
    def after_step(self, model: nn.Module, batch: Batch) -> None:
        _silence(self.weights, self.units)


def _silence(weights: Sequence[Tensor], units: Tensor) -> None:
    with torch.no_grad():
        for weight in weights:
            weight[units] = 0


def _hidden(model: nn.Module) -> nn.Conv2d | nn.Linear:
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    if convolutions:
        return convolutions[-1]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if len(linear) < 2:
        raise UnsupportedError(
            "fine-pruning prunes a hidden layer, a convolution or a linear one, and the model has none"
        )
    return linear[-2]


def _norm_after(model: nn.Module, layer: nn.Module, x: Tensor) -> nn.BatchNorm1d | nn.BatchNorm2d | None:
    """The batch norm that takes what the layer gives, if one does."""
    given: list[Tensor] = []
    norms: list[nn.BatchNorm1d | nn.BatchNorm2d] = []

    def leaves(_: nn.Module, __: object, output: Tensor) -> None:
        given.append(output)

    def enters(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and any(inputs[0] is y for y in given):
            norms.append(module)

    handles = [layer.register_forward_hook(leaves)]
    handles += [m.register_forward_pre_hook(enters) for m in model.modules()]
    try:
        evaluate(model, x.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return norms[0] if norms else None


def _activity(model: nn.Module, layer: nn.Module, data: Dataset) -> tuple[Tensor, float]:
    """(units,) the mean of each unit after a ReLU on the clean data, and the clean accuracy."""
    total: list[Tensor] = []

    def remember(_: nn.Module, __: object, output: Tensor) -> None:
        active = output.detach().clamp_min(0).double()
        total.append(active.flatten(2).mean(2).sum(0) if active.ndim > 2 else active.sum(0))

    handle = layer.register_forward_hook(remember)
    try:
        accuracy = _accuracy(model, data)
    finally:
        handle.remove()
    return torch.stack(total).sum(0) / len(data), accuracy


def _accuracy(model: nn.Module, data: Dataset) -> float:
    scores = evaluate(model, data.x.to(next(model.parameters()).device))
    return float((scores.argmax(1).cpu() == data.y).double().mean())


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)
