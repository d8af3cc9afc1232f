"""Models after an adjustment that deployments make: pruned, quantised, cast, calibrated.

Weights and activations of ``int8`` are simulated: rounded to 8 bits and computed in float, with the rounding passed over
by the gradient (straight through), so that a white-box attack is not blinded by it. ``dynamic-int8`` is PyTorch's own and
has no gradient.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from holdfast.core.errors import UnsupportedError, UsageError, did_you_mean
from holdfast.models.wrap import Bpda
from holdfast.numerics.calibration import temperature_of
from holdfast.numerics.evaluation import evaluate

__all__ = ["ADJUSTMENTS", "adjusted", "pruned"]

_LEVELS = 127

ADJUSTMENTS = ("prune:0.5", "prune:0.8", "int8-weights", "int8", "dynamic-int8", "fp16", "bf16", "temperature")
"""What is done by default; ``prune:SHARE`` takes any share in (0, 1)."""


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
    kind, _, fraction = name.partition(":")
    if kind == "prune":
        return _pruned(name, fraction, model)
    makers: dict[str, Callable[[nn.Module, Tensor, Tensor], tuple[nn.Module, str]]] = {
        "int8-weights": _int8_weights,
        "int8": _int8,
        "dynamic-int8": _dynamic_int8,
        "fp16": _fp16,
        "bf16": _bf16,
        "temperature": _tempered,
    }
    if name not in makers:
        raise UsageError(f"there is no adjustment '{name}'. {did_you_mean(name, ADJUSTMENTS)}")
    return makers[name](model, x, y)


def pruned(model: nn.Module, fraction: float) -> nn.Module:
    """A copy whose smallest weights, over all linear and convolutional layers together, are 0 (Han et al. 2015).

    Args:
        model: is left as it is.
        fraction: of the weights that go, in (0, 1).

    Raises:
        UsageError: the fraction is none.
        UnsupportedError: there is no such layer.

    Example:
        >>> (pruned(nn.Linear(10, 10), 0.7).weight == 0).float().mean().item()
        0.699999988079071
    """
    if not 0 < fraction < 1:
        raise UsageError(f"a share to prune lies between 0 and 1, got {fraction:g}")
    made = copy.deepcopy(model)
    weights = [m.weight for m in _weighted(made).values()]
    if not weights:
        raise UnsupportedError("the model has no linear or convolutional layer to prune")
    sizes = torch.cat([w.detach().abs().flatten() for w in weights])
    k = round(fraction * len(sizes))
    gone = torch.zeros_like(sizes, dtype=torch.bool)
    gone[sizes.argsort(stable=True)[:k]] = True
    with torch.no_grad():
        for w, mask in zip(weights, torch.split(gone, [w.numel() for w in weights]), strict=True):
            w[mask.view_as(w)] = 0
    return made


def _pruned(name: str, fraction: str, model: nn.Module) -> tuple[nn.Module, str]:
    try:
        number = float(fraction)
    except ValueError:
        raise UsageError(f"'{name}' prunes no share; write prune:0.5") from None
    return pruned(model, number), f"the {number:.0%} smallest weights set to 0"


def _int8_weights(model: nn.Module, _x: Tensor, _y: Tensor) -> tuple[nn.Module, str]:
    return _rounded_weights(model), "weights rounded to 8 bits, a scale for each output channel"


def _int8(model: nn.Module, x: Tensor, _y: Tensor) -> tuple[nn.Module, str]:
    return _rounded(model, x), "weights and layer inputs rounded to 8 bits (simulated)"


def _dynamic_int8(model: nn.Module, _x: Tensor, _y: Tensor) -> tuple[nn.Module, str]:
    if not any(isinstance(m, nn.Linear) for m in model.modules()) or next(model.parameters()).is_cuda:
        raise UnsupportedError("dynamic quantisation serves linear layers on a CPU")
    try:
        return _Dynamic(model), "PyTorch's dynamic quantisation of the linear layers"
    except (RuntimeError, AttributeError, NotImplementedError) as fault:
        raise UnsupportedError(f"this PyTorch cannot quantise it: {str(fault).splitlines()[0]}") from None


def _fp16(model: nn.Module, x: Tensor, _y: Tensor) -> tuple[nn.Module, str]:
    return _cast("fp16", torch.float16, model, x)


def _bf16(model: nn.Module, x: Tensor, _y: Tensor) -> tuple[nn.Module, str]:
    return _cast("bf16", torch.bfloat16, model, x)


def _cast(name: str, dtype: torch.dtype, model: nn.Module, x: Tensor) -> tuple[nn.Module, str]:
    made = _Cast(model, dtype)
    try:
        evaluate(made, x[:2])
    except RuntimeError as fault:
        raise UnsupportedError(f"this machine cannot compute it in {name}: {str(fault).splitlines()[0]}") from None
    return made, f"computed in {dtype}".replace("torch.", "")


def _tempered(model: nn.Module, x: Tensor, y: Tensor) -> tuple[nn.Module, str]:
    t = temperature_of(evaluate(model, x), y)
    return _Tempered(model, t), f"logits divided by {t:.3g}, fitted on {len(x)} held-out samples"


def _weighted(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    named = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    return {name: m for name, m in named if isinstance(m, nn.Linear | nn.Conv2d)}


def _rounded_weights(model: nn.Module) -> nn.Module:
    """A copy with weights of 8 bits, symmetric, one scale for each output channel."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for m in _weighted(made).values():
            scale = m.weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(m.weight.dtype).tiny) / _LEVELS
            scale = scale.view(-1, *[1] * (m.weight.ndim - 1))
            m.weight.copy_((m.weight / scale).round() * scale)
    return made


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
    evaluate(made, x)
    for hook in hooks:
        hook.remove()
    if "" in layers:
        return _Rounded(made, *ranges[""])
    for name in layers:
        if name in ranges:
            parent, _, last = name.rpartition(".")
            setattr(made.get_submodule(parent), last, _Rounded(layers[name], *ranges[name]))
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
            quantise = cast(Any, torch.ao.quantization).quantize_dynamic
            self.model: nn.Module = quantise(copy.deepcopy(model).cpu().eval(), {nn.Linear})

    @override
    def double(self) -> nn.Module:
        raise TypeError("a model of fixed precision has no other")

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.detach())
