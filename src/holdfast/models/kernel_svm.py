"""Support vector machines as modules: a fitted scikit-learn machine that answers, and differentiates, in PyTorch."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.errors import ModelError

__all__ = ["KernelSVM"]


class KernelSVM(nn.Module):
    """The decision function of a fitted ``SVC`` or ``LinearSVC``, of inputs (n, \\*features) that are flattened.

    Scores are (n, K). Two classes: 0 and the decision value, so that margins are decision values. ``LinearSVC`` with
    more classes: its one-against-rest values. ``SVC`` with more classes: scikit-learn's own one-against-one vote with
    the summed confidences, squashed below a third of a vote, for the ties; votes are steps, so the gradient is that of
    the confidences, and the best class is that of ``SVC(break_ties=True)``. Classes are numbered in the order of
    ``classes_``. Coefficients are buffers; no pickle is kept.

    Example:
        >>> from sklearn.svm import SVC
        >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
        >>> machine = SVC(gamma=1.0).fit(x, y)
        >>> scores = KernelSVM(machine)(torch.tensor(x))
        >>> bool(np.allclose(scores[:, 1].numpy(), machine.decision_function(x)))
        True
    """

    vectors: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, machine: Any) -> None:
        """Reads the coefficients of a machine.

        Args:
            machine: a fitted ``sklearn.svm.SVC`` with kernel linear, rbf, poly or sigmoid, or a ``LinearSVC``.

        Raises:
            ModelError: it is not fitted, or has another kernel.
        """
        super().__init__()
        if not hasattr(machine, "classes_"):
            raise ModelError("this machine is not fitted; call fit first")
        self.classes = len(machine.classes_)
        self.kernel = str(machine.kernel) if hasattr(machine, "dual_coef_") else "none"
        bias = np.atleast_1d(machine.intercept_)
        if self.kernel == "none":
            weight, vectors = np.atleast_2d(machine.coef_), np.zeros((0, 0))
            self.gamma = self.coef0 = self.degree = 0.0
        elif self.kernel in ("linear", "rbf", "poly", "sigmoid"):
            vectors = np.asarray(machine.support_vectors_)
            weight = _pairwise(np.asarray(machine.dual_coef_), machine.n_support_)
            self.gamma, self.coef0, self.degree = float(machine._gamma), float(machine.coef0), float(machine.degree)
        else:
            raise ModelError(f"no module for the kernel '{machine.kernel}'; use linear, rbf, poly or sigmoid")
        for name, value in (("vectors", vectors), ("weight", weight), ("bias", bias)):
            self.register_buffer(name, torch.tensor(np.asarray(value, dtype=np.float64)))

    @override
    def extra_repr(self) -> str:
        """For the fingerprint."""
        return f"kernel={self.kernel}, gamma={self.gamma}, coef0={self.coef0}, degree={self.degree}"

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, K) scores, in the dtype of x."""
        flat = x.flatten(1).to(self.weight.dtype)
        features = flat if self.kernel == "none" else self._gram(flat)
        values = features @ self.weight.T + self.bias
        if self.classes == 2:
            scores = torch.cat([torch.zeros_like(values), values], dim=1)
        elif self.kernel == "none":
            scores = values
        else:
            scores = self._vote(values)
        return scores.to(x.dtype)

    def _gram(self, x: Tensor) -> Tensor:
        """(n, m) the kernel with each support vector."""
        product = x @ self.vectors.T
        if self.kernel == "linear":
            return product
        if self.kernel == "rbf":
            square = x.square().sum(1, keepdim=True) + self.vectors.square().sum(1) - 2 * product
            return (-self.gamma * square).exp()
        inner = self.gamma * product + self.coef0
        return inner**self.degree if self.kernel == "poly" else inner.tanh()

    def _vote(self, values: Tensor) -> Tensor:
        """One-against-one values (n, K (K - 1) / 2), positive for the first class of the pair, as K scores."""
        votes, sure = values.new_zeros(len(values), self.classes), values.new_zeros(len(values), self.classes)
        pairs = torch.tensor(list(combinations(range(self.classes), 2)), device=values.device)
        first, second = pairs.T
        won = (values > 0).to(values.dtype)
        votes = votes.index_add(1, first, won).index_add(1, second, 1 - won)
        sure = sure.index_add(1, first, values).index_add(1, second, -values)
        return votes + sure / (3 * (sure.abs() + 1))


def _pairwise(dual: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(K (K - 1) / 2, m) coefficients of each pair's machine, from libsvm's packing.

    Row j - 1 (j for classes after it) of the packed coefficients holds what a class's vectors weigh against class j.
    """
    ends = np.cumsum(counts)
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    pairs = list(combinations(range(len(counts)), 2))
    weight = np.zeros((len(pairs), dual.shape[1]))
    for row, (i, j) in enumerate(pairs):
        weight[row, parts[i]] = dual[j - 1, parts[i]]
        weight[row, parts[j]] = dual[i, parts[j]]
    return weight
