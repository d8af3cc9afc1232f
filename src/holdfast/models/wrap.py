"""Small modules around a model: what belongs to f beside its weights, and the stand-ins of adaptive attacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, log
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.draws import seeded
from holdfast.core.errors import ModelError, UsageError
from holdfast.data.table import Table

__all__ = [
    "Bpda",
    "Eot",
    "FixedMode",
    "FixedRandomness",
    "FromHF",
    "InputTransform",
    "Normalisation",
    "Normalised",
    "OneLogit",
    "OneProbability",
    "Ranged",
    "with_two_classes",
]


@dataclass(frozen=True)
class Normalisation:
    """A declared ``(x - mean) / std`` for each channel, on inputs in the threat model's range.

    Example:
        >>> Normalisation.parse("0.5,0.5,0.5/0.25,0.25,0.25").std
        (0.25, 0.25, 0.25)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise UsageError(
                f"normalisation needs as many means as deviations, got {len(self.mean)} and {len(self.std)}"
            )
        if not all(isfinite(m) for m in self.mean) or not all(isfinite(s) and s > 0 for s in self.std):
            raise UsageError(f"normalisation needs finite means and deviations above 0, got {self.mean} and {self.std}")

    @classmethod
    def parse(cls, text: str) -> Normalisation:
        """Read ``MEAN,MEAN,MEAN/STD,STD,STD``; a deviation may be a fraction, as 1/255.

        Raises:
            UsageError: not of that form.
        """
        mean, slash, std = text.partition("/")
        try:
            if not slash:
                raise ValueError
            return cls(tuple(map(float, mean.split(","))), tuple(float(Fraction(s)) for s in std.split(",")))
        except (ValueError, ZeroDivisionError) as fault:
            if isinstance(fault, UsageError):
                raise
            raise UsageError(
                f"'{text}' is no normalisation; write MEAN/STD, or M,M,M/S,S,S for three channels (0/1/255 is mean 0, "
                "deviation 1/255)"
            ) from None

    @override
    def __str__(self) -> str:
        return f"{','.join(f'{m:g}' for m in self.mean)}/{','.join(f'{s:g}' for s in self.std)}"


class Normalised(nn.Module):
    """``module((x - mean) / std)`` by channel; one mean serves any number of channels.

    Example:
        >>> Normalised(nn.Identity(), Normalisation((0.5,), (0.25,)))(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(normalisation.mean), persistent=False)
        self.register_buffer("std", torch.tensor(normalisation.std), persistent=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, C, \\*) in the threat model's range -> the module's output."""
        channels = len(self.mean)
        if channels not in (1, x.shape[1]):
            raise ModelError(f"the declared normalisation has {channels} channels and the input {x.shape[1]}")
        shape = (1, channels, *[1] * (x.ndim - 2))
        return self.module((x - self.mean.view(shape)) / self.std.view(shape))


class OneLogit(nn.Module):
    """A binary model with one logit s as two classes with logits (0, s): the same probabilities, the same decision.

    Example:
        >>> OneLogit(nn.Identity())(torch.tensor([[3.0]]))
        tensor([[0., 3.]])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*) -> (n, 2)."""
        s = _column(self.module(x))
        if s.shape[1] != 1:
            raise ModelError(f"OneLogit wraps a model with one output; this one has {s.shape[1]}")
        return torch.cat([torch.zeros_like(s), s], 1)


class OneProbability(nn.Module):
    """A binary model that answers with the probability p of class 1, as two classes with probabilities (1 - p, p).

    Example:
        >>> OneProbability(nn.Identity())(torch.tensor([[0.75]]))
        tensor([[0.2500, 0.7500]])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*) -> (n, 2)."""
        p = _column(self.module(x))
        if p.shape[1] != 1:
            raise ModelError(f"OneProbability wraps a model with one output; this one has {p.shape[1]}")
        return torch.cat([1 - p, p], 1)


