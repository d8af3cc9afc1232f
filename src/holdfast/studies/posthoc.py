"""Robustness before and after a model is adjusted: pruned, quantised, calibrated (survey, section 1).

Accuracy survives most of these adjustments, robustness need not: the adjusted model is another model, and what was found
about the original says nothing of it. Each adjusted model is attacked anew, and the examples of each are judged on the
other, so that the page also tells whether examples made on the public original break the deployed one.

Weights and activations of ``int8`` are simulated: rounded to 8 bits and computed in float, with the rounding passed over
by the gradient (straight through), so that a white-box attack is not blinded by it. ``dynamic-int8`` is PyTorch's own and
has no gradient: it is attacked with the original's examples alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.attacks.attack import Attack
from holdfast.attacks.engine import Settings, run
from holdfast.core.errors import UnsupportedError, UsageError, did_you_mean
from holdfast.core.problem import Problem
from holdfast.judge.judged import upheld
from holdfast.judge.referee import Referee
from holdfast.models.wrap import Bpda
from holdfast.numerics.evaluation import evaluating
from holdfast.numerics.stats import clopper_pearson

__all__ = [
    "ADJUSTMENTS", "Posthoc", "Row", "adjusted", "calibration_error", "posthoc", "pruned", "temperature_of",
]  # fmt: skip

_BINS = 15
_BATCH = 256
_LEVELS = 127
_TEMPERATURES = (0.02, 50.0)
_HALVINGS = 60

ADJUSTMENTS = ("prune:0.5", "prune:0.8", "int8-weights", "int8", "dynamic-int8", "fp16", "bf16", "temperature")
"""What is done by default; ``prune:SHARE`` takes any share in (0, 1)."""

Progress = Callable[[str, int, int], None]
Attacks = Mapping[str, Attack[Any, Any]]


@dataclass(frozen=True)
class Row:
    """One model: the original or an adjusted one.

    Attributes:
        name: of the adjustment.
        words: what was done.
        accuracy: on the clean samples.
        calibration: expected calibration error of the clean confidences, 15 bins of equal width.
        robust: share of all samples that are right and stay so under every attack on this model; None if it has no gradient.
        interval: its 95 % Clopper-Pearson interval.
        from_original: share of the samples right on both that the original's examples break on this one.
        to_original: share of them that this model's examples break on the original.
        robust_to_both: share of all samples that stay right under this model's own examples and the original's.
        passes: forwards and backwards of its attacks.
    """

    name: str
    words: str
    accuracy: float
    calibration: float
    robust: float | None
    interval: tuple[float, float] | None
    from_original: float | None
    to_original: float | None
    robust_to_both: float
    passes: int


@dataclass(frozen=True)
class Posthoc:
    """The original first, then each adjusted model.

    Attributes:
        norm: of the set.
        eps: its size, as written.
        samples: how many were judged.
        fitted_on: held-out samples that the temperature was fitted on.
        attacks: their names.
        seed: keys all draws.
        rows: one for each model.
        refused: adjustments that this model or machine cannot have, and why.
    """

    norm: str
    eps: str
    samples: int
    fitted_on: int
    attacks: tuple[str, ...]
    seed: int
    rows: tuple[Row, ...]
    refused: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"refused": dict(self.refused)}


# adjustments


def pruned(model: nn.Module, share: float) -> nn.Module:
    """A copy whose ``share`` of smallest weights, over all linear and convolutional layers together, is 0 (Han et al. 2015).

    Example:
        >>> (pruned(nn.Linear(10, 10), 0.7).weight == 0).float().mean().item()
        0.699999988079071
    """
    if not 0 < share < 1:
        raise UsageError(f"a share to prune lies between 0 and 1, got {share:g}")
    made = copy.deepcopy(model)
    weights = [m.weight for m in _weighted(made).values()]
    if not weights:
        raise UnsupportedError("the model has no linear or convolutional layer to prune")
    sizes = torch.cat([w.detach().abs().flatten() for w in weights])
    k = round(share * len(sizes))
    gone = torch.zeros_like(sizes, dtype=torch.bool)
    gone[sizes.argsort(stable=True)[:k]] = True
    with torch.no_grad():
        for w, mask in zip(weights, gone.split([w.numel() for w in weights]), strict=True):
            w[mask.view_as(w)] = 0
    return made


def _weighted(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def _rounded_weights(model: nn.Module) -> nn.Module:
    """A copy with weights of 8 bits, symmetric, one scale for each output channel."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for m in _weighted(made).values():
            scale = m.weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(m.weight.dtype).tiny) / _LEVELS
            scale = scale.view(-1, *[1] * (m.weight.ndim - 1))
            m.weight.copy_((m.weight / scale).round() * scale)
    return made


