"""Several models, or views of one, as one subject."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.errors import ModelError, UsageError

__all__ = ["Domains"]


class Domains(nn.Module):
    """Several models of the same classes asked about the same input; judged by `AllOf` or `AnyOf`.

    Example:
        >>> Domains([nn.Identity(), nn.Softmax(1)])(torch.zeros(1, 2)).tolist()
        [[[0.0, 0.0], [0.5, 0.5]]]
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        """Args:
        members: x (n, \\*features) -> scores (n, K), at least one.
        """
        super().__init__()
        if not members:
            raise UsageError("domains need at least one model")
        self.members = nn.ModuleList(members)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*features) -> (n, domains, K).

        Raises:
            ModelError: the members answer different numbers of classes.
        """
        scores = [member(x) for member in self.members]
        if len({s.shape for s in scores}) > 1:
            raise ModelError(f"the domains answer {[tuple(s.shape) for s in scores]}; they must agree")
        return torch.stack(scores, 1)
