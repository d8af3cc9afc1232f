"""Brightness and contrast of the whole image, searched by gradients, on a grid or at random (survey, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.families.parameter_search import GridSearch, WorstOfK
from holdfast.attacks.semantic import ImageAttack, gradient_search
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError
from holdfast.core.threat import Access, Formulation, Goal
from holdfast.transforms.colour import BrightnessContrast
from holdfast.transforms.transform import Transform

__all__ = ["LightShift"]

_SEARCHES = ("gradient", "grid", "random")


@dataclass(frozen=True, kw_only=True)
class LightShift(ImageAttack):
    """``clip((1 + contrast) x + brightness)`` with the two numbers that make the label wrong."""

    brightness: float = parameter(0.2, "largest shift to either side, 0 to 1", "Hsiung et al. 2023, arXiv:2202.04235")
    contrast: float = parameter(
        0.3, "largest change of the factor to either side of 1, at least 0", "Hsiung et al. 2023, arXiv:2202.04235"
    )
    search_by: str = parameter("gradient", "gradient, grid or random", "ours: two smooth parameters")
    steps: int = parameter(20, "gradient: steps of a start, at least 1", "ours; Hsiung et al. 2023 make 10")
    restarts: int = parameter(4, "gradient: random starts, at least 1", "ours: one for each corner, nearly")
    levels: int = parameter(11, "grid: values of each parameter, at least 1", "ours")
    trials: int = parameter(100, "random: pairs, at least 1", "ours")
    block: int = parameter(8, "grid, random: pairs of a sample that one step asks, at least 1", "ours")

    card: ClassVar[Card] = Card(
        title="Brightness and contrast",
        rows=("E45", "T03"),
        paper="Mohapatra, Weng, Chen, Liu, Daniel 2020, Towards Verifying Robustness of Neural Networks Against A Family of "
        "Semantic Perturbations, arXiv:1912.09533",
        section="2.2",
        summary="Searches the brightness shift and the contrast factor of the whole image that make the label wrong.",
        access=Access.WHITE_BOX,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        modality=("image",),
        failure_modes=("Pixels that clip at black or white have no slope; take search_by=grid for a flat model.",),
        checked_by="the grid breaks no sample that the gradient leaves by more than a few; finite differences",
    )

    def __post_init__(self) -> None:
        if self.search_by not in _SEARCHES:
            raise UsageError(f"light is searched by {', '.join(_SEARCHES)}, not '{self.search_by}'")

    @override
    def transform(self, shape: tuple[int, ...]) -> BrightnessContrast:
        return BrightnessContrast(self.brightness, self.contrast)

    @override
    def search(self, transform: Transform) -> Attack[Any, Any]:
        if self.search_by == "grid":
            return GridSearch(cells=(self.levels,) * len(transform.axes), block=self.block)
        if self.search_by == "random":
            return WorstOfK(trials=self.trials, block=self.block)
        return gradient_search("pgd", steps=self.steps, restarts=self.restarts)
