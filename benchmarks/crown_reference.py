"""(c) CROWN against a hand-written reference: are the bounds the same, and at what price?

The reference below is CROWN (Zhang et al. 2018) in float64 for a chain of convolutions, linear layers and ReLUs in an
linf ball, as one writes it from the paper: every neuron before a ReLU is bounded by a backward pass and by intervals,
nothing is left out and nothing pays for rounding. Holdfast bounds unstable neurons only, and its bounds are lower by its
rounding terms: "agrees" means to 1e-4 relative, the tolerance of the issue. CPU seconds, least of the interleaved rounds.

    python benchmarks/crown_reference.py [--samples 8] [--eps 0.01 0.03]
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from _common import digits, interleaved, mnist, parse, parser, report, table, trained, zoo
from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.graph_certifier import margin_rows
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import trace
from holdfast.models.zoo import digits_cnn


class Relaxed(NamedTuple):
    """A ReLU between ``lower z`` and ``upper z + intercept``, each (n, \\*shape)."""

    lower: Tensor
    upper: Tensor
    intercept: Tensor


def relaxed(low: Tensor, high: Tensor) -> Relaxed:
    """The chord above, slope 0 or 1 below, whichever encloses less."""
    unstable = (low < 0) & (high > 0)
    chord = torch.where(unstable, high / (high - low).where(unstable, torch.ones_like(low)), (low >= 0).double())
    return Relaxed(
        torch.where(unstable, (high > -low).double(), chord), chord, torch.where(unstable, -chord * low, 0.0)
    )


def backward(
    layers: list[nn.Module],
    shapes: list[torch.Size],
    relus: dict[int, Relaxed],
    k: int,
    a: Tensor,
    x: Tensor,
    r: Tensor,
) -> Tensor:
    """Lower bounds (n, rows) of ``<a, output of layer k>``, a (n, rows, \\*shape), over the box x +- r."""
    n, rows = a.shape[:2]
    total = a.new_zeros(n, rows)
    for j in range(k, -1, -1):
        layer, shape = layers[j], shapes[j]  # shape of what goes into the layer
        if isinstance(layer, nn.Linear):
            total = total + a @ layer.bias
            a = a @ layer.weight
        elif isinstance(layer, nn.Conv2d):
            total = total + a.sum((3, 4)) @ layer.bias
            flat = a.flatten(0, 1)
            pulled = conv2d_input((n * rows, *shape), layer.weight, flat, layer.stride, layer.padding)  # type: ignore[arg-type]
            a = pulled.view(n, rows, *shape)
        elif isinstance(layer, nn.ReLU):
            lower, upper, intercept = (t.unsqueeze(1) for t in relus[j])
            up, down = a.clamp_min(0), a.clamp_max(0)
            total = total + (down * intercept).flatten(2).sum(2)
            a = up * lower + down * upper
        else:
            a = a.reshape(n, rows, *shape)
    return total + (a * x.unsqueeze(1)).flatten(2).sum(2) - (a.abs() * r.unsqueeze(1)).flatten(2).sum(2)


def reference(layers: list[nn.Module], x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Lower bounds (n, K - 1) of the margins over the linf ball in [0, 1]; the better of CROWN and intervals."""
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    middle, radius = (low + high) / 2, (high - low) / 2
    shapes, relus = [], {}
    for k, layer in enumerate(layers):
        shapes.append(low.shape[1:])
        if isinstance(layer, nn.ReLU):
            size = low[0].numel()
            unit = torch.eye(size, dtype=x.dtype).view(1, size, *low.shape[1:]).expand(len(x), -1, *low.shape[1:])
            ends = [backward(layers, shapes, relus, k - 1, sign * unit, middle, radius) for sign in (1.0, -1.0)]
            low, high = torch.maximum(low, ends[0].view_as(low)), torch.minimum(high, -ends[1].view_as(low))
            relus[k] = relaxed(low, high)
        if k == len(layers) - 1:
            break
        if isinstance(layer, nn.Linear | nn.Conv2d):
            size = _absolute(layer)((high - low) / 2)
            centre = layer((low + high) / 2)
            low, high = centre - size, centre + size
        else:
            low, high = layer(low), layer(high)
    rows = margin_rows(y, layers[-1].out_features)  # type: ignore[arg-type]
    crown = backward(layers, shapes, relus, len(layers) - 1, rows, middle, radius)
    last = rows @ layers[-1].weight  # type: ignore[operator]
    centre, half = ((low + high) / 2).unsqueeze(2), ((high - low) / 2).unsqueeze(2)
    interval = (last @ centre - last.abs() @ half).squeeze(2) + rows @ layers[-1].bias  # type: ignore[operator]
    return torch.maximum(crown, interval)


