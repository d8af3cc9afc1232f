"""Certificates beyond the pixel ball: what is sampled from a set lies inside it, and simple cases are exact."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.certifiers.graph_certifier import margin_rows
from holdfast.certifiers.relaxation.enclosure import enclose
from holdfast.certifiers.sets.patch_anywhere import PatchAnywhere
from holdfast.certifiers.sets.semantify_nn import SemantifyNN
from holdfast.certifiers.sets.weight_perturbation import WeightPerturbation, quantisation, weighted
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.sets import AffineImage, LpBall
from holdfast.core.threat import Norm
from holdfast.graph import trace
from holdfast.graph.model import Graph
from holdfast.testing.toys import digits
from holdfast.transforms.colour import BrightnessContrast, HueSaturation, Lightness
from holdfast.transforms.geometry import RotationTranslation
from holdfast.transforms.transform import ImageTransform


def _point(x: Tensor) -> LpBall:
    return LpBall.uniform(Norm.LINF, 0.0, len(x), dtype=x.dtype)


def _trained() -> tuple[nn.Module, Graph, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = digits(800, torch.float32)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 10)
    )
    x = x.view(-1, 1, 8, 8)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(net(x[:500]), y[:500]).backward()
        optimiser.step()
    net.eval()
    right = (net(x).argmax(1) == y).nonzero().flatten()[:6]
    return net, trace(net, x[:1]), x[right], y[right]


# weights


def test_one_perturbed_layer_is_exact() -> None:
    """z = W a + b with |dW| <= eps: the least row is <c, z> - eps |c|_1 |a|_1, attained by signs."""
    torch.manual_seed(0)
    net, a = nn.Linear(6, 3), torch.rand(4, 6)
    graph = trace(net, a)
    c = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    for tool in (CROWN(), IBP()):
        found = tool.bounds(WeightPerturbation().perturbed(graph, 0.01), _point(a), a, c)
        exact = net.double()(a.double()) @ c.T - 0.01 * c.abs().sum() * a.double().sum(1, keepdim=True)
        net.float()
        assert torch.allclose(found, exact, atol=1e-9)
        assert (found <= exact + 1e-12).all()


@pytest.mark.parametrize("layers", [None, (0,), (1,), (0, 2)])
def test_sampled_networks_lie_inside(layers: tuple[int, ...] | None) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 8), nn.Tanh(), nn.Linear(8, 3)
    ).eval()
    x = torch.rand(5, 1, 8, 8)
    graph = trace(net, x)
    eps = 0.02
    ball = LpBall.uniform(Norm.LINF, 0.01, 5)
    rows = torch.eye(3, dtype=torch.float64)
    low = CROWN().bounds(WeightPerturbation(layers=layers).perturbed(graph, eps), ball, x, torch.cat([rows, -rows]))
    weights = [m.weight for m in net if hasattr(m, "weight")]
    kept = [w.detach().clone() for w in weights]
    for seed in range(300):
        stream = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for k, (w, old) in enumerate(zip(weights, kept, strict=True)):
                if layers is None or k in layers:
                    moved = torch.rand(w.shape, generator=stream) * 2 - 1
                    w.copy_(old + eps * 0.999 * (moved.sign() if seed % 2 else moved))
            near = (x + 0.01 * (torch.rand(x.shape, generator=stream) * 2 - 1)).clamp(0, 1)
            out = net(near).double()
        assert (torch.cat([out, -out], 1) >= low - 1e-5).all()


def test_a_certified_eps_of_the_last_layer_is_exact() -> None:
    _, graph, x, y = _trained()
    tool = WeightPerturbation(layers=(2,))
    found = tool.certify(graph, x, y)
    last = graph.nodes[weighted(graph)[2]]
    scores = graph.as_module()(x).detach()
    features = replace(graph, nodes=graph.nodes[: weighted(graph)[2]]).as_module()(x).detach()
    rival = scores.clone().scatter_(1, y[:, None], -torch.inf).max(1).values
    margin = scores.gather(1, y[:, None])[:, 0] - rival
    exact = (margin / (2 * features.abs().sum(1))).clamp(max=tool.largest)  # both rows move against each other
    assert last.op == "linear"
    for reach, truth in zip(found, exact, strict=True):
        assert reach is not None
        assert reach.high <= float(truth) * (1 + 1e-4)
        assert reach.high >= float(truth) - tool.largest / 2**12 - 1e-9  # every rival's row has the same |c|_1


def test_quantised_networks_keep_certified_classes() -> None:
    net, graph, x, y = _trained()
    proved = {bits: WeightPerturbation(bits=bits).certify(graph, x, y) for bits in (3, 8, 12)}
    whole = {bits: sum(bool(r and r.whole) for r in found) for bits, found in proved.items()}
    assert whole[3] <= whole[8] <= whole[12]
    assert whole[12] == len(x)
    for node in quantisation(graph, 8).nodes:
        if node.tolerance:
            weight, half = node.tensors["weight"].double(), node.tolerance["weight"]
            step = 2 * half
            assert ((torch.round(weight / step) * step - weight).abs() <= half).all()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                step = layer.weight.abs().amax(list(range(1, layer.weight.ndim)), keepdim=True) / 127
                layer.weight.copy_(torch.round(layer.weight / step) * step)
        same = net(x).argmax(1) == y
    assert all(bool(s) for s, r in zip(same, proved[8], strict=True) if r and r.whole)


def test_weights_refusals() -> None:
    _, graph, x, y = _trained()
    with pytest.raises(UsageError, match="no layer 7"):
        WeightPerturbation(layers=(7,)).certify(graph, x, y)
    with pytest.raises(UsageError, match="bits"):
        WeightPerturbation(bits=1).certify(graph, x, y)


# a patch


def test_a_patch_over_a_linear_model_is_exact() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    x = torch.rand(12, 1, 6, 6)
    y = net(x).argmax(1)
    graph = trace(net, x)
    found = PatchAnywhere(largest=3).certify(graph, x, y)
    rows = margin_rows(y, 3)
    weight, bias = net[1].weight.detach().double(), net[1].bias.detach().double()
    for i, reach in enumerate(found):
        side = 0
        for k in (1, 2, 3):
            w = (rows[i] @ weight).view(2, 6, 6)
            at = w * x[i, 0].double()
            worst = torch.minimum(w, torch.zeros_like(w)) - at  # what a free pixel may take away
            lost = F.avg_pool2d(worst.unsqueeze(1), k, 1)[:, 0] * k * k
            least = at.sum((1, 2)) + rows[i] @ bias + lost.amin((1, 2))
            if (least <= 0).any():
                break
            side = k
        assert reach is not None
        assert reach.high == side


def test_random_patches_do_not_break_what_is_proved() -> None:
    net, graph, x, y = _trained()
    found = PatchAnywhere(largest=2, bounds="alpha_crown").certify(graph, x, y)
    assert max(r.high for r in found if r) >= 1
    for i, reach in enumerate(found):
        side = int(reach.high) if reach else 0
        if side:
            tried = x[i].repeat(2000, 1, 1, 1)
            stream = torch.Generator().manual_seed(i)
            for row in tried:
                a, b = torch.randint(0, 9 - side, (2,), generator=stream).tolist()
                row[:, a : a + side, b : b + side] = torch.randint(0, 2, (side, side), generator=stream).float()
            assert (net(tried).argmax(1) == y[i]).all()


# semantic


def _changes() -> dict[str, tuple[ImageTransform, tuple[int, int, int]]]:
    return {
        "rotation": (RotationTranslation((1, 12, 12), 40.0, 0.0), (1, 12, 12)),
        "turn_and_shift": (RotationTranslation((2, 9, 7), 20.0, 0.0), (2, 9, 7)),
        "hue": (HueSaturation(180.0, 0.0), (3, 5, 5)),
        "hue_saturation": (HueSaturation(90.0, 0.5), (3, 5, 5)),
        "lightness": (Lightness(0.6), (3, 5, 5)),
        "contrast": (BrightnessContrast(0.0, 0.8), (1, 6, 6)),
        "brightness_contrast": (BrightnessContrast(0.4, 0.5), (3, 4, 4)),
    }


@pytest.mark.parametrize("name", _changes())
def test_a_dense_grid_of_parameters_lies_inside_the_enclosure(name: str) -> None:
    transform, shape = _changes()[name]
    k = len(transform.axes)
    for seed in range(6):
        stream = torch.Generator().manual_seed(seed)
        x = torch.rand(shape, generator=stream, dtype=torch.float64)
        if seed == 1:
            x = (x > 0.5).double()  # edges, black, white and pure colours
        if seed == 2:
            x = x.mean(0, keepdim=True).expand(shape).clone()  # grey
        ends = torch.rand(2, k, generator=stream, dtype=torch.float64) * 2 - 1
        low, high = ends.amin(0), ends.amax(0)
        high = torch.minimum(high, low + (0.1 if "ot" in name and seed else 2.0))
        found = enclose(transform, x, low, high)
        share = torch.rand(4000, k, generator=stream, dtype=torch.float64)
        values = transform(x.expand(4000, *shape), low + share * (high - low))
        assert (values >= found.lower).all()
        assert (values <= found.upper).all()
        t = 2 * share - 1
        near = found.centre + torch.einsum("mk,k...->m...", t, found.generators[0])
        assert ((values - near).abs() <= found.slack + 1e-12).all()


def test_an_affine_image_is_bounded_through_its_parameters() -> None:
    """<a, c + t g> has the least <a, c> - |<a, g>|; the box alone would give far less."""
    torch.manual_seed(0)
    net = nn.Linear(50, 3)
    x, g = torch.rand(1, 50).double(), 0.1 * torch.randn(1, 1, 50).double()
    graph = trace(net, x.float())
    image = AffineImage.of(x, g, torch.zeros_like(x))
    c = torch.eye(3).double()
    found = CROWN().bounds(graph, image, x, c)
    weight = net.weight.detach().double()
    exact = x @ weight.T + net.bias.detach().double() - (g[0] @ weight.T).abs()
    assert torch.allclose(found, exact, atol=1e-9)
    box = LpBall(norm=Norm.LINF, eps=image.eps, lower=image.lower, upper=image.upper)
    assert (CROWN().bounds(graph, box, x, c) < found - 0.1).all()


@pytest.mark.parametrize("change", ["rotation", "brightness_contrast"])
def test_ranges_hold_against_a_grid_and_grow_with_cuts(change: str) -> None:
    net, graph, x, y = _trained()
    few, more = (
        SemantifyNN(change=change, parts=2, cuts=0, searches=5),
        SemantifyNN(change=change, parts=2, cuts=4, searches=5),
    )
    coarse, fine = few.certify(graph, x[:4], y[:4]), more.certify(graph, x[:4], y[:4])
    assert all(a and b and a.high <= b.high + 1e-9 for a, b in zip(coarse, fine, strict=True))
    assert sum(b.high for b in fine if b) > sum(a.high for a in coarse if a)
    transform = more.transform(graph.input_shape)
    for i, reach in enumerate(fine):
        size = reach.high / transform.axes[0].extent if reach else 0.0
        theta = (torch.rand(3000, len(transform.axes)) * 2 - 1) * size
        assert (net(transform(x[i].expand(3000, *x[i].shape), theta)).argmax(1) == y[i]).all()


def test_semantic_refusals() -> None:
    _, graph, x, y = _trained()
    with pytest.raises(UnsupportedError, match="3 channels"):
        SemantifyNN(change="hue").certify(graph, x, y)
    with pytest.raises(UsageError, match="rotation"):
        SemantifyNN(change="rotatoin").certify(graph, x, y)
    with pytest.raises(UsageError, match="does not bound graphs"):
        SemantifyNN(bounds="clever").certify(graph, x, y)
