"""Proofs that no square patch changes the class, wherever it lies and whatever it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.set_certifier import Reach, SetCertifier
from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Guarantee, Norm
from holdfast.graph.model import Graph

__all__ = ["PatchAnywhere"]


@dataclass(frozen=True)
class PatchAnywhere(SetCertifier):
    """The largest side of a square patch that cannot change the class at any place, with any content in [0, 1].

    Every place is a box of its own: the pixels under the patch are free, all others fixed. A patch of side k contains
    those of side k - 1, so sides are tried upwards and the first one that is not proved everywhere ends the search.
    """

    card: ClassVar[Card] = Card(
        title="Patch anywhere",
        rows=("V09",),
        paper="Chiang, Ni, Abdelkader, Zhu, Studer & Goldstein 2020, Certified Defenses for Adversarial Patches, ICLR, "
        "arXiv 2003.06693",
        section="3.3",
        summary="Certifies the class under a square patch of any content at any place of the image.",
        norms=(Norm.L0,),
        guarantee=Guarantee.SOUND,
        failure_modes=("models that were not trained for it rarely stand more than a few pixels",),
        checked_by="random patches at every place, the exact optimum of linear models",
    )

    largest: int = parameter(
        3, "the largest side to try, in pixels, at least 1", "ours: places times sides are bounded"
    )

    @override
    def check(self, graph: Graph) -> None:
        """See `SetCertifier.check`."""
        if len(graph.input_shape) != 3:
            raise UnsupportedError(f"a patch needs images (C, H, W); the model takes {graph.input_shape}")
        if not 1 <= self.largest <= min(graph.input_shape[1:]):
            raise UsageError(f"a patch of side {self.largest} does not fit into {graph.input_shape[1:]}")

    @override
    def reach(self, graph: Graph, x: Tensor, y: int) -> Reach:
        """See `SetCertifier.reach`."""
        parts, words = 0, self.tool.arithmetic(graph)
        for side in range(1, self.largest + 1):
            masks = _places(graph.input_shape, side, x.device)
            for some in torch.split(masks, self.tool.batch):
                parts += len(some)
                free = LpBall(
                    norm=Norm.LINF,
                    eps=torch.full((len(some),), torch.inf, dtype=torch.float64, device=x.device),
                    lower=x.new_zeros(()),
                    upper=x.new_ones(()),
                    mask=some,
                )
                label = torch.full((len(some),), y, device=x.device)
                if not bool(self.proved(graph, x.expand(len(some), *x.shape), label, free).all()):
                    return Reach(
                        low=0.0, high=float(side - 1), unit="pixels a side", whole=False, parts=parts, arithmetic=words
                    )
        return Reach(low=0.0, high=float(self.largest), unit="pixels a side", whole=True, parts=parts, arithmetic=words)

    @override
    def members(self, graph: Graph, x: Tensor, reach: Reach, count: int, stream: torch.Generator) -> Tensor:
        """See `SetCertifier.members`: patches of black and white pixels."""
        module, points = graph.to(torch.float64).as_module(), x.expand(count, *x.shape)
        if reach.high >= 1:
            masks = _places(graph.input_shape, int(reach.high), x.device)
            place = torch.randint(0, len(masks), (count,), generator=stream)
            shown = torch.rand(points.shape, generator=stream, dtype=x.dtype).round()
            points = torch.where(masks[place.to(x.device)], shown.to(x.device), points)
        with torch.no_grad():
            return module(points)


def _places(shape: tuple[int, ...], side: int, device: torch.device) -> Tensor:
    """(places, \\*shape) bool: True under the patch."""
    _, height, width = shape
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    tops, lefts = torch.arange(height - side + 1, device=device), torch.arange(width - side + 1, device=device)
    down = (rows >= tops[:, None]) & (rows < tops[:, None] + side)
    across = (columns >= lefts[:, None]) & (columns < lefts[:, None] + side)
    under = (down[:, None, :, None] & across[None, :, None, :]).flatten(0, 1)
    return under.unsqueeze(1).expand(-1, *shape)