def _absolute(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """The layer with the sizes of its weights and no bias."""

    other = copy.deepcopy(layer)
    other.weight.data = layer.weight.data.abs()
    other.bias = None
    return other


def chain(model: nn.Module) -> list[nn.Module]:
    """The layers in float64, without what does nothing; a copy."""

    found = [m for m in copy.deepcopy(model).double().modules() if not list(m.children())]
    layers = [m for m in found if not isinstance(m, nn.Identity)]
    known = (nn.Linear, nn.Conv2d, nn.ReLU, nn.Flatten)
    assert all(isinstance(m, known) for m in layers), "the reference takes convolutions, linear layers and ReLUs only"
    return layers


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--samples", type=int, default=8)
    made.add_argument(
        "--eps", type=float, nargs="+", help="default: 0.01 and 0.03 for the digits, 0.02 and 0.1 for MNIST"
    )
    made.add_argument("--rounds", type=int, default=3)
    arguments = parse(made)
    torch.manual_seed(0)
    models = [("digits_cnn", trained(digits_cnn()), *digits("test", arguments.samples), (0.01, 0.03))]
    real, skipped = zoo("mnist_wk17a_linf0.1"), "`../shared/data` is not here: `mnist_wk17a_linf0.1` was skipped."
    if real is not None:
        models.append(("mnist_wk17a_linf0.1", real, *mnist(arguments.samples), (0.02, 0.1)))
        skipped = ""
    rows: list[list[object]] = []
    for name, model, x, y, sizes in models:
        layers, graph = chain(model), trace(model, x[:1])
        for eps in arguments.eps or sizes:
            ball = LpBall.uniform(Norm.LINF, eps, len(x))
            found: dict[str, Tensor] = {}

            def ours(graph=graph, x=x, y=y, ball=ball, found=found) -> None:  # type: ignore[no-untyped-def]
                found["ours"] = CROWN().margins(graph, x, y, ball)

            def theirs(layers=layers, x=x, y=y, eps=eps, found=found) -> None:  # type: ignore[no-untyped-def]
                with torch.no_grad():
                    parts = [reference(layers, x[k : k + 1].double(), y[k : k + 1], eps) for k in range(len(x))]
                    found["reference"] = torch.cat(parts)

            least = interleaved({"reference": theirs, "holdfast": ours}, arguments.rounds)
            below = ((found["reference"] - found["ours"]) / found["reference"].abs().clamp_min(1e-9)).max().item()
            above = (found["ours"] - found["reference"]).max().item()
            certified = [int((found[k] > 0).all(1).sum()) for k in ("reference", "ours")]
            cost = [1e3 * least[k] / len(x) for k in ("reference", "holdfast")]
            verdict = "agrees" if below <= 1e-4 else "LOOSER"
            rows.append([
                len(x), name, f"{eps:g}", f"{certified[0]} / {certified[1]}", f"{below:.1e}", f"{above:.1e}", verdict,
                f"{cost[0]:.1f}", f"{cost[1]:.1f}", f"{cost[1] / cost[0]:.2f}",
            ])  # fmt: skip
    head = [
        "samples", "model", "eps", "certified: reference / ours", "looser at most, relative", "tighter at most", "bounds",
        "reference, ms a sample", "holdfast, ms a sample", "ratio",
    ]  # fmt: skip
    report(
        "crown_reference",
        "CROWN against a hand-written reference",
        [table(head, rows), *filter(None, [skipped])],
        arguments,
    )


if __name__ == "__main__":
    main()
