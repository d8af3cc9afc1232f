"""Incomplete methods held to what is a theorem, and to nothing more."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from small_nets import NETS, inside, make
from torch import nn
from torch.nn import functional as F

from holdfast.certifiers.bounds.alpha_crown import AlphaCROWN
from holdfast.certifiers.bounds.cnn_cert import CNNCert, PoolPlanes
from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.crown_ibp import CrownIBP
from holdfast.certifiers.bounds.dvijotham import Dvijotham, ascend
from holdfast.certifiers.bounds.fast_lin import FastLin
from holdfast.certifiers.bounds.fast_lip import FastLip, gradients
from holdfast.certifiers.bounds.forward import Forward
from holdfast.certifiers.bounds.wong_kolter import WongKolter
from holdfast.certifiers.graph_certifier import margin_rows
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.certifiers.propagation.specification import specification
from holdfast.certifiers.relaxation.dual import Dual, Multipliers
from holdfast.certifiers.relaxation.lines import PARALLEL
from holdfast.certifiers.relaxation.projected_bound import projected_bound
from holdfast.core.errors import UnsupportedError, UsageError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import Graph, Node, trace
from holdfast.graph.operations import compute
from holdfast.numerics.distance import dual_norm

METHODS = [
    CrownIBP(),
    FastLin(),
    FastLip(),
    WongKolter(),
    CNNCert(),
    CNNCert(relu="parallel"),
    Forward(),
    Dvijotham(iterations=3),
]
RADII = {Norm.LINF: 0.1, Norm.L2: 0.4, Norm.L1: 0.8, Norm.L0: 2.0}


def _case(name, seed, norm, n=3):
    net, shape = make(name, seed)
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    return net, trace(net, x[:1]), x, LpBall.uniform(norm, RADII[norm], n)


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("name", sorted(NETS))
def test_every_method_contains_ten_thousand_points(name, norm):
    net, graph, x, ball = _case(name, 1, norm)
    points = inside(ball, x, 10_000 // len(x), 0)
    with torch.no_grad():
        values = net.double()(points.flatten(0, 1)).view(len(points), len(x), -1)
    c = torch.cat([torch.eye(3), -torch.eye(3)])
    least = torch.einsum("kc,snc->snk", c.double(), values).amin(0)
    crown = CROWN().bounds(graph, ball, x, c).detach()
    for method in METHODS:
        bound = method.bounds(graph, ball, x, c).detach()
        assert (bound <= least).all(), (type(method).__name__, float((bound - least).max()))
        if isinstance(method, Dvijotham):
            assert (bound >= crown).all()


@pytest.mark.parametrize("norm", list(Norm))
def test_linear_models_lose_nothing(norm):
    """Every method is then the dual norm inside the box, which CROWN's own tests hold to its closed form."""
    net, x = nn.Linear(12, 4), torch.rand(5, 12)
    graph, ball = trace(net, x), LpBall.uniform(norm, RADII[norm], 5)
    exact = CROWN().bounds(graph, ball, x, torch.eye(4)).detach()
    for method in METHODS:
        torch.testing.assert_close(method.bounds(graph, ball, x, torch.eye(4)).detach(), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["dense", "conv", "residual"])
@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2, Norm.L1])
def test_fast_lin_is_the_dual_at_equal_slopes(name, norm):
    """One substitutes lines, the other minimises each neuron's term of the dual in closed form."""
    for seed in range(3):
        _, graph, x, ball = _case(name, seed, norm)
        c = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)).double()
        found = Propagation(graph.to(torch.float64), Region(ball, x), lines=PARALLEL)
        with torch.no_grad():
            found.run(refine=lambda _: True)
            one, dual = specification(found, c), Dual(found, c)
            torch.testing.assert_close(one, dual.bound(dual.network), rtol=1e-5, atol=1e-9)
        both = (method.bounds(graph, ball, x, c).detach() for method in (FastLin(), WongKolter()))
        torch.testing.assert_close(*both, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(NETS)))
