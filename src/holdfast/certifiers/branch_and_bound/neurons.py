"""Parts of the set that neuron splitting makes, and what a pass over them says."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from holdfast.certifiers.branch_and_bound.domains import DomainBatch
from holdfast.certifiers.branch_and_bound.passes import Pass
from holdfast.certifiers.branch_and_bound.reduced import LinearRows, NeuronState
from holdfast.certifiers.branch_and_bound.search import Bounded

__all__ = ["NeuronBounded", "NeuronDomains", "rows_of"]


@dataclass(frozen=True, eq=False, kw_only=True)
class NeuronDomains(DomainBatch):
    """Parts by the splits of activations' arguments; ``width`` rows of the query are bounded in each.

    Attributes:
        group: (n,) int64, which rows are in question: a place in the search's table.
        sound: (n,) float64, what is proved of each part.
        unit: (n, depth) int32, the splits on the way: positions of activations.
        side: (n, depth) int8, see `Cuts`.
        point: (n, depth), likewise.
        multiplier: (n, width, depth), of each row.
        slope: (n, width, units) half, lower slopes that the last pass ended with.
        candidates: (n, k) int32, units at which the part is to be split, best first; -1 where there are no more.
        coefficient: (n, width, k), what the rows' coefficients of the candidates are.
    """

    group: Tensor
    sound: Tensor
    unit: Tensor
    side: Tensor
    point: Tensor
    multiplier: Tensor
    slope: Tensor
    candidates: Tensor
    coefficient: Tensor

    @classmethod
    def whole(cls, groups: Tensor, sound: Tensor, width: int) -> NeuronDomains:
        """The whole set for each of some groups (n,), of which these bounds (n,) are proved."""
        none = torch.zeros(len(groups), 0)
        of_rows = none.unsqueeze(1).expand(-1, width, -1)
        return cls(
            bound=torch.full((len(groups),), -torch.inf),
            vertex=torch.zeros_like(groups),
            group=groups,
            sound=sound,
            unit=none.int(),
            side=none.to(torch.int8),
            point=none,
            multiplier=of_rows,
            slope=of_rows.half(),
            candidates=none.int(),
            coefficient=of_rows,
        )

    @property
    def exhausted(self) -> Tensor:
        """(n,): nothing is left to split."""
        return self.candidates[:, 0] < 0

    def halves(
        self, unit: Tensor, point: Tensor, multipliers: tuple[Tensor, Tensor], vertices: Tensor
    ) -> list[NeuronDomains]:
        """The lower parts of all, and the upper ones.

        Args:
            unit: (n, 1), where.
            point: (n, 1), at which argument.
            multipliers: (n, width, 1), what those of the lower and of the upper part's split start from.
            vertices: (n, 2), those of the parts.
        """
        return [
            replace(
                self,
                vertex=vertices[:, k],
                unit=torch.cat([self.unit, unit.int()], 1),
                side=torch.cat([self.side, torch.full_like(unit, side).to(torch.int8)], 1),
                point=torch.cat([self.point, point], 1),
                multiplier=torch.cat([self.multiplier, multipliers[k]], 2),
            )
            for k, side in enumerate((-1, 1))
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class NeuronBounded(Bounded[NeuronDomains]):
    """Parts, and the last pass over their rows; rows of one part stand together.

    Attributes:
        linear: the rows (n width, ...).
        state: what the pass was made with, of each row.
        last: the pass.
        sound: (n, width) float64, sound bounds of the rows; -inf where none was sought.
        score: (n,) float64, what they say of the part.
        estimate: (n,), what the pass itself says, in float32.
    """

    linear: LinearRows
    state: NeuronState
    last: Pass
    sound: Tensor
    score: Tensor
    estimate: Tensor

    @property
    def width(self) -> int:
        """Rows of a part."""
        return self.sound.shape[1]

    @override
    def select(self, rows: Tensor) -> NeuronBounded:
        """Some of the parts."""
        index = rows_of(rows, self.width)
        return NeuronBounded(
            domains=self.domains.select(rows),
            proved=self.proved[rows],
            linear=self.linear[index],
            state=self.state.pick(index),
            last=self.last.pick(index),
            sound=self.sound[rows],
            score=self.score[rows],
            estimate=self.estimate[rows],
        )


def rows_of(parts: Tensor, width: int) -> Tensor:
    """Where the rows of some parts stand, if each part has so many."""
    return (parts.unsqueeze(1) * width + torch.arange(width)).flatten()
