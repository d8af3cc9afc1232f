"""g = smooth(f, sigma): counting its votes, its predictor, and a differentiable stand-in to attack it through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log, pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from holdfast.certifiers.oracle_certifier import Ask
from holdfast.core.criterion import usable
from holdfast.core.draws import Draws
from holdfast.core.errors import UsageError
from holdfast.numerics.stats import binomial_p_value

__all__ = ["REACH", "Smoothed", "SmoothedSurrogate", "missed", "normal"]

REACH = sqrt(2 * 53 * log(2))
"""The largest number that `normal` can draw: 8.57."""

# Rows of noise made in one call; a fixed function of the input's size, so that no number drawn depends on the batch.
_BLOCK_ROWS = 256
_BLOCK_NUMBERS = 1 << 16


def normal(shape: Sequence[int], stream: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal numbers in float64, by the Box-Muller transform of uniform ones with 53 bits.

    Twice as fast on a CPU as PyTorch's own float64 normal numbers, and the same on every device but for rounding.

    Args:
        shape: of the result.
        stream: the generator that is read on.
        device: the generator's.

    Returns:
        float64, none of which exceeds `REACH`.
    """
    count = torch.Size(shape).numel()
    half = (count + 1) // 2
    pairs = torch.rand(2 * half, generator=stream, dtype=torch.float64, device=device)
    radius, angle = pairs.chunk(2)
    radius.neg_().add_(1).log_().mul_(-2).sqrt_()  # of 1 - u in (0, 1]
    angle.mul_(2 * pi)
    sine = torch.sin(angle).mul_(radius)
    radius.mul_(angle.cos_())
    angle.copy_(sine)
    return pairs[:count].view(*shape)


def missed(d: int) -> float:
    """How much more likely than `normal` says any event is for real noise in d dimensions: what no draw can reach.

    Example:
        >>> missed(150_528) < 2e-11
        True
    """
    # in each pair the squared radius beyond -2 log 2^-53 has the chance 2^-53
    return (d + 1) * 2.0**-53


