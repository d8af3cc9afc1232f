"""Semantify-NN: certificates over the parameters of a semantic change of the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.relaxation.enclosure import enclose
from holdfast.certifiers.set_certifier import Reach, SetCertifier
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UsageError, did_you_mean
from holdfast.core.sets import AffineImage, LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph
from holdfast.transforms.colour import BrightnessContrast, HueSaturation, Lightness
from holdfast.transforms.geometry import RotationTranslation
from holdfast.transforms.transform import ImageTransform

__all__ = ["SemantifyNN"]

Make = Callable[[tuple[int, ...], float], ImageTransform]
_CHANGES: Mapping[str, tuple[float, Make]] = {  # the range that is asked about by default, in natural units
    "rotation": (30.0, lambda shape, size: RotationTranslation(shape, size, 0.0)),
    "hue": (180.0, lambda shape, size: HueSaturation(size, 0.0)),
    "saturation": (1.0, lambda shape, size: HueSaturation(0.0, size)),
    "lightness": (0.5, lambda shape, size: Lightness(size)),
    "brightness": (0.5, lambda shape, size: BrightnessContrast(size, 0.0)),
    "contrast": (0.5, lambda shape, size: BrightnessContrast(0.0, size)),
    "brightness_contrast": (0.5, lambda shape, size: BrightnessContrast(size, size)),
}


@dataclass(frozen=True)
class SemantifyNN(SetCertifier):
    """The largest symmetric range of a semantic parameter over which the class is proved.

    A cell of parameters is enclosed by an affine image (`relaxation.enclosure`), so that all pixels move together in
    the linear bounds, as they do in Semantify-NN's extra layers; a cell that is not proved is cut in two. The range is
    found by bisection, and a range at whose cell corners the model errs is given up at once.
    """

    card: ClassVar[Card] = Card(
        title="Semantify-NN",
        rows=("V11",),
        paper="Mohapatra, Weng, Chen, Liu & Daniel 2020, Towards Verifying Robustness of Neural Networks Against A Family "
        "of Semantic Perturbations, CVPR, arXiv 1912.09533",
        section="3.3",
        summary="Certifies the class over a range of rotation, hue, saturation, lightness, brightness or contrast.",
        norms=(Norm.LINF,),
        modality=("image",),
        guarantee=Guarantee.SOUND,
        failure_modes=("rotations of sharp images need fine cells: time grows with the range",),
        checked_by="a dense grid of parameters lies inside every enclosure, the range grows with cuts, semantic attacks",
    )

    change: str = parameter("rotation", f"one of {', '.join(_CHANGES)}", "Mohapatra et al. 2020, section 4")
    largest: float | None = parameter(
        None,
        "the range asked about to either side, in the change's unit, above 0",
        "30 degrees, 180 degrees, else 0.5 to 1",
    )
    parts: int = parameter(8, "cells along each parameter to begin with, at least 1", "ours")
    cuts: int = parameter(4, "how often a cell may be halved, at least 0", "ours: cells of a 128th of the range")
    searches: int = parameter(7, "bisection steps, at least 1", "ours: a hundredth of the range")

    @override
    def check(self, graph: Graph) -> None:
        """See `SetCertifier.check`."""
        if self.change not in _CHANGES:
            raise UsageError(f"there is no change '{self.change}'. {did_you_mean(self.change, _CHANGES)}")
        if self.parts < 1 or self.cuts < 0 or self.searches < 1:
            raise UsageError(
                f"parts, cuts and searches must be at least 1, 0, 1: {self.parts, self.cuts, self.searches}"
            )
        self.transform(graph.input_shape).check(graph.input_shape)

    def transform(self, shape: tuple[int, ...]) -> ImageTransform:
        """The change with its whole range."""
        natural, make = _CHANGES[self.change]
        return make(shape, natural if self.largest is None else self.largest)

    @override
    def reach(self, graph: Graph, x: Tensor, y: int) -> Reach:
        """See `SetCertifier.reach`."""
        transform = self.transform(graph.input_shape)
        module = graph.to(torch.float64).as_module().to(x.device)
        count, proved, failed = 0, 0.0, 2.0
        for _ in range(self.searches + 1):
            size = 1.0 if failed == 2.0 else (proved + failed) / 2
            held, cells = self._holds(graph, module, transform, x, y, size)
            count += cells
            proved, failed = (size, failed) if held else (proved, size)
            if proved == 1.0:
                break
        axis = transform.axes[0]
        unit = (
            f"{axis.unit} of {axis.name}"
            if len(transform.axes) == 1
            else "of each " + " and ".join(f"{a.name} ({a.unit})" for a in transform.axes)
        )
        return Reach(
            low=-proved * axis.extent,
            high=proved * axis.extent,
            unit=unit,
            whole=proved == 1.0,
            parts=count,
            arithmetic=self.tool.arithmetic(graph),
        )

    @override
    def members(self, graph: Graph, x: Tensor, reach: Reach, count: int, stream: torch.Generator) -> Tensor:
        """See `SetCertifier.members`: images under random parameters, and under those at the ends."""
        transform, module = self.transform(graph.input_shape), graph.to(torch.float64).as_module()
        size = reach.high / transform.axes[0].extent
        theta = torch.rand((count, len(transform.axes)), generator=stream, dtype=x.dtype) * 2 - 1
        theta[::2] = theta[::2].sign()
        with torch.no_grad():
            return module(transform(x.expand(count, *x.shape), size * theta.to(x.device)))

    def _holds(
        self, graph: Graph, module: torch.nn.Module, transform: ImageTransform, x: Tensor, y: int, size: float
    ) -> tuple[bool, int]:
        """Whether the class is proved for parameters in [-size, size], and how many cells were bounded."""
        k, bounded = len(transform.axes), 0
        edges = torch.linspace(-size, size, self.parts + 1, dtype=x.dtype, device=x.device)
        corners = torch.cartesian_prod(*[edges] * k).view(-1, k)
        with torch.no_grad():
            if not bool((module(transform(x.expand(len(corners), *x.shape), corners)).argmax(1) == y).all()):
                return False, 0
        low = torch.cartesian_prod(*[edges[:-1]] * k).view(-1, k)
        high = torch.cartesian_prod(*[edges[1:]] * k).view(-1, k)
        for cut in range(self.cuts + 1):
            sets = [enclose(transform, x, a, b) for a, b in zip(low, high, strict=True)]
            held = self._proved(graph, y, sets)
            bounded += len(sets)
            if bool(held.all()):
                return True, bounded
            if cut == self.cuts:
                break
            # the parameter that moves the image most is halved
            moves = torch.stack([s.generators[0].flatten(1).abs().sum(1) for s in sets])[~held]
            low, high = _halved(low[~held], high[~held], moves.argmax(1))
        return False, bounded

    def _proved(self, graph: Graph, y: int, sets: list[AffineImage]) -> Tensor:
        together = AffineImage(
            norm=Norm.LINF,
            eps=torch.cat([s.eps for s in sets]),
            lower=torch.cat([s.lower for s in sets]),
            upper=torch.cat([s.upper for s in sets]),
            centre=torch.cat([s.centre for s in sets]),
            generators=torch.cat([s.generators for s in sets]),
            slack=torch.cat([s.slack for s in sets]),
        )
        region: LpBall = together
        middle = together.centre.clamp(together.lower, together.upper)
        return self.proved(graph, middle, torch.full((len(sets),), y, device=middle.device), region)


def _halved(low: Tensor, high: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Each cell cut in two along an axis."""
    middle = ((low + high) / 2).gather(1, axis[:, None])
    return (
        torch.cat([low, low.scatter(1, axis[:, None], middle)]),
        torch.cat([high.scatter(1, axis[:, None], middle), high]),
    )
