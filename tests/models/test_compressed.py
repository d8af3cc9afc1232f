"""Models after an adjustment: pruned, rounded, cast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from holdfast.models.compressed import adjusted, pruned
from holdfast.numerics.evaluation import evaluate
from holdfast.testing.toys import affine_digits, digits


def held(n: int) -> tuple[Tensor, Tensor]:
    x, y = digits(1797)
    return x[-n:], y[-n:]


def test_pruning_takes_the_smallest_weights_of_all_layers_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight.mul_(100)
    made = pruned(model, 0.5)
    assert (made[0].weight == 0).sum() == 44, "half of 88, none of them in the layer with the large weights"
    assert (made[2].weight != 0).all()
    kept = made[0].weight != 0
    assert torch.equal(made[0].weight[kept], model[0].weight[kept])
    assert model[0].weight[~kept].abs().max() <= model[0].weight[kept].abs().min()


def test_int8_weights_lie_on_255_levels():
    torch.manual_seed(0)
    model = nn.Linear(500, 4)
    made, _ = adjusted("int8-weights", model, torch.rand(4, 500), torch.zeros(4, dtype=torch.int64))
    scale = model.weight.abs().amax(1, keepdim=True) / 127
    levels = made.weight / scale
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert (made.weight - model.weight).abs().max() <= scale.max() / 2 * 1.001


def test_int8_rounds_inputs_and_lets_the_gradient_pass():
    model, (x, y) = affine_digits(), held(50)
    made, _ = adjusted("int8", nn.Sequential(nn.Flatten(), _linear(model)), x, y)
    close = evaluate(made, x) - model(x)
    assert 0 < close.abs().max() < 0.15
    probe = x[:2].clone().requires_grad_()
    grad = torch.autograd.grad(made(probe)[:, 0].sum(), probe)[0]
    expected = torch.autograd.grad(model(probe)[:, 0].sum(), probe)[0]
    assert torch.allclose(grad, expected, atol=0.02)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_lower_precision_keeps_the_callers_type(name):
    model, (x, y) = affine_digits(), held(20)
    made, _ = adjusted(name, model, x, y)
    scores = evaluate(made, x)
    assert scores.dtype == x.dtype
    assert 0 < (scores - model(x)).abs().max() < 0.3


def _linear(model: nn.Module) -> nn.Linear:
    made = nn.Linear(64, 10).double()
    made.weight.data, made.bias.data = model.weight.data.clone(), model.bias.data.clone()
    return made
