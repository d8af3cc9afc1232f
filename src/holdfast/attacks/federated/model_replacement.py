"""Model replacement: an update scaled up so that the average becomes the attacker's model (Bagdasaryan et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from holdfast.attacks.adversary import Adversary, Round
from holdfast.core.cards import Card, parameter
from holdfast.core.draws import Draws
from holdfast.core.errors import UsageError
from holdfast.core.threat import Goal, Phase

__all__ = ["ModelReplacement"]


@dataclass(frozen=True)
class ModelReplacement(Adversary):
    """Sends ``gamma * own`` with the gamma that cancels the server's weighing: ``total / (rate * the clients' own weight)``.

    Where the honest updates have about met, the new global model is the attacker's: ``G + own``.
    """

    boost: float | None = parameter(
        None, "factor gamma, above 0; None: what cancels the server's weighing", "Bagdasaryan et al. 2020, equation 3"
    )

    card: ClassVar[Card] = Card(
        title="Model replacement",
        rows=("P12",),
        paper="Bagdasaryan, Veit, Hua, Estrin, Shmatikov 2020, How To Backdoor Federated Learning, AISTATS, "
        "arXiv:1807.00459",
        section="2.1",
        summary="Scales a hostile client's update so that it survives the average and replaces the global model.",
        phase=Phase.TRAINING,
        goals=(Goal.TARGETED,),
        failure_modes=(
            "An aggregator that bounds norms, or takes a median, stops it.",
            "The update alone is scaled: the paper's constrained training, which keeps it inconspicuous, is the caller's.",
            "A factor beyond what the server's rate and weights ask for wrecks the clean accuracy and is seen.",
        ),
        checked_by="the weighted average, which is the attacker's model where the others send nothing",
    )

    def __post_init__(self) -> None:
        if self.boost is not None and not self.boost > 0:
            raise UsageError(f"the boost of {self.card.title} must be above 0, got {self.boost}")

    @override
    def update(self, round: Round, own: Tensor, draws: Draws) -> Tensor:
        if self.boost is not None:
            return self.boost * own
        sizes = round.sizes.double()
        return sizes.sum() / (round.rate * sizes[round.hostile].sum()) * own