def test_gradients_at_sampled_points_lie_in_their_intervals(name):
    for norm in (Norm.LINF, Norm.L2, Norm.L1):
        net, graph, x, ball = _case(name, 2, norm)
        c = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
        points = inside(ball, x, 200, 3).requires_grad_()
        found = Propagation(graph.to(torch.float64), Region(ball, x), lines=PARALLEL)
        with torch.no_grad():
            found.run(refine=lambda _: True)
            low, high = gradients(found, c)
        values = net.double()(points.flatten(0, 1)) @ c.T
        constant = FastLip().lipschitz(graph, ball, x, c)
        for r in range(2):
            (at,) = torch.autograd.grad(values[:, r].sum(), points, retain_graph=True)
            assert (at >= low[r] - 1e-12).all()
            assert (at <= high[r] + 1e-12).all()
            steepest = dual_norm(norm, at.flatten(0, 1)).view(200, len(x)).amax(0)
            assert (constant[:, r] >= steepest * (1 - 1e-12)).all()
            assert (constant[:, r] <= 40 * steepest).all()  # and it is about these networks


def test_fast_lip_of_one_layer_is_the_formula_of_the_paper():
    """The l2 norm over inputs of the largest ``|sum over active + any part of unstable of c_r W_rk|``."""
    torch.manual_seed(0)
    net, x, eps = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2)).double(), torch.rand(1, 4).double(), 0.2
    w, b, c = (t.detach().numpy() for t in (net[0].weight, net[0].bias, net[2].weight[0] - net[2].weight[1]))
    z, reach = w @ x[0].numpy() + b, eps * np.linalg.norm(w, axis=1)
    on, unstable = z > reach, np.abs(z) <= reach
    parts = c[:, None] * w
    fixed = parts[on].sum(0)
    largest = np.maximum(
        np.abs(fixed + parts[unstable].clip(min=0).sum(0)), np.abs(fixed + parts[unstable].clip(max=0).sum(0))
    )
    free = torch.tensor(torch.inf, dtype=torch.float64)
    ball = LpBall(norm=Norm.L2, eps=torch.full((1,), eps, dtype=torch.float64), lower=-free, upper=free)
    graph, rows = trace(net, x), torch.tensor([[1.0, -1.0]]).double()
    assert 3 <= unstable.sum() <= 17
    expected = np.linalg.norm(largest)
    assert FastLip().lipschitz(graph, ball, x, rows).item() == pytest.approx(expected, rel=1e-9)
    value = float((net(x)[0, 0] - net(x)[0, 1]).detach())
    assert FastLip().bounds(graph, ball, x, rows).item() == pytest.approx(value - eps * expected, abs=1e-9)


def test_fast_lip_refuses_what_it_has_no_slope_for():
    x = torch.rand(2, 3)
    graph = trace(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), x)
    ball = LpBall.uniform(Norm.LINF, 0.1, 2)
    with pytest.raises(UnsupportedError, match="'gelu'"):
        FastLip().bounds(graph, ball, x, torch.eye(2))
    with pytest.raises(UnsupportedError, match="l0 is no norm"):
        FastLip().lipschitz(graph, LpBall.uniform(Norm.L0, 1, 2), x, torch.eye(2))


def test_the_dual_is_a_bound_whatever_the_multipliers():
    for name in ("dense", "smooth", "conv"):
        net, graph, x, ball = _case(name, 4, Norm.LINF)
        points = inside(ball, x, 500, 1)
        with torch.no_grad():
            values = net.double()(points.flatten(0, 1)).view(500, len(x), -1)
            found = Propagation(graph.to(torch.float64), Region(ball, x))
            found.run(refine=lambda _: True)
            dual = Dual(found, torch.eye(3))
            generator = torch.Generator().manual_seed(0)

            def wild(k, a, dual=dual, generator=generator):
                lines = dual.network(k, a)
                if lines is None:
                    return None
                noise = (torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in lines)
                return Multipliers(*(t + e * t.abs().mean() for t, e in zip(lines, noise, strict=True)))

            for _ in range(20):
                assert (dual.bound(wild) <= values.amin(0)).all()