class _Rounded(nn.Module):
    """A layer whose inputs are rounded to 256 levels of the range that held-out data showed."""

    def __init__(self, layer: nn.Module, low: float, high: float) -> None:
        super().__init__()
        step = max(high - low, 1e-12) / (2 * _LEVELS + 1)
        self.layer, self.low, self.high = layer, low, high
        self.round = Bpda(lambda x: ((x.clamp(low, high) - low) / step).round() * step + low)

    @override
    def extra_repr(self) -> str:
        return f"low={self.low!r}, high={self.high!r}"

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.round(x))


def _rounded(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy with weights and layer inputs of 8 bits; the inputs' ranges are those of x."""
    made = _rounded_weights(model)
    ranges: dict[str, tuple[float, float]] = {}
    layers = _weighted(made)

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            low, high = ranges.get(name, (float("inf"), float("-inf")))
            ranges[name] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

        return hook

    hooks = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    scores_of(made, x)
    for hook in hooks:
        hook.remove()
    if "" in layers:
        return _Rounded(made, *ranges[""])
    for name in layers:
        if name in ranges:
            parent, _, last = name.rpartition(".")
            setattr(made.get_submodule(parent), last, _Rounded(layers[name], *ranges[name]))
    return made


class _Cast(nn.Module):
    """A model computed in a lower precision, between inputs and scores in the caller's."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = copy.deepcopy(model).to(dtype), dtype

    @override
    def double(self) -> nn.Module:
        raise TypeError("a model of fixed precision has no other")

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.to(self.dtype)).to(x.dtype)


class _Tempered(nn.Module):
    """Logits divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = copy.deepcopy(model), temperature

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature!r}"

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) / self.temperature


class _Dynamic(nn.Module):
    """PyTorch's dynamic quantisation: weights of 8 bits, activations rounded as they come; answers have no gradient."""

    differentiable = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its tensors are deprecated, it works
            self.model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model).cpu().eval(), {nn.Linear})

    @override
    def double(self) -> nn.Module:
        raise TypeError("a model of fixed precision has no other")

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.detach())


def temperature_of(scores: Tensor, y: Tensor) -> float:
    """The temperature with the least cross-entropy on held-out scores (m, K) (Guo et al. 2017, section 4.2).

    The cross-entropy is convex in 1 / T, so its slope is halved in on.

    Example:
        >>> y = torch.tensor([0, 0, 0, 1])  # three quarters are right, the scores claim more
        >>> sure = torch.tensor([[9.0, 0.0]]).expand(4, 2)
        >>> round(9 / temperature_of(sure, y), 3)  # log 3: odds of 3 to 1
        1.099
    """
    z = scores.detach().double()
    low, high = (1 / t for t in reversed(_TEMPERATURES))
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        expected = ((middle * z).softmax(1) * z).sum(1)
        slope = (expected - z.gather(1, y.unsqueeze(1)).squeeze(1)).mean()
        low, high = (middle, high) if float(slope) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5


def adjusted(name: str, model: nn.Module, x: Tensor, y: Tensor) -> tuple[nn.Module, str]:
    """The model after an adjustment, and in words what was done.

    Args:
        name: see `ADJUSTMENTS`.
        model: is left as it is.
        x: held-out samples: ranges of activations and the temperature are fitted on them.
        y: their labels.

    Raises:
        UsageError: there is no such adjustment.
        UnsupportedError: this model or machine cannot have it.
    """
    kind, _, size = name.partition(":")
    if kind == "prune":
        try:
            share = float(size)
        except ValueError:
            raise UsageError(f"'{name}' prunes no share; write prune:0.5") from None
        return pruned(model, share), f"the {share:.0%} smallest weights set to 0"
    if name == "int8-weights":
        return _rounded_weights(model), "weights rounded to 8 bits, a scale for each output channel"
    if name == "int8":
        return _rounded(model, x), "weights and layer inputs rounded to 8 bits (simulated)"
    if name == "dynamic-int8":
        if not any(isinstance(m, nn.Linear) for m in model.modules()) or next(model.parameters()).is_cuda:
            raise UnsupportedError("dynamic quantisation serves linear layers on a CPU")
        try:
            return _Dynamic(model), "PyTorch's dynamic quantisation of the linear layers"
        except (RuntimeError, AttributeError, NotImplementedError) as fault:
            raise UnsupportedError(f"this PyTorch cannot quantise it: {str(fault).splitlines()[0]}") from None
    if name in ("fp16", "bf16"):
        dtype = torch.float16 if name == "fp16" else torch.bfloat16
        made = _Cast(model, dtype)
        try:
            scores_of(made, x[:2])
        except RuntimeError as fault:
            raise UnsupportedError(f"this machine cannot compute it in {name}: {str(fault).splitlines()[0]}") from None
        return made, f"computed in {dtype}".replace("torch.", "")
    if name == "temperature":
        t = temperature_of(scores_of(model, x), y)
        return _Tempered(model, t), f"logits divided by {t:.3g}, fitted on {len(x)} held-out samples"
    raise UsageError(f"there is no adjustment '{name}'. {did_you_mean(name, ADJUSTMENTS)}")


# figures


