"""Neural Cleanse: the class that a far smaller trigger reaches than any other is a backdoor's target (Wang et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.common.adam import adam
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.registry import name_of
from holdfast.core.threat import Phase
from holdfast.data.dataset import Dataset
from holdfast.defences.inspector import Inspector, ScanFinding
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.stats import deviations_below_median
from holdfast.transforms.triggers import Overlay

__all__ = ["NeuralCleanse"]

# Their example waits five steps, then doubles the cost or divides it by 2.8, and has none at first; a little at every step
# needs no counters, so that all classes run together.
_FACTOR = 1.05


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Inspector):
    """Reverse-engineers the smallest trigger of every class, and looks for a class whose trigger is an outlier.

    The trigger of class k minimises ``CE(f((1 - m) x + m p), k) + lambda |m|_1`` over mask m and pattern p; lambda grows
    while enough samples are carried to k and falls while they are not.
    """

    steps: int = parameter(1000, "steps of Adam for each class, at least 1", "Wang et al. 2019, their code")
    rate: float = parameter(0.1, "learning rate of Adam, above 0", "Wang et al. 2019, their code")
    success: float = parameter(0.99, "share of the samples that a trigger must carry to its class", "Wang et al. 2019")
    cost: float = parameter(1e-3, "weight of the mask's size at first, above 0", "Wang et al. 2019, their code")
    samples: int = parameter(200, "clean samples that are used, at least 1", "ours: a few hundred do")
    threshold: float = parameter(2.0, "anomaly index above which a model is flagged", "Wang et al. 2019, section IV")

    card: ClassVar[Card] = Card(
        title="Neural Cleanse",
        rows=("D02",),
        paper="Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao 2019, Neural Cleanse: Identifying and Mitigating Backdoor "
        "Attacks in Neural Networks, IEEE S&P",
        section="3.1",
        summary="Finds the smallest trigger of each class and flags a model where one class's is far smaller.",
        phase=Phase.TRAINING,
        modality=("image",),
        failure_modes=(
            "With few classes the median deviation means little; without a null from clean models the index is uncalibrated.",
            "Triggers that cover much of the image, or depend on it, are no outliers.",
            "One run varies; repeat it with other samples where the index is near the threshold.",
        ),
        checked_by="backdoored digits networks, whose target and patch it finds, beside clean ones",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples < 1 or not self.rate > 0 or not self.cost > 0 or not 0 < self.success <= 1:
            raise UsageError(
                f"{self.card.title} needs steps and samples of at least 1, rate and cost above 0 and a success in (0, 1]; "
                f"got {self.steps}, {self.samples}, {self.rate}, {self.cost} and {self.success}"
            )

    @override
    def inspect(self, model: nn.Module, data: Dataset | None = None) -> ScanFinding:
        clean = self.needed(data)
        if clean.x.ndim != 4:
            raise UnsupportedError(
                f"{self.card.title} makes triggers for images, not for inputs of {tuple(clean.x.shape[1:])}"
            )
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        x = clean.x[: self.samples].to(device)
        with evaluating(model):
            with torch.no_grad():
                classes = int(model(x[:1]).shape[1])
            masks, patterns, reached = self._triggers(model, x, classes)
        if 2 * int(reached.sum()) <= classes:
            raise UsageError(
                f"{self.card.title} carried enough samples to {int(reached.sum())} of {classes} classes in {self.steps} steps, "
                "and compares each with the others; give more steps"
            )
        index = torch.as_tensor(deviations_below_median(masks.flatten(1).sum(1).double().cpu().numpy()))
        target = int(index.argmax())
        return ScanFinding(
            detector=name_of(self),
            score=float(index[target]),
            threshold=self.threshold,
            target=target,
            trigger=Overlay(masks[target].cpu(), patterns[target].cpu()),
            by_class=index,
        )

    def _triggers(self, model: nn.Module, x: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """(K, 1, H, W) and (K, C, H, W): the smallest trigger of each class that carried enough samples; all classes at once.

        A class that none reaches, see (K,) bool, keeps a mask of ones, which is no outlier.
        """
        channels, height, width = x.shape[1:]
        labels = torch.arange(classes, device=x.device).repeat_interleave(len(x))
        raw = x.new_zeros(classes, channels + 1, height, width)  # the mask's logits, then the pattern's
        mean, square, cost = torch.zeros_like(raw), torch.zeros_like(raw), x.new_full((classes,), self.cost)
        best, smallest = _split(raw + 20), x.new_full((classes,), inf)  # a sigmoid of 20 is 1
        for step in range(self.steps):
            leaf = raw.detach().requires_grad_()
            with torch.enable_grad():
                mask, pattern = _split(leaf)
                scores = model(_stamped(x, mask, pattern))
                area = mask.flatten(1).sum(1)
                loss = F.cross_entropy(scores, labels, reduction="none").view(classes, -1).mean(1) + cost * area
                (grad,) = torch.autograd.grad(loss.sum(), leaf)
            reached = (scores.argmax(1) == labels).view(classes, -1).float().mean(1) >= self.success
            better = reached & (area < smallest)
            smallest = torch.where(better, area.detach(), smallest)
            keep = better.view(-1, 1, 1, 1)
            best = torch.where(keep, mask.detach(), best[0]), torch.where(keep, pattern.detach(), best[1])
            cost = cost * torch.where(reached, _FACTOR, 1 / _FACTOR)
            count = torch.full((classes,), step, device=x.device)
            direction, mean, square = adam(grad, mean, square, count)
            raw = raw - self.rate * direction
        return *best, smallest.isfinite()


def _split(raw: Tensor) -> tuple[Tensor, Tensor]:
    return raw[:, :1].sigmoid(), raw[:, 1:].sigmoid()


def _stamped(x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """(K n, C, H, W) every sample with every class's trigger."""
    return ((1 - mask).unsqueeze(1) * x + (mask * pattern).unsqueeze(1)).flatten(0, 1)