@dataclass(frozen=True)
class Smoothed:
    """g(x) = argmax_c P(f(x + N(0, sigma^2 I)) = c), asked by Monte Carlo (Cohen et al. 2019, section 3).

    Each sample has one stream of noise for each phase, keyed by (seed, "cohen", phase, id) and read in blocks of a
    fixed size: counts do not depend on the batch or on the other samples, and memory does not grow with n.

    Noise is drawn and added in float64, whatever type f takes: a float32 generator ends at 5.77 sigma, which for an
    image of 150,528 numbers is out of reach in one draw of a thousand; this one ends at `REACH` sigma. The sum is then
    rounded to the input's type, which makes rounding a part of f: the theorem holds for f after that rounding, a
    function of real numbers like any other.

    Attributes:
        ask: the base classifier f.
        sigma: standard deviation of the noise, in the input's unit.
        seed: seed of the plan.

    Example:
        >>> from holdfast.certifiers.oracle_certifier import ModuleAsk
        >>> f = nn.Linear(2, 2, bias=False).eval()
        >>> _ = f.weight.data.copy_(torch.eye(2))
        >>> g = Smoothed(ModuleAsk(f), sigma=0.5, seed=0)
        >>> label, p_value = g.predict(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), ids=[0, 1], n=1000, alpha=0.001)
        >>> label.tolist()
        [0, -1]
    """

    ask: Ask
    sigma: float
    seed: int

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UsageError(f"sigma must be positive, got {self.sigma}")

    def streams(self, ids: Sequence[int], phase: str, device: torch.device) -> list[torch.Generator]:
        """The samples' streams of noise for a phase, each at its beginning."""
        draws = Draws(self.seed, "cohen", device)
        return [draws.generator(phase, int(i)) for i in ids]

    def votes(self, x: Tensor, ids: Sequence[int], n: int, phase: str) -> Tensor:
        """How often f answers each class among the first n noisy copies of each sample in a phase.

        Args:
            x: (m, \\*features).
            ids: m ids, which key the noise.
            n: noisy copies of each sample.
            phase: name of the phase; other phases are independent of it.

        Returns:
            (m, K) int64. Copies without a usable answer (NaN, +infinity, or no class at all) count for no class.
        """
        return self.count(x, self.streams(ids, phase, x.device), n)

    def count(self, x: Tensor, streams: Sequence[torch.Generator], n: int) -> Tensor:
        """Votes (m, K) among the next n noisy copies of each sample, read on from the given streams."""
        if not len(x) or n < 1:
            raise UsageError(f"there is nothing to count among {n} copies of {len(x)} samples")
        counts = torch.zeros(0)
        for noisy, owner in self._copies(x, streams, n):
            logits = self.ask.logits(noisy)
            classes = logits.shape[1]
            if not len(counts):
                counts = torch.zeros(len(x) * (classes + 1), dtype=torch.int64, device=x.device)
            label = logits.argmax(1).masked_fill(~usable(logits), classes)
            counts.scatter_add_(0, owner * (classes + 1) + label, torch.ones_like(owner))
        return counts.view(len(x), -1)[:, :-1]

    def _copies(self, x: Tensor, streams: Sequence[torch.Generator], n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Full batches of noisy copies (rows, \\*features) and the samples (rows,) they are of, in one buffer."""
        batch, block = self.ask.batch, min(n, _BLOCK_ROWS, max(1, _BLOCK_NUMBERS // x[0].numel()))
        noisy = x.new_empty((batch + block, *x.shape[1:]))
        wide = x.double()
        owner = torch.empty(batch + block, dtype=torch.int64, device=x.device)
        held = 0
        for i, stream in enumerate(streams):
            for start in range(0, n, block):
                end = held + min(block, n - start)
                noise = normal((end - held, *x.shape[1:]), stream, x.device)
                noisy[held:end] = noise.mul_(self.sigma).add_(wide[i])
                owner[held:end] = i
                sent = end - end % batch
                for at in range(0, sent, batch):
                    yield noisy[at : at + batch], owner[at : at + batch]
                held = end - sent
                if sent and held:
                    noisy[:held] = noisy[sent:end].clone()
                    owner[:held] = owner[sent:end].clone()
        if held:
            yield noisy[:held], owner[:held]

    def predict(
        self, x: Tensor, ids: Sequence[int], n: int, alpha: float, phase: str = "predict"
    ) -> tuple[Tensor, Tensor]:
        """g's own answer, which is wrong with a chance of at most alpha, or an abstention (Cohen et al. 2019, PREDICT).

        Args:
            x: (m, \\*features).
            ids: m ids, which key the noise.
            n: noisy copies of each sample.
            alpha: the chance that a label is not g's.
            phase: name of the phase; a judge asks in its own.

        Returns:
            labels (m,) int64 with -1 for an abstention, and p-values (m,) float64 of the two-sided test between the
            two leading classes; both on the host.
        """
        top = self.votes(x, ids, n, phase).cpu().topk(2, dim=1)
        p_value = torch.as_tensor(binomial_p_value(top.values[:, 0].numpy(), top.values.sum(1).numpy(), 0.5))
        return top.indices[:, 0].where(p_value <= alpha, -1), p_value


class SmoothedSurrogate(nn.Module):
    """log mean_j softmax(f(x + noise_j)): what to attack g through (Salman et al. 2019, equation 6).

    The k noises are the same at each call and for each row, so that an attack sees one smooth deterministic function.
    One call sends k copies of each row through f.

    Example:
        >>> g = SmoothedSurrogate(nn.Linear(3, 2), sigma=0.25, k=8, seed=0).eval()
        >>> g(torch.zeros(5, 3)).exp().sum(1).allclose(torch.ones(5))
        True
    """

    def __init__(self, module: nn.Module, sigma: float, k: int, seed: int) -> None:
        """Args:
        module: f, (m, \\*features) -> logits (m, K).
        sigma: standard deviation of the noise.
        k: noisy copies in the mean.
        seed: keys the noise; k and the shape of x do the rest.
        """
        super().__init__()
        self.module, self.sigma, self.k, self.seed = module, sigma, k, seed
        self.train(module.training)

    @override
    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"sigma={self.sigma:g}, k={self.k}, seed={self.seed}"

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(m, \\*features) -> log-probabilities (m, K)."""
        stream = Draws(self.seed, "smoothed_surrogate", x.device).generator("noise")
        noise = torch.randn((self.k, *x.shape[1:]), generator=stream, device=x.device, dtype=x.dtype)
        copies = (x[:, None] + self.sigma * noise).flatten(0, 1)
        answers = F.log_softmax(self.module(copies), dim=1)
        return answers.view(len(x), self.k, answers.shape[1]).logsumexp(1) - log(self.k)
