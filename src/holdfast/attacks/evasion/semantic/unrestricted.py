"""Unrestricted adversarial examples: new images of a class that the model gets wrong and an independent judge gets right
(Brown et al. 2018; Song et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.common.generator import learned_vae
from holdfast.attacks.families.criterion_ascent import CriterionAscent
from holdfast.attacks.semantic import Prepared, SemanticAttack
from holdfast.core.cards import Card, parameter
from holdfast.core.criterion import Criterion, Misclassified
from holdfast.core.errors import UsageError
from holdfast.core.threat import Access, Formulation
from holdfast.data.dataset import Dataset
from holdfast.judge.asking import Model
from holdfast.models.vae import Decoded
from holdfast.models.zoo import substitute
from holdfast.numerics.evaluation import evaluating
from holdfast.training.batch import Batch
from holdfast.training.loop import fit
from holdfast.training.settings import TrainingSettings
from holdfast.transforms.transform import Transform

__all__ = ["BesideJudge", "Unrestricted", "WrongAndJudgedRight"]


@dataclass(frozen=True)
class WrongAndJudgedRight(Criterion):
    """Scores of the attacked model, then as many of the judge: wrong for the one, and right by ``sure`` for the other.

    Example:
        >>> scores = torch.tensor([[0.0, 1.0, 5.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
        >>> WrongAndJudgedRight(2.0).holds(scores, torch.tensor([0, 0]), torch.tensor([-1, -1])).tolist()
        [True, False]
    """

    sure: float = 0.0

    @override
    def margin(self, scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
        attacked, judge = scores.chunk(2, dim=-1)
        plain = Misclassified()
        return torch.maximum(plain.margin(attacked, y, target), self.sure - plain.margin(judge, y, target))


class BesideJudge(nn.Module):
    """The scores of the attacked model and the judge's, side by side."""

    def __init__(self, attacked: Model, judge: nn.Module) -> None:
        super().__init__()
        self.attacked, self.judge = attacked, judge
        self.differentiable = bool(getattr(attacked, "differentiable", True))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*features) -> (n, 2 K)."""
        told, right = self.attacked(x), self.judge(x)
        if told.shape != right.shape:
            raise UsageError(f"the model has {told.shape[1]} classes and the data to learn from {right.shape[1]}")
        return torch.cat([told, right], 1)


@dataclass(frozen=True, kw_only=True)
class Unrestricted(SemanticAttack):
    """Searches the whole latent box of a class-conditional decoder; there is no reference input, x gives the label alone.

    The judge is a network of another architecture, trained on the known data from other weights. It stands in for the
    people of Brown et al.'s contest; the pictures are for them.
    """

    steps: int = parameter(60, "gradient steps of a start, at least 1", "ours; Song et al. 2018 make 200 to 500")
    restarts: int = parameter(5, "random starts, at least 1", "ours")
    latent: int = parameter(10, "numbers in a code, at least 1", "ours; Song et al. 2018: a GAN with 128")
    reach: float = parameter(3.0, "codes lie within so many deviations, above 0", "ours: 99.7 % of normal numbers")
    sure: float = parameter(1.0, "logits by which the judge must prefer the label, at least 0", "ours: no close calls")
    epochs: int = parameter(60, "epochs of the decoder, at least 1", "ours: digits and MNIST")
    judge_epochs: int = parameter(20, "epochs of the judge, at least 1", "ours")
    beta: float = parameter(
        0.5, "weight of the codes' divergence from the normal, at least 0", "ours: sharper pictures"
    )

    card: ClassVar[Card] = Card(
        title="Unrestricted",
        rows=("E13",),
        paper="Brown, Carlini, Zhang, Olsson, Christiano, Goodfellow 2018, Unrestricted Adversarial Examples, "
        "arXiv:1809.08352; Song, Shu, Kushman, Ermon 2018, arXiv:1805.07894",
        section="2.2",
        summary="Generates new images of a class that the model calls otherwise while an independent judge agrees with it.",
        access=Access.WHITE_BOX,
        formulation=Formulation.BUDGET,
        modality=("image",),
        failure_modes=(
            "The judge is a network too: what fools both counts as a failure, and what only it can read as a success. Only "
            "people settle that; look at the pictures.",
            "The small decoder draws blurred images of anything richer than digits.",
        ),
        checked_by="a judge trained apart; random codes find fewer; a model that is the judge itself is never broken",
    )

    @property
    @override
    def learns(self) -> bool:
        return True

    def __post_init__(self) -> None:
        if not self.reach > 0 or self.sure < 0:
            raise UsageError(f"reach must be above 0 and sure not negative, got {self.reach} and {self.sure}")

    @override
    def prepare(self, x: Tensor, y: Tensor, model: Model, known: Dataset | None, seed: int) -> Prepared:
        if known is None:
            raise UsageError(f"{self.card.title} learns a decoder and a judge; give it data")
        classes = self._classes(x, y, model, known)
        vae = learned_vae(
            known, latent=self.latent, classes=classes, epochs=self.epochs, beta=self.beta, seed=seed, device=x.device
        ).to(x.dtype)
        judge, score = self._judge(known, classes, seed + 1, x.device)
        origin = torch.cat([x.new_zeros(len(x), self.latent), vae.one_hot(y)], 1)
        joint = BesideJudge(model, judge.to(x.dtype))
        return Prepared(
            transform=Decoded(vae, self.reach, self.reach),
            origin=origin,
            attacked=joint,
            criterion=WrongAndJudgedRight(self.sure),
            refers=False,
            facts={"judge_accuracy": score},
        )

    @staticmethod
    def _classes(x: Tensor, y: Tensor, model: Model, known: Dataset) -> int:
        """As many as the model answers; it is asked about one image that is not counted."""
        with torch.no_grad(), evaluating(model):
            told = model(known.x[:1].to(x)).shape[-1]
        most = 1 + max(int(known.y.max()), int(y.max()) if len(y) else 0)
        if most > told:
            raise UsageError(f"the labels reach {most - 1}, the model has {told} classes")
        return told

    def _judge(self, known: Dataset, classes: int, seed: int, device: torch.device) -> tuple[nn.Module, float]:
        """A trained judge and its accuracy on what it was not trained on."""
        judge = substitute(tuple(known.x.shape[1:]), classes, seed)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return F.cross_entropy(model(batch.x), batch.y)

        with torch.enable_grad():
            done = fit(
                judge,
                known,
                loss,
                settings=TrainingSettings(epochs=self.judge_epochs, batch=64, seed=seed),
                device=device,
            )
        return judge.requires_grad_(False), float(done.best.score or 0.0)

    @override
    def search(self, transform: Transform) -> Attack[Any, Any]:
        return CriterionAscent(steps=self.steps, restarts=self.restarts, spread=1 / self.reach)
