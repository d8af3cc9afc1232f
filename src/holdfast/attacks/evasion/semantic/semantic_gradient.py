"""Any lp attack on the parameters of a composition of transforms (survey, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.semantic import ImageAttack, gradient_search
from holdfast.core.cards import Card, parameter, refuse
from holdfast.core.errors import UsageError
from holdfast.core.threat import Access, Formulation, Goal, Norm
from holdfast.transforms.colour import BrightnessContrast, HueSaturation
from holdfast.transforms.geometry import RotationTranslation
from holdfast.transforms.transform import Composition, ImageTransform, Transform

__all__ = ["SemanticGradient"]


@dataclass(frozen=True, kw_only=True)
class SemanticGradient(ImageAttack):
    """Colour, then light, then pose; theta in the lp ball of radius ``size``, where 1 in linf is all ranges at once.

    A range of 0 leaves its parameter out. ``attack`` is any attack of Holdfast that has the norm.
    """

    attack: str = parameter("pgd", "name of the attack that searches theta", "survey, section 2.2: lp attacks apply")
    p: Norm = parameter(Norm.LINF, "norm of theta: l0, l1, l2 or linf", "ours: ranges are independent")
    size: float = parameter(
        1.0, "radius of theta, above 0; a minimal-distortion attack may have inf", "ours: all ranges"
    )
    steps: int = parameter(40, "steps of a start, at least 1", "Madry et al. 2018")
    restarts: int = parameter(5, "random starts, at least 1", "ours: the pose has many local optima")
    hue: float = parameter(0.0, "degrees to either side, 0 to 180; colour images only", "ours: grey images have none")
    saturation: float = parameter(0.0, "shift to either side, 0 to 1; colour images only", "ours")
    brightness: float = parameter(0.2, "shift to either side, 0 to 1", "Hsiung et al. 2023, arXiv:2202.04235")
    contrast: float = parameter(0.3, "factor to either side of 1, at least 0", "Hsiung et al. 2023, arXiv:2202.04235")
    rotation: float = parameter(30.0, "degrees to either side, at least 0", "Engstrom et al. 2019")
    translation: float = parameter(0.1, "share of the side to either side, at least 0", "Engstrom et al. 2019")

    card: ClassVar[Card] = Card(
        title="Semantic gradient",
        rows=("E45", "T03"),
        paper="Chen, Liu 2022, Holistic Adversarial Robustness of Deep Learning Models, section 2.2; Hsiung, Tsai, Chen, Ho "
        "2023, Towards Compositional Adversarial Robustness, arXiv:2202.04235",
        section="2.2",
        summary="An lp attack by gradients on hue, saturation, brightness, contrast, rotation and translation together.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        modality=("image",),
        failure_modes=(
            "First-order search over poses is weak (Engstrom et al. 2019): many restarts, or rotation_translation.",
            "The order of the transforms is fixed: colour, light, pose.",
        ),
        checked_by="finite differences of every transform; it breaks what each part alone breaks, nearly",
    )

    @property
    @override
    def norm(self) -> Norm:
        return self.p

    @property
    @override
    def eps(self) -> float:
        return self.size

    def __post_init__(self) -> None:
        if not self.size > 0:
            raise UsageError(f"theta needs a radius above 0, got {self.size}")

    @override
    def transform(self, shape: tuple[int, ...]) -> ImageTransform:
        parts: list[ImageTransform] = []
        if self.hue or self.saturation:
            parts.append(HueSaturation(self.hue, self.saturation))
        if self.brightness or self.contrast:
            parts.append(BrightnessContrast(self.brightness, self.contrast))
        if self.rotation or self.translation:
            parts.append(RotationTranslation(shape, self.rotation, self.translation))
        if not parts:
            raise UsageError("every range is 0: nothing can change")
        return Composition(*parts)

    @override
    def search(self, transform: Transform) -> Attack[Any, Any]:
        made = gradient_search(self.attack, steps=self.steps, restarts=self.restarts)
        refuse(made.card, self.p)
        return made
