"""On-manifold adversarial examples: PGD in the latent space of a decoder of the data (Stutz, Hein, Schiele 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.common.generator import codes_of, learned_vae
from holdfast.attacks.semantic import Prepared, SemanticAttack, gradient_search
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.data.dataset import Dataset
from holdfast.judge.asking import Model
from holdfast.models.vae import Decoded
from holdfast.transforms.transform import Transform

__all__ = ["OnManifold"]


@dataclass(frozen=True, kw_only=True)
class OnManifold(SemanticAttack):
    """``max_zeta loss(f(dec(z + zeta, y)), y)`` with ``||zeta||_p <= size``, where ``dec(z, y)`` is the picture nearest to x.

    Encoder and decoder are learned from data that the attacker knows and conditioned on the class, so that x' stays on the
    learned manifold of its own class, by construction. A sample counts when both its image and the picture of its code are
    classified right.
    """

    size: float = parameter(
        0.3, "radius of zeta, in deviations of the code, above 0 to 1", "Stutz et al. 2019: eta = 0.3"
    )
    p: Norm = parameter(Norm.LINF, "norm of zeta: l1, l2 or linf", "Stutz et al. 2019: linf")
    steps: int = parameter(40, "gradient steps of a start, at least 1", "Stutz et al. 2019: 40")
    restarts: int = parameter(5, "random starts, at least 1", "Stutz et al. 2019: 5")
    latent: int = parameter(10, "numbers in a code, at least 1", "Stutz et al. 2019: 10 on Fashion-MNIST")
    epochs: int = parameter(60, "epochs of the autoencoder, at least 1", "ours: digits and MNIST")
    beta: float = parameter(
        0.5, "weight of the codes' divergence from the normal, at least 0", "ours: sharper pictures"
    )
    refine: int = parameter(100, "Adam steps from the encoder's code to the nearest picture, at least 0", "ours")
    bound: float = parameter(
        3.0, "codes stay within so many deviations, above 0", "ours: where the decoder was trained"
    )

    card: ClassVar[Card] = Card(
        title="On-manifold",
        rows=("E12", "T03"),
        paper="Stutz, Hein, Schiele 2019, Disentangling Adversarial Robustness and Generalization, arXiv:1812.00740",
        section="2.2",
        summary="PGD on the latent code of a decoder that was learned from data: changed content, not noise.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        modality=("image",),
        failure_modes=(
            "The manifold is a learned one: where pictures of codes are far from their images (see the reconstruction "
            "error), it says little of the data's own. Natural photographs need a better decoder than this small one.",
            "A large radius may leave the class for a person although the decoder was told it: look at the pictures.",
        ),
        checked_by="codes of decoded codes; regular adversarial examples lie off the manifold, these on it",
    )

    def __post_init__(self) -> None:
        if not 0 < self.size <= 1:
            raise UsageError(f"zeta has a radius above 0 and at most 1 deviation, got {self.size}")

    @property
    @override
    def norm(self) -> Norm:
        return self.p

    @property
    @override
    def eps(self) -> float:
        return self.size

    @property
    @override
    def learns(self) -> bool:
        return True

    @override
    def prepare(self, x: Tensor, y: Tensor, model: Model, known: Dataset | None, seed: int) -> Prepared:
        if known is None:
            raise UsageError(f"{self.card.title} learns a decoder; give it data")
        classes = 1 + max(int(known.y.max()), int(y.max()) if len(y) else 0)
        vae = learned_vae(
            known, latent=self.latent, classes=classes, epochs=self.epochs, beta=self.beta, seed=seed, device=x.device
        ).to(x.dtype)
        code = codes_of(vae, x, y, steps=self.refine, bound=self.bound)
        label = vae.one_hot(y)
        with torch.no_grad():
            error = (vae.decode(code, label) - x).square().mean() if len(x) else x.new_zeros(())
            spread = (x - x.mean(0)).square().mean() if len(x) else x.new_ones(())
        facts = {
            "reconstruction_rmse": float(error.sqrt()),
            "variance_explained": 1 - float(error / spread.clamp_min(1e-12)),
        }
        return Prepared(
            transform=Decoded(vae, 1.0, self.bound), origin=torch.cat([code, label], 1), attacked=model, facts=facts
        )

    @override
    def search(self, transform: Transform) -> Attack[Any, Any]:
        return gradient_search("pgd", steps=self.steps, restarts=self.restarts)
