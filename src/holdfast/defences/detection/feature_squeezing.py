"""Feature squeezing: an input whose answer changes when details are squeezed out of it is odd (Xu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.cards import Card, parameter
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.data.dataset import Dataset
from holdfast.defences.detector import Detector
from holdfast.numerics.evaluation import evaluate

__all__ = ["FeatureSqueezing"]


@dataclass(frozen=True, kw_only=True)
class FeatureSqueezing(Detector):
    """The largest l1 distance between the softmax of an input and that of its squeezed versions, over a threshold.

    Squeezers are fewer grey levels and a median over small windows.

    Example:
        >>> FeatureSqueezing(bits=1).squeezed(torch.tensor([[[[0.2, 0.7], [0.9, 0.4]]]]))[0].flatten().tolist()
        [0.0, 1.0, 1.0, 0.0]
    """

    bits: int = parameter(
        5, "bits of a squeezed grey level, 1 to 8", "Xu et al. 2018: 5 for colour images, 1 for MNIST"
    )
    window: int = parameter(2, "side of the median's window, 2 or 3 pixels", "Xu et al. 2018: 2 x 2")
    false_positives: float = parameter(
        0.05, "share of clean inputs that may be flagged, between 0 and 1", "Xu et al. 2018: 5 %"
    )
    threshold: float | None = parameter(
        None, "distance above which an input is flagged; None: not fitted", "set by `fit`"
    )

    card: ClassVar[Card] = Card(
        title="Feature squeezing",
        rows=("D07",),
        paper="Xu, Evans, Qi 2018, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, NDSS, "
        "arXiv:1704.01155",
        section="3.1",
        summary="Flags inputs whose scores change when grey levels are dropped or small windows take their median.",
        modality=("image",),
        failure_modes=(
            "An attacker who knows it keeps the squeezed scores along (He et al. 2017; Carlini & Wagner 2017): tell its "
            "figures beside those of an attack on model and detector together.",
            "Small images lose too much by squeezing, and clean inputs look odd.",
        ),
        checked_by="SciPy's median filter, and the share of held-out clean inputs that is flagged",
    )

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.window not in (2, 3):
            raise UsageError(
                f"{self.card.title} takes 1 to 8 bits and windows of 2 or 3, got {self.bits} and {self.window}"
            )
        if not 0 < self.false_positives < 1:
            raise UsageError(
                f"the share of false positives lies between 0 and 1, got {self.false_positives}; give one such as 0.05"
            )

    @override
    def fit(self, model: nn.Module, data: Dataset) -> Self:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        odd = self._distance(model, data.x.to(device)).cpu()
        return replace(self, threshold=float(odd.quantile(1 - self.false_positives)))

    @override
    def score(self, model: nn.Module, x: Tensor) -> Tensor:
        if self.threshold is None:
            raise UsageError(f"{self.card.title} has no threshold yet; fit it on clean data first")
        return self._distance(model, x) - self.threshold

    def squeezed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) in [0, 1] with fewer grey levels, and with their windows' medians.

        Raises:
            UnsupportedError: these are no images.
        """
        if x.ndim != 4:
            raise UnsupportedError(f"{self.card.title} squeezes images (n, C, H, W), got the shape {tuple(x.shape)}")
        levels = 2**self.bits - 1
        return (x * levels).round() / levels, _median(x, self.window)

    def _distance(self, model: nn.Module, x: Tensor) -> Tensor:
        """(n,) float64, see the class."""
        versions = x, *self.squeezed(x)
        plain, *others = (evaluate(model, v).double().softmax(1) for v in versions)
        return torch.stack([(plain - other).abs().sum(1) for other in others]).amax(0)


def _median(x: Tensor, window: int) -> Tensor:
    """The median over windows, the larger of two in the middle, edges repeated: SciPy's ``median_filter``."""
    before = window // 2
    padded = F.pad(x, (before, window - 1 - before, before, window - 1 - before), mode="replicate")
    windows = padded.unfold(2, window, 1).unfold(3, window, 1).flatten(4)
    return windows.sort(-1).values[..., window * window // 2]