@pytest.mark.parametrize("name", ["dense", "conv"])
@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_random_projections_come_to_the_exact_dual(name, norm):
    """As k grows, the estimate of Wong and Kolter's bound with boxes from its own passes; errors fall as 1/sqrt(k)."""
    from test_certify_reference import _Plain

    net, graph, x, _ = _case(name, 1, norm, n=2)
    graph, free = graph.to(torch.float64), torch.tensor(torch.inf)
    edges = (-free, free) if norm is Norm.L2 else (torch.tensor(0.0), torch.tensor(1.0))
    eps = torch.full((2,), RADII[norm] * 0.8, dtype=torch.float64)
    ball = LpBall(norm=norm, eps=eps, lower=edges[0], upper=edges[1])
    c, d = torch.tensor([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]]), torch.tensor([0.5, -0.5])
    with torch.no_grad():
        found = _Plain(graph, Region(ball, x), lines=PARALLEL, sound=False)
        found.run(refine=lambda _: True)
        exact = specification(found, c, d)
        scale = (net.double()(x.double()) @ c.T.double() + d - exact).mean()
        error = []
        for k in (50, 4000):
            draws = [torch.Generator().manual_seed(s) for s in range(2)]
            estimates = [projected_bound(graph, ball, x, c, d, generator=g, projections=k).margins for g in draws]
            error.append(float(torch.stack([(e - exact).abs().mean() for e in estimates]).mean() / scale))
    assert error[1] <= 0.05
    assert 2 * error[1] <= error[0] <= 0.6  # nine times as much, but for chance: it is an estimate


def test_projections_cost_the_same_whatever_the_width(monkeypatch):
    """What goes through each layer is one centre and k combinations for each sample; backward passes grow with units."""
    seen = []

    def counted(op, inputs, tensors, attributes):
        seen.append(len(inputs[0]))
        return compute(op, inputs, tensors, attributes)

    monkeypatch.setattr("holdfast.certifiers.relaxation.projected_bound.compute", counted)
    x = torch.rand(2, 4)
    for width in (8, 500):
        net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
        found = projected_bound(
            trace(net, x), LpBall.uniform(Norm.LINF, 0.1, 2), x, torch.eye(3), generator=torch.Generator(),
            projections=10,
        )  # fmt: skip
        assert found.margins.requires_grad  # it is there to be trained on
        assert seen == [2, 20] * 3
        seen.clear()


def test_projections_refuse_what_they_do_not_estimate():
    x = torch.rand(2, 3)
    smooth = trace(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), x)
    draws = torch.Generator()
    with pytest.raises(UnsupportedError, match="'tanh'"):
        projected_bound(smooth, LpBall.uniform(Norm.LINF, 0.1, 2), x, torch.eye(2), generator=draws)
    with pytest.raises(UnsupportedError, match="linf and l2, not l1"):
        projected_bound(smooth, LpBall.uniform(Norm.L1, 0.1, 2), x, torch.eye(2), generator=draws)
    with pytest.raises(UsageError, match="at least 1"):
        projected_bound(smooth, LpBall.uniform(Norm.L2, 0.1, 2), x, torch.eye(2), generator=draws, projections=0)


def _triangle(layers, boxes, low, high, c):
    """The least of ``c . f`` over the triangle relaxation with given boxes before the ReLUs, by HiGHS."""
    equal, equals, less, lesses = [], [], [], []
    bounds, width, cur = list(zip(low, high, strict=True)), len(low), (0, len(low))
    total = width + sum(2 * len(w) for w, _ in layers[:-1])
    for (w, b), (lower, upper) in zip(layers[:-1], boxes, strict=False):
        h, z, a = len(w), width, width + len(w)
        width += 2 * h
        bounds += [*zip(lower, upper, strict=True), *((0, max(u, 0)) for u in upper)]
        for i, (lo, up) in enumerate(zip(lower, upper, strict=True)):
            row = np.zeros(total)
            row[cur[0] : cur[0] + cur[1]], row[z + i] = w[i], -1
            equal.append(row), equals.append(-b[i])
            on = np.zeros(total)
            on[z + i], on[a + i] = float(up > 0), -1
            if lo >= 0 or up <= 0:
                equal.append(on), equals.append(0)
                continue
            less.append(on), lesses.append(0)
            chord = np.zeros(total)
            chord[a + i], chord[z + i] = 1, -up / (up - lo)
            less.append(chord), lesses.append(-lo * up / (up - lo))
        cur = (a, h)
    w, b = layers[-1]
    cost = np.zeros(total)
    cost[cur[0] : cur[0] + cur[1]] = c @ w
    answer = linprog(cost, less or None, lesses or None, equal, equals, bounds)
    assert answer.success
    return answer.fun + c @ b


def _random_net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).double()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.7)
        return net, torch.rand(1, 5, dtype=torch.float64)