def _column(out: Tensor) -> Tensor:
    """(n,) or (n, \\*) as (n, features), also for n = 0."""
    return out.unsqueeze(1) if out.ndim == 1 else out.flatten(1)


def with_two_classes(module: nn.Module, binary: Literal["logit", "probability"] | None) -> nn.Module:
    """A model with one output, which is the logit or the probability of class 1, as one with two classes."""
    return module if binary is None else {"logit": OneLogit, "probability": OneProbability}[binary](module)


class Ranged(nn.Module):
    """``module(low + x * width)``: columns in units of their ranges become the columns' own values.

    Example:
        >>> Ranged(nn.Identity(), torch.tensor([20.0]), torch.tensor([40.0]))(torch.tensor([[0.25]]))
        tensor([[30.]])
    """

    low: Tensor
    width: Tensor

    def __init__(self, module: nn.Module, low: Tensor, width: Tensor) -> None:
        """Args:
        module: takes the columns' own values.
        low: (columns,) least values.
        width: (columns,) widths of the ranges.
        """
        super().__init__()
        self.module = module
        self.register_buffer("low", low.float(), persistent=False)
        self.register_buffer("width", width.float(), persistent=False)

    @classmethod
    def of(cls, module: nn.Module, table: Table) -> Ranged:
        """A module that takes the columns' own values, for inputs in units of a table.

        Example:
            >>> from holdfast.data import Dataset, Table
            >>> table = Table.of({"columns": {"age": {"low": 20, "high": 60, "immutable": True}, "share": {}}})
            >>> model, ball = Ranged.of(nn.Linear(2, 2), table), table.ball("linf", 0.1, 5)
            >>> x = table.to_units(Dataset.of(torch.tensor([[30.0, 0.5]] * 5), torch.zeros(5).long())).x
            >>> model(x).shape, ball.mask[0].tolist()
            (torch.Size([5, 2]), [False, True])
        """
        return cls(module, table.low, table.width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, columns) in [0, 1] -> the module's output."""
        return self.module(self.low + x * self.width)


class FromHF(nn.Module):
    """The logits of a Hugging Face classifier, which answers with an object.

    Args:
        module: the classifier.
        classes: what it calls its classes, if it does.
        multi_label: it decides each label by itself; argmax is not its decision.
    """

    def __init__(self, module: nn.Module, classes: tuple[str, ...] | None = None, multi_label: bool = False) -> None:
        super().__init__()
        self.module = module
        self.classes = classes
        self.multi_label = multi_label

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) pixel values -> (n, K) logits."""
        return self.module(pixel_values=x).logits


class FixedMode(nn.Module):
    """A module whose mode was fixed when it was exported: ``train`` and ``eval`` leave it alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.training = False

    @override
    def train(self, mode: bool = True) -> FixedMode:
        """Return the module as it is."""
        return self

    @override
    def forward(self, x: Tensor) -> Tensor:
        """What the exported program gives."""
        return self.module(x)


class InputTransform(nn.Module):
    """``module(transform(x))``: a preprocessing defence in front of a model."""

    def __init__(self, transform: Callable[[Tensor], Tensor], module: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.module = module

    @override
    def extra_repr(self) -> str:
        """For the fingerprint."""
        return f"transform={_name(self.transform)}"

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*) -> the module's output on the transformed inputs."""
        return self.module(self.transform(x))


