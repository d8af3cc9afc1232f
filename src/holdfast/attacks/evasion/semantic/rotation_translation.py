"""Rotation and translation: every pose of a grid, or the worst of k random ones (Engstrom et al. 2019)."""

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
from holdfast.transforms.geometry import RotationTranslation
from holdfast.transforms.transform import Transform

__all__ = ["Pose"]

_SEARCHES = ("grid", "random", "gradient")


@dataclass(frozen=True, kw_only=True)
class Pose(ImageAttack):
    """Rotates about the middle and shifts, bilinear and black beyond the edges, until the label is wrong."""

    rotation: float = parameter(30.0, "largest angle to either side, degrees, at least 0", "Engstrom et al. 2019: 30")
    translation: float = parameter(
        0.1, "largest shift to either side as a share of the side, at least 0", "Engstrom et al. 2019: 10 % of the side"
    )
    search_by: str = parameter("grid", "grid, random or gradient", "Engstrom et al. 2019: the grid is the strongest")
    angles: int = parameter(31, "grid: angles, at least 1", "Engstrom et al. 2019: 31")
    shifts: int = parameter(5, "grid: shifts along each axis, at least 1", "Engstrom et al. 2019: 5")
    trials: int = parameter(10, "random: poses, at least 1", "Engstrom et al. 2019: worst of 10")
    steps: int = parameter(200, "gradient: steps, at least 1", "Engstrom et al. 2019, first-order method: 200")
    block: int = parameter(8, "poses of a sample that one step asks, at least 1", "ours: memory against calls")

    card: ClassVar[Card] = Card(
        title="Rotation and translation",
        rows=("E38", "T03"),
        paper="Engstrom, Tran, Tsipras, Schmidt, Madry 2019, Exploring the Landscape of Spatial Robustness, "
        "arXiv:1712.02779",
        section="2.2",
        summary="Searches small rotations and shifts of the image: a whole grid of poses, or the worst of k random ones.",
        access=Access.HARD_LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        formulation=Formulation.BUDGET,
        modality=("image",),
        failure_modes=(
            "The loss over poses of real images has many local optima: a gradient search misses much of what the grid finds.",
            "Black corners come in: part of what breaks may be them and not the pose.",
            "Images of under 16 pixels are blurred by the interpolation itself.",
        ),
        checked_by="rot90 and whole-pixel shifts; a planted angle that the grid finds and a gradient from 0 does not; "
        "grid error above worst of 10 above clean error on a CIFAR-10 network",
    )

    def __post_init__(self) -> None:
        if self.search_by not in _SEARCHES:
            raise UsageError(f"poses are searched by {', '.join(_SEARCHES)}, not '{self.search_by}'")

    @override
    def transform(self, shape: tuple[int, ...]) -> RotationTranslation:
        return RotationTranslation(shape, self.rotation, self.translation)

    @override
    def search(self, transform: Transform) -> Attack[Any, Any]:
        if self.search_by == "random":
            return WorstOfK(trials=self.trials, block=self.block)
        if self.search_by == "gradient":
            return gradient_search("pgd", steps=self.steps, random_start=False)
        cells = tuple(self.angles if axis.name == "rotation" else self.shifts for axis in transform.axes)
        return GridSearch(cells=cells, block=self.block)
