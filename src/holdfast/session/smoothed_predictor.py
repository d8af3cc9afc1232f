"""g = smooth(f, sigma) as a model that can be asked: by its own predictor, abstention included."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from holdfast.certifiers.oracle_certifier import ModuleAsk
from holdfast.certifiers.smoothed import Smoothed
from holdfast.core.verdict import Subject
from holdfast.numerics.stats import binomial_p_value

__all__ = ["SmoothedPredictor", "smoothed_subject"]

_DRAWS, _ALPHA = 1000, 0.001


class SmoothedPredictor:
    """g's own predictor as a model: log of the vote shares; not a number where it abstains.

    Each row is asked with the same keyed noise, so that its answer does not depend on the batch.
    """

    def __init__(self, module: nn.Module, sigma: float, seed: int) -> None:
        """Wraps f."""
        self._ask = ModuleAsk(copy.deepcopy(module).eval())
        self._g = Smoothed(self._ask, sigma, seed)

    def __call__(self, x: Tensor) -> Tensor:
        """(m, \\*features) -> (m, K) in the dtype of x."""
        votes = self._g.votes(x, [0] * len(x), _DRAWS, "judge")
        top = votes.topk(2, dim=1).values.cpu().numpy()
        abstains = torch.as_tensor(binomial_p_value(top[:, 0], top.sum(1), 0.5) > _ALPHA, device=x.device)
        shares = ((votes + 0.5) / (_DRAWS + 0.5 * votes.shape[1])).log().to(x.dtype)
        return shares.masked_fill(abstains.unsqueeze(1), float("nan"))


def smoothed_subject(f: Subject, sigma: float, seed: int) -> Subject:
    """What verdicts on g are about, of which f is the base."""
    return Subject(
        "smoothed", f.sha256, f"sigma={sigma:g}, predictor of {_DRAWS} draws at alpha {_ALPHA:g}, seed {seed}"
    )
