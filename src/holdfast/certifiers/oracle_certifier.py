"""The second door to a certificate: methods that ask the model instead of reading its graph.

A method declares its parameters and fills in ``_certify``; ``certify`` checks the request, the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor, nn

from holdfast.core.cards import Card, refuse
from holdfast.core.cost import Cost
from holdfast.core.criterion import Misclassified
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.threat import Norm
from holdfast.core.verdict import Certificate
from holdfast.judge.asking import scores_of

__all__ = ["Ask", "CertificateRequest", "ModuleAsk", "OracleCertifier", "Progress", "refuse_random"]

_FEW, _COPIES, _STEADY, _BATCH_NOISE = 2, 8, 1e-4, 1e-3

Progress = Callable[[int], None]
"""Told how many samples of the call are settled, each time that more are."""


class Ask(Protocol):
    """The model as a certifier sees it. Rows are points, not samples; each row through the model is counted."""

    @property
    def batch(self) -> int:
        """How many rows the model takes at once; certifiers build calls of about this many."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """(m, \\*features) -> (m, K), in eval mode and without a graph."""
        ...

    def gradient(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Gradient of ``logit[a] - logit[b]`` with respect to x (m, \\*features), a and b (m,): like x."""
        ...


class ModuleAsk:
    """An ``nn.Module`` as an :class:`Ask`, with counters. It is given copies, for some models write into their input.

    Attributes:
        forwards: rows that went through the model.
        backwards: rows that were differentiated.

    Example:
        >>> ask = ModuleAsk(nn.Linear(3, 2).eval(), batch=4)
        >>> ask.logits(torch.zeros(10, 3)).shape, ask.forwards
        (torch.Size([10, 2]), 10)
    """

    def __init__(self, module: nn.Module, batch: int = 1024) -> None:
        """Args:
        module: returns logits (m, K); must be in eval mode.
        batch: rows at once.
        """
        if module.training:
            raise UsageError("the model is in training mode; call model.eval() first")
        self.module, self.batch = module, batch
        self.forwards = self.backwards = 0

    @property
    def cost(self) -> Cost:
        """What was asked so far: it is the certified model that answers, so that each forward is a query."""
        return Cost(forwards=self.forwards, backwards=self.backwards, queries=self.forwards)

    def logits(self, x: Tensor) -> Tensor:
        """(m, \\*features) -> (m, K)."""
        self.forwards += len(x)
        with torch.no_grad():
            return torch.cat([self._scores(x[rows]) for rows in self._parts(len(x))])

    def gradient(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Gradient of ``logit[a] - logit[b]`` with respect to x: (m, \\*features)."""
        self.forwards += len(x)
        self.backwards += len(x)
        return torch.cat([self._gradient(x[rows], a[rows], b[rows]) for rows in self._parts(len(x))])

    def _scores(self, x: Tensor) -> Tensor:
        return scores_of(self.module(x.clone()), len(x), Misclassified())

    def _parts(self, m: int) -> list[slice]:
        return [slice(start, start + self.batch) for start in range(0, max(m, 1), self.batch)]

    def _gradient(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = self._scores(leaf)
            difference = logits.gather(1, a[:, None]) - logits.gather(1, b[:, None])
            return torch.autograd.grad(difference.sum(), leaf)[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class CertificateRequest:
    """A request for certificates that was checked.

    Attributes:
        x: (n, \\*features) clean inputs, float.
        y: (n,) int64 labels.
        ids: n rows of the data set.
        seed: of the plan.
        norm: distortion in which the radius is measured; the method serves it.
        radius_max: no larger radius is of interest, above 0.
        progress: told how many samples are settled.
    """

    x: Tensor
    y: Tensor
    ids: Sequence[int]
    seed: int
    norm: Norm
    radius_max: float | None
    progress: Progress


class OracleCertifier(ABC):
    """A method that bounds, with some guarantee, how far the prediction holds, by asking the model.

    A subclass is a frozen dataclass whose fields are declared with ``parameter(...)``.
    """

    card: ClassVar[Card]

    @final
    def certify(
        self,
        ask: Ask,
        x: Tensor,
        y: Tensor,
        ids: Sequence[int],
        seed: int,
        *,
        norm: Norm,
        radius_max: float | None = None,
        progress: Progress | None = None,
    ) -> list[Certificate | None]:
        """A certificate for each sample, or None where there is none to give.

        Args:
            ask: the model.
            x: (n, \\*features) clean inputs, float.
            y: (n,) int64 labels; a sample with another prediction gets None.
            ids: the n samples' rows in their data set; with the seed they key the draws.
            seed: seed of the plan.
            norm: distortion in which the radius is measured.
            radius_max: no larger radius is of interest; the answer is cut off here.
            progress: told how many samples are settled.

        Raises:
            UnsupportedError: the method does not serve this norm, or not a model that answers at random.
            UsageError: x, y and ids do not agree, or radius_max is not positive.
        """
        refuse(self.card, norm)
        if not x.is_floating_point():
            raise UsageError(f"inputs must be floating-point numbers, got {x.dtype}")
        if y.shape != (len(x),) or len(ids) != len(x):
            raise UsageError(f"{len(x)} inputs need as many labels and ids, got {tuple(y.shape)} and {len(ids)}")
        if radius_max is not None and not radius_max > 0:
            raise UsageError(f"radius_max must be positive, got {radius_max}")
        request = CertificateRequest(
            x=x, y=y, ids=ids, seed=seed, norm=norm, radius_max=radius_max, progress=progress or _silent
        )
        return self._certify(ask, request)

    @abstractmethod
    def _certify(self, ask: Ask, request: CertificateRequest) -> list[Certificate | None]:
        """What ``certify`` returns, for a checked request."""


def refuse_random(ask: Ask, x: Tensor) -> None:
    """Asks copies of a few points twice, and one of them alone: draws of the model's own would have to be independent of
    everything else, and a vote counts answers that each stand for one noisy copy.

    Args:
        ask: the model.
        x: (n, \\*features), of which two are asked, 16 times each, and one once more; they are counted.

    Raises:
        UnsupportedError: the answers differ.
    """
    few = x[:_FEW]
    copies = torch.cat([few] * _COPIES)
    first, second = (ask.logits(copies).double().nan_to_num() for _ in range(2))
    if not torch.allclose(first, second, rtol=_STEADY, atol=_STEADY):
        raise UnsupportedError(
            "the model answers the same input differently each time, and nobody can tell whether its draws are fresh and "
            "independent, as a certificate needs them; switch its own noise off and let smoothing add the noise"
        )
    alone = ask.logits(few[:1]).double().nan_to_num()
    beside = first.view(_COPIES, len(few), -1)
    if not all(
        torch.allclose(a, b.expand_as(a), rtol=_BATCH_NOISE, atol=_BATCH_NOISE)
        for a, b in ((beside, beside[:1]), (beside[:, 0], alone))
    ):
        raise UnsupportedError(
            "the model's answer to one input depends on the others in its batch, so no vote over noisy copies says anything "
            "about one of them; look for batch statistics used in eval mode"
        )


def _silent(settled: int) -> None:
    pass
