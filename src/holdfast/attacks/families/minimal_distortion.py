"""What gradient attacks of minimal distortion share: the restart of samples that do not cross, and the end of the search."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from torch import Tensor
from typing_extensions import override

from holdfast.attacks.attack import Attack, State
from holdfast.attacks.common.minimum_norm import adversarial_restart, finish
from holdfast.judge.asks import WhiteBoxAsk

__all__ = ["MinimalDistortion"]

S = TypeVar("S", bound=State)


class MinimalDistortion(Attack[WhiteBoxAsk, S]):
    """``steps`` gradient steps; a sample that has not crossed the boundary after the share ``patience`` of them goes on from
    an adversarial start; in the end ``search`` forwards walk back from the best witness.

    A method declares the three as its parameters.
    """

    reads_margin: ClassVar[bool] = True

    steps: int
    patience: float
    search: int

    @property
    @override
    def passes(self) -> int:
        return 2 * self.steps + self.search + 1

    def restart(self, ask: WhiteBoxAsk, state: S, crossed: Tensor) -> tuple[Tensor, Tensor] | None:
        """Where samples go on that have not crossed (n,) when their patience ends, as `adversarial_restart` has it; None at
        all other steps.
        """
        return adversarial_restart(ask, state.step + 1 == int(self.patience * self.steps), crossed, self.search)

    @override
    def finalize(self, ask: WhiteBoxAsk, state: S) -> None:
        super().finalize(ask, state)
        finish(ask, self.search)