def test_between_the_start_and_the_triangle_program():
    """At fixed boxes: Wong-Kolter <= dual optimisation <= triangle program, alpha lines likewise; both come near it."""
    c = margin_rows(torch.tensor([0]), 3)
    start, left, alpha_left = [], [], []
    for seed in range(5):
        net, x = _random_net(seed)
        ball, graph = LpBall.uniform(Norm.LINF, 0.15, 1, dtype=torch.float64), trace(net, x)
        with torch.no_grad():
            found = Propagation(graph, Region(ball, x))
            found.run(refine=lambda _: True)
            boxes = [
                tuple(t[0].numpy() for t in box)
                for node, box in zip(graph.nodes, found.boxes, strict=True)
                if node.op == "linear"
            ]
            layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in net if isinstance(m, nn.Linear)]
            low, high = (t[0].numpy() for t in found.boxes[0])
            program = np.array([_triangle(layers, boxes, low, high, row.numpy()) for row in c[0]])
            crown, dual = specification(found, c), Dual(found, c)
            lower = ascend(dual, 100, 0.02)
            parallel = {
                k: found.operations[k].prepare(graph.nodes[k], [found.boxes[k - 1]]).upper_slope for k in (2, 4)
            }
            first = dual.bound(lambda k, a, dual=dual, parallel=parallel: dual.network(k, a, parallel))
            generator = torch.Generator().manual_seed(seed)
            for _ in range(10):  # any line with a slope in [0, 1]
                slopes = {k: torch.rand(2, *s.shape, generator=generator).double() for k, s in parallel.items()}
                assert (specification(found, c, alphas=slopes)[0].numpy() <= program + 1e-7).all()
        assert (first[0].numpy() <= program + 1e-7).all()
        assert (lower >= dual.bound(dual.network)).all()
        assert (lower[0].numpy() <= program + 1e-7).all()
        ours = AlphaCROWN(iterations=40, deep_iterations=0, settle=False).bounds(graph, ball, x, c)
        assert (ours >= crown).all()
        assert (ours[0].numpy() <= program + 1e-7).all()
        start += list(program - crown[0].numpy())
        left += list(program - lower[0].numpy())
        alpha_left += list(program - ours[0].numpy())
    assert np.mean(left) <= 0.1 * np.mean(start)
    assert np.mean(alpha_left) <= 0.05 * np.mean(start)