class Bpda(nn.Module):
    """A preprocessing step f with the gradient of a differentiable stand-in g (BPDA; Athalye et al. 2018, section 4.1).

    Example:
        >>> x = torch.tensor([0.4], requires_grad=True)
        >>> y = Bpda(torch.round)(x)
        >>> y.backward()
        >>> y.item(), x.grad.item()
        (0.0, 1.0)
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor] | None = None) -> None:
        """Args:
        forward: f, exactly what the deployed model does; need not be differentiable.
        backward: g, close to f and of its shape; the identity (straight-through) if None.
        """
        super().__init__()
        self.f = forward
        self.g = backward

    @override
    def extra_repr(self) -> str:
        """For the fingerprint."""
        return f"forward={_name(self.f)}, backward={_name(self.g)}"

    @override
    def forward(self, x: Tensor) -> Tensor:
        """f(x), to the bit; its gradient is that of g(x)."""
        with torch.no_grad():
            value = self.f(x)
        path = x if self.g is None else self.g(x)
        if path.shape != value.shape:
            raise ModelError(f"BPDA: f gives the shape {tuple(value.shape)} and its stand-in {tuple(path.shape)}")
        return _Route.apply(value, path)


def _name(function: object) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


class _Route(torch.autograd.Function):
    """The first argument's value with the second's gradient; ``g + (f - g).detach()`` would round."""

    @staticmethod
    @override
    def forward(ctx: Any, value: Tensor, path: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, grads[0]


class FixedRandomness(nn.Module):
    """A randomised module made deterministic: every forward draws the same numbers.

    An attack on it searches a fixed function. If that succeeds where an attack on the module itself fails, the module
    withstood by its randomness alone (Carlini et al. 2019, section 4.2): go on with `Eot`.

    Example:
        >>> noisy = FixedRandomness(nn.Dropout(0.5), seed=0).train()
        >>> x = torch.ones(3, 8)
        >>> torch.equal(noisy(x), noisy(x)), torch.equal(noisy(x)[:1], noisy(x[2:]))
        (True, True)
    """

    def __init__(self, module: nn.Module, seed: int = 0, *, together: bool = False) -> None:
        """Args:
        module: draws from PyTorch's global generator, whose state is put back after each forward.
        seed: of the draws.
        together: one forward for the whole batch, which is quicker; a row's draws then depend on its place in the batch.
            Otherwise each row goes by itself and always has the same draws.
        """
        super().__init__()
        self.module = module
        self.seed = seed
        self.together = together

    @override
    def extra_repr(self) -> str:
        """For the fingerprint."""
        return f"seed={self.seed}, together={self.together}"

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*) -> the module's output."""
        if self.together or len(x) < 2:
            return self._seeded(x)
        return torch.cat([self._seeded(row) for row in torch.split(x, 1)])

    def _seeded(self, x: Tensor) -> Tensor:
        with seeded(self.seed):
            return self.module(x)


class Eot(nn.Module):
    """Expectation over a model's own randomness (Athalye et al. 2018): the log of its mean softmax over k forwards.

    The draws are fresh ones of PyTorch's global generator, so that two calls differ as two calls of the module do, or
    with a seed the same k in every call, which makes the expectation a fixed function.

    Example:
        >>> x = torch.ones(2, 8)
        >>> fresh, fixed = Eot(nn.Dropout(0.5), 4).train(), Eot(nn.Dropout(0.5), 4, seed=0).train()
        >>> torch.equal(fresh(x), fresh(x)), torch.equal(fixed(x), fixed(x))
        (False, True)
    """

    def __init__(self, module: nn.Module, draws: int, *, seed: int | None = None, together: bool = False) -> None:
        """Args:
        module: a randomised model with logits.
        draws: k, at least 1; each forward of this module costs k of the inner one.
        seed: of fixed draws; fresh ones if None.
        together: see `FixedRandomness`; of no effect on fresh draws.
        """
        super().__init__()
        if draws < 1:
            raise UsageError(f"EOT needs at least 1 draw, got {draws}")
        self.module = module
        self.draws = draws
        self.seed = seed
        self.together = together

    @override
    def extra_repr(self) -> str:
        """For the fingerprint."""
        return f"draws={self.draws}" + ("" if self.seed is None else f", seed={self.seed}, together={self.together}")

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(n, \\*) -> (n, K) log-probabilities."""
        each = torch.stack([draw(x).log_softmax(1) for draw in self._draws()])
        return each.logsumexp(0) - log(self.draws)

    def _draws(self) -> list[Callable[[Tensor], Tensor]]:
        if self.seed is None:
            return [self.module] * self.draws
        return [FixedRandomness(self.module, self.seed + k, together=self.together) for k in range(self.draws)]
