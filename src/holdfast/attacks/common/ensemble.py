"""Several surrogates as one model (Liu et al. 2017, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.errors import ModelError, UsageError

__all__ = ["Ensemble"]


class Ensemble(nn.Module):
    """A weighted mean of models with the same classes, of their logits or of their probabilities.

    ``probabilities`` is Liu et al.'s ``log sum_i a_i softmax_i``: it is led by the members that are still sure.
    ``logits`` is Dong et al.'s fusion (2018, section 3.3), which their measurements put first.

    Example:
        >>> one, other = nn.Identity(), nn.Identity()
        >>> Ensemble([one, other])(torch.tensor([[1.0, 3.0]])).tolist()
        [[1.0, 3.0]]
    """

    def __init__(
        self, members: Sequence[nn.Module], fuse: str = "logits", weights: Sequence[float] | None = None
    ) -> None:
        """Builds the ensemble.

        Args:
            members: x (n, \\*features) -> logits (n, K).
            fuse: ``logits`` or ``probabilities``.
            weights: one for each member, at least 0; normalised to sum 1. Default: equal.

        Raises:
            UsageError: no members, another fusion, or weights that fit no mean.
        """
        super().__init__()
        given = [1.0] * len(members) if weights is None else [float(w) for w in weights]
        if not members or len(given) != len(members) or min(given) < 0 or sum(given) <= 0:
            raise UsageError("an ensemble needs at least one member, and for each a weight of at least 0, not all 0")
        if fuse not in ("logits", "probabilities"):
            raise UsageError(f"an ensemble averages logits or probabilities, not '{fuse}'")
        self.members, self.fuse = nn.ModuleList(members), fuse
        self.weights = tuple(w / sum(given) for w in given)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, K) logits of the ensemble.

        Raises:
            ModelError: the members answer different numbers of classes.
        """
        scores = [member(x) for member in self.members]
        if len({s.shape for s in scores}) > 1:
            raise ModelError(f"the members of an ensemble answer {[tuple(s.shape) for s in scores]}; they must agree")
        every = torch.stack(scores)
        w = torch.tensor(self.weights, dtype=every.dtype, device=every.device).view(-1, 1, 1)
        if self.fuse == "logits":
            return (w * every).sum(0)
        return (every.log_softmax(-1) + w.log()).logsumexp(0)