def scores_of(model: nn.Module, x: Tensor) -> Tensor:
    """(n, K) scores in evaluation mode."""
    with torch.no_grad(), evaluating(model):
        return torch.cat([model(part.clone()) for part in x.split(_BATCH)])


def calibration_error(scores: Tensor, y: Tensor) -> float:
    """Expected calibration error: how far confidence and accuracy are apart, over 15 bins of equal width (Guo et al. 2017).

    Example:
        >>> scores = torch.tensor([[0.8, 0.2]]).log().expand(5, 2)
        >>> round(calibration_error(scores, torch.tensor([0, 0, 0, 0, 1])), 6)  # says 80 %, is right in 80 %
        0.0
    """
    sure, answer = scores.double().softmax(1).max(1)
    bins = (sure * _BINS).ceil().long().clamp(1, _BINS) - 1
    gap = torch.zeros(_BINS, dtype=torch.float64, device=scores.device)
    gap.index_add_(0, bins, sure - (answer == y).double())
    return float(gap.abs().sum() / max(1, len(y)))


def posthoc(
    model: nn.Module,
    problem: Problem,
    held_out: tuple[Tensor, Tensor],
    attacks: Attacks,
    *,
    adjustments: tuple[str, ...] = ADJUSTMENTS,
    eps: str = "",
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Posthoc:
    """Attacks the original and each adjusted model, and judges the examples of each on the other.

    Args:
        model: x (m, \\*features) -> logits (m, K).
        problem: the samples with their sets.
        held_out: other samples and their labels, for ranges and the temperature.
        attacks: by name; each runs on what the ones before it left standing.
        adjustments: see `ADJUSTMENTS`.
        eps: the size as people write it.
        seed: keys all draws.
        settings: how the engine works.
        progress: told (model, done, of how many).
    """
    made: dict[str, tuple[nn.Module, str]] = {"original": (model, "as it is")}
    refused: dict[str, str] = {}
    for name in adjustments:
        try:
            made[name] = adjusted(name, model, *held_out)
        except UnsupportedError as error:
            refused[name] = str(error)
    settings, rows = settings or Settings(), []
    original: tuple[Tensor, np.ndarray, Tensor] | None = None
    for k, (name, (one, words)) in enumerate(made.items()):
        scores = scores_of(one, problem.x)
        right = ~problem.criterion.holds(scores, problem.y, problem.target)
        x, passes = (problem.x, 0) if not getattr(one, "differentiable", True) else _search(
            one, problem, right, attacks, seed, settings
        )  # fmt: skip
        broken = broken_by(one, problem, x, right)
        if original is None:
            original = x, broken, right
        both = (right & original[2]).cpu().numpy()
        crossed = broken_by(one, problem, original[0], right)
        back = broken_by(model, problem, x, original[2])
        survives = right.cpu().numpy() & ~broken
        asked = getattr(one, "differentiable", True)
        low, high = clopper_pearson(int(survives.sum()), len(problem))
        rows.append(
            Row(
                name, words, float(right.double().mean()), calibration_error(scores, problem.y),
                float(survives.mean()) if asked else None, (float(low), float(high)) if asked else None,
                share(crossed, both) if name != "original" else None,
                share(back, both) if asked and name != "original" else None,
                float((survives & ~crossed).mean()), passes,
            )
        )  # fmt: skip
        if progress is not None:
            progress("models", k + 1, len(made))
    return Posthoc(
        str(problem.set.norm), eps or f"{float(problem.set.eps.max()):g}", len(problem), len(held_out[0]),
        tuple(attacks), seed, tuple(rows), refused,
    )  # fmt: skip


def share(broken: np.ndarray, of: np.ndarray) -> float | None:
    """Share of the samples in ``of`` that are broken; None if it is empty."""
    return float(broken[of].mean()) if of.any() else None


def _search(
    model: nn.Module, problem: Problem, right: Tensor, attacks: Attacks, seed: int, settings: Settings
) -> tuple[Tensor, int]:
    """Examples (n, \\*features) of the attacks one after the other; the clean input where none was found."""
    x, left, passes = problem.x.clone(), right.clone(), 0
    for attack in attacks.values():
        rows = left.nonzero().squeeze(-1)
        if not len(rows):
            break
        part = renumbered(problem, rows)
        out = run(attack, part, model, seed=seed, settings=settings)
        x[rows] = torch.where(part.flat(out.found), out.x, x[rows])
        left[rows] = ~out.found
        passes += out.ledger.total.passes
    return x, passes


def renumbered(problem: Problem, rows: Tensor) -> Problem:
    """The problem of some rows, as a chunk of its own."""
    part = problem.select(rows.cpu().numpy())
    return replace(part, rows=torch.arange(len(rows), device=rows.device))


def broken_by(model: nn.Module, problem: Problem, x: Tensor, right: Tensor) -> np.ndarray:
    """(n,) bool on the host: right as it is, and the referee of this model finds x adversarial."""
    claimed = right & problem.criterion.holds(scores_of(model, x), problem.y, problem.target)
    return upheld(Referee(model), problem, x, claimed).cpu().numpy()