class _Blocks(nn.Module):
    """Convolution, batch norm, a shortcut, an average pool: what CNN-Cert is for."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(12, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        return self.head(F.avg_pool2d(F.relu(self.second(x)) + x, 2).flatten(1))


def _matrix(f, shape):
    """The matrix and the offset of an affine function on flattened values."""
    eye = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, *shape)
    offset = f(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    return (f(eye).flatten(1) - offset).T.contiguous(), offset


def test_cnn_cert_is_crown_on_the_unrolled_network():
    torch.manual_seed(0)
    net = _Blocks().double()
    net(torch.rand(16, 1, 4, 4, dtype=torch.float64))  # statistics of its own
    net.eval()
    shape, inner = (1, 4, 4), (3, 4, 4)
    with torch.no_grad():
        affine = [
            _matrix(lambda z: net.norm(net.first(z)), shape),
            _matrix(net.second, inner),
            _matrix(lambda z: net.head(F.avg_pool2d(z, 2).flatten(1)), inner),
        ]

    def linear(i, read):
        weight, bias = affine[i]
        return Node(op="linear", inputs=(read,), shape=(len(bias),), tensors={"weight": weight, "bias": bias})

    wide = (48,)
    nodes = (
        Node(op="input", inputs=(), shape=(16,)), linear(0, 0), Node(op="relu", inputs=(1,), shape=wide), linear(1, 2),
        Node(op="relu", inputs=(3,), shape=wide), Node(op="add", inputs=(4, 2), shape=wide), linear(2, 5),
    )  # fmt: skip
    x = torch.rand(3, *shape, dtype=torch.float64)
    unrolled = Graph(nodes, torch.float64)
    y = net(x).argmax(1)
    for norm in (Norm.LINF, Norm.L2, Norm.L1):
        ball = LpBall.uniform(norm, RADII[norm], 3, dtype=torch.float64)
        ours = CNNCert().margins(trace(net, x), x, y, ball)
        flat = CROWN().margins(unrolled, x.flatten(1), y, ball)
        torch.testing.assert_close(ours, flat, rtol=1e-6, atol=1e-9)


def test_pool_planes_enclose_the_largest_entry():
    generator = torch.Generator().manual_seed(0)
    attributes = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "ceil": False}
    x = torch.randn(40, 2, 7, 6, generator=generator, dtype=torch.float64)
    spread = torch.rand(x.shape, generator=generator, dtype=torch.float64).mul(4).sub(1).clamp(min=0)  # some are points
    box = Box(x, x + spread)
    out = F.max_pool2d(x, kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    node, op = Node(op="max_pool", inputs=(0,), shape=tuple(out.shape[1:]), attributes=attributes), PoolPlanes()
    for sign in (1.0, -1.0):
        a = sign * torch.eye(out[0].numel(), dtype=torch.float64).view(-1, 1, *out.shape[1:]).expand(
            -1, 40, *out.shape[1:]
        )
        (pulled,), constant = op.pull(node, a, op.prepare(node, [box]))
        for t in (0.0, 1.0, *torch.rand(20, *x.shape, generator=generator, dtype=torch.float64)):
            z = x + t * spread
            value = F.max_pool2d(z, (3, 2), (2, 1), (1, 0), (1, 2)).flatten(1).T
            least = torch.einsum("snd,nd->sn", pulled.flatten(2), z.flatten(1)) + constant
            assert (least <= sign * value + 1e-12).all()


def test_forward_mode_says_what_it_would_take():
    _, graph, x, ball = _case("conv", 0, Norm.LINF)
    with pytest.raises(UnsupportedError, match="memory"):
        Forward(memory=1000).bounds(graph, ball, x, torch.eye(3))
    whole, one = (
        Forward().bounds(graph, ball, x, torch.eye(3)),
        Forward(memory=1_000_000).bounds(graph, ball, x, torch.eye(3)),
    )
    torch.testing.assert_close(whole, one, rtol=0, atol=1e-10)


def test_unknown_lines_are_refused():
    with pytest.raises(UsageError, match="adaptive or parallel"):
        CNNCert(relu="steep")


@pytest.mark.parametrize("norm", list(Norm))
def test_alpha_crown_does_not_depend_on_the_batch(norm):
    """For ReLU networks; where pools meet, the boxes of two ways are equal up to rounding and an ascent may go either."""
    _, graph, x, ball = _case("dense", 3, norm, n=5)
    c = torch.cat([torch.eye(3), -torch.eye(3)])
    method = AlphaCROWN(iterations=8, deep_iterations=4)
    whole = method.bounds(graph, ball, x, c)
    for i in range(len(x)):
        alone = method.bounds(graph, ball.select(torch.tensor([i])), x[i : i + 1], c)
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=0, atol=1e-5)


def test_what_is_settled_is_left_alone():
    """Rows that CROWN proves keep its bound, the others only gain."""
    net, graph, x, ball = _case("conv", 2, Norm.LINF, n=8)
    y = net(x).argmax(1)
    ball = ball.with_eps(torch.linspace(0.01, 0.3, 8, dtype=torch.float64))
    crown, alpha = (method.margins(graph, x, y, ball) for method in (CROWN(), AlphaCROWN()))
    proved = crown > 0
    assert 0 < int(proved.sum()) < proved.numel()
    assert torch.equal(alpha[proved], crown[proved])
    assert (alpha >= crown).all()


@pytest.mark.shared
def test_real_networks_as_auto_lirpa_bounds_them(shared_data):
    from test_certify_reference import _first_images, _network

    folder = shared_data / "verification"
    reference = json.loads((folder / "lirpa_reference_b8.json").read_text())
    for network, eps in (("kw_mnist", 0.1), ("mnist_a_adv", 0.3)):
        x, y = _first_images(folder, 8)
        graph, ball = trace(_network(folder, network), x[:1]), LpBall.uniform(Norm.LINF, eps, 8)
        margins = CrownIBP().margins(graph, x, y, ball).amin(1)
        theirs = torch.tensor(reference[f"{network}|{eps}|IBP+backward"]["per_image_min"]).double()
        assert (margins >= theirs - 1e-4 * theirs.abs()).all()
        x, y, ball = x[:1], y[:1], ball.select(torch.tensor([0]))
        theirs = torch.tensor(reference[f"{network}|{eps}|forward"]["per_image_min"][:1]).double()
        assert (Forward().margins(graph, x, y, ball).amin(1) >= theirs - 1e-4 * theirs.abs()).all()
