"""Bounds hold: against sampled points, exact optima, closed forms and attacks."""

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from small_nets import NETS, inside, make
from torch import nn

from holdfast.certifiers.bounds.alpha_crown import AlphaCROWN
from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.certifiers.graph_certifier import margin_rows
from holdfast.certifiers.propagation.operations.activations import LeakyRelu, Sigmoid, Tanh
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region
from holdfast.certifiers.propagation.specification import specification
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import Graph, Node, trace

METHODS = [IBP(), CROWN(), AlphaCROWN(iterations=4, deep_iterations=2)]
RADII = {Norm.LINF: 0.1, Norm.L2: 0.4, Norm.L1: 0.8, Norm.L0: 2.0}


def _case(name, seed, norm, n=3):
    net, shape = make(name, seed)
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    return net, trace(net, x[:1]), x, LpBall.uniform(norm, RADII[norm], n)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("name", sorted(NETS))
def test_every_method_contains_every_sampled_point(name, norm, seed):
    net, graph, x, ball = _case(name, seed, norm)
    points = inside(ball, x, 400, seed)
    with torch.no_grad():
        values = net.double()(points.flatten(0, 1)).view(400, len(x), -1)
    c = torch.cat([torch.eye(3), -torch.eye(3), torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))])
    least = torch.einsum("kc,snc->snk", c.double(), values).amin(0)
    crown = None
    for method in METHODS:
        bound = method.bounds(graph, ball, x, c).detach()
        assert bound.dtype == torch.float64
        assert (bound <= least).all(), (type(method).__name__, float((bound - least).max()))
        if isinstance(method, CROWN):
            crown = bound
        if isinstance(method, AlphaCROWN):
            assert (bound >= crown).all()


@pytest.mark.parametrize("name", sorted(NETS))
def test_every_box_contains_every_sampled_value(name):
    """Not only the output: a wrong intermediate box can hide behind a loose end."""
    _, graph, x, ball = _case(name, 11, Norm.LINF)
    graph = graph.to(torch.float64)
    found = Propagation(graph, Region(ball, x))
    with torch.no_grad():
        found.run(refine=lambda _: True)
        points = inside(ball, x, 300, 0).flatten(0, 1)
        for i in range(len(graph.nodes)):
            value = (
                Graph(graph.nodes[: i + 1], torch.float64).as_module()(points).view(300, len(x), *graph.nodes[i].shape)
            )
            assert (value >= found.boxes[i].lower - 1e-12).all()
            assert (value <= found.boxes[i].upper + 1e-12).all()


@pytest.mark.parametrize("name", sorted(NETS))
def test_a_point_is_bounded_by_its_value(name):
    net, graph, x, _ = _case(name, 5, Norm.LINF)
    value = net.double()(x.double()).detach()
    for norm in Norm:
        for method in METHODS:
            bound = method.bounds(graph, LpBall.uniform(norm, 0.0, len(x)), x, torch.eye(3)).detach()
            assert (bound <= value).all()
            torch.testing.assert_close(bound, value, rtol=0, atol=1e-9)


def _least_linear(w, x, ball, norm):
    """min w . x' over ball and box by linear programming or, for l2, by its known form on many multipliers."""
    down, up = (x - ball.lower).numpy(), (ball.upper - x).numpy()
    extent = np.where(w > 0, down, up)
    if norm is Norm.LINF:
        return w @ x.numpy() - np.abs(w) @ np.minimum(extent, RADII[norm])
    if norm is Norm.L1:
        order = np.argsort(-np.abs(w))
        spent, gain = 0.0, 0.0
        for i in order:
            move = min(extent[i], RADII[norm] - spent)
            spent, gain = spent + move, gain + move * abs(w[i])
        return w @ x.numpy() - gain
    if norm is Norm.L0:
        return w @ x.numpy() - np.sort(np.abs(w) * extent)[::-1][:2].sum()
    low, high = 1e-9, 1e9
    for _ in range(200):
        t = np.sqrt(low * high)
        d = np.minimum(np.abs(w) / t, extent)
        low, high = (t, high) if np.linalg.norm(d) > RADII[norm] else (low, t)
    return w @ x.numpy() - np.abs(w) @ np.minimum(np.abs(w) / high, extent)


@pytest.mark.parametrize("norm", list(Norm))
def test_linear_models_are_bounded_exactly(norm):
    """The dual norm inside the box; the features sit near its faces, so both matter."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Linear(20, 4)
    x = torch.rand(6, 20, generator=generator, dtype=torch.float64)
    ball = LpBall.uniform(norm, RADII[norm], 6, dtype=torch.float64)
    w, b = net.weight.detach().double().numpy(), net.bias.detach().double().numpy()
    exact = np.array([[_least_linear(w[k], x[i], ball, norm) + b[k] for k in range(4)] for i in range(6)])
    graph = trace(net, torch.zeros(1, 20))
    for method in METHODS:
        bound = method.bounds(graph, ball, x, torch.eye(4)).detach().numpy()
        assert (bound <= exact + 1e-15).all()
        np.testing.assert_allclose(bound, exact, atol=1e-4 if norm is Norm.L2 else 1e-9)


def _milp_minimum(net, low, high, c):
    """The exact least of ``c . net(x)`` over a box, for a network with one hidden layer: big-M with HiGHS."""
    (w1, b1), (w2, b2) = (
        (m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in (net[0], net[2])
    )
    h, n = w1.shape
    centre, radius = (low + high) / 2, (high - low) / 2
    least_z, most_z = w1 @ centre + b1 - np.abs(w1) @ radius, w1 @ centre + b1 + np.abs(w1) @ radius
    # variables: x (n), a = relu(z) (h), on (h)
    rows, least, most = [], [], []
    for i in range(h):
        row = np.zeros(n + 2 * h)
        row[:n], row[n + i] = -w1[i], 1
        rows.append(row.copy()), least.append(b1[i]), most.append(np.inf)  # a >= z
        row[n + h + i] = -min(least_z[i], 0)
        (
            rows.append(row.copy()),
            least.append(-np.inf),
            most.append(b1[i] - min(least_z[i], 0)),
        )  # a <= z - least_z (1 - on)
        row = np.zeros(n + 2 * h)
        row[n + i], row[n + h + i] = 1, -max(most_z[i], 0)
        rows.append(row), least.append(-np.inf), most.append(0)  # a <= most_z on
    cost = np.concatenate([np.zeros(n), c @ w2, np.zeros(h)])
    bounds = (np.concatenate([low, np.zeros(2 * h)]), np.concatenate([high, np.maximum(most_z, 0), np.ones(h)]))
    answer = milp(
        cost,
        constraints=LinearConstraint(np.array(rows), least, most),
        bounds=Bounds(*bounds),
        integrality=np.concatenate([np.zeros(n + h), np.ones(h)]),
    )
    assert answer.success
    return answer.fun + c @ b2


def test_never_above_the_exact_optimum():
    gaps = {type(m).__name__: [] for m in METHODS}
    for seed in range(12):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        x = torch.rand(1, 4, generator=torch.Generator().manual_seed(seed))
        ball = LpBall.uniform(Norm.LINF, 0.3, 1)
        low, high = ((x + s * 0.3).clamp(0, 1)[0].double().numpy() for s in (-1, 1))
        c = margin_rows(torch.tensor([0]), 3)
        exact = [_milp_minimum(net, low, high, row.numpy()) for row in c[0]]
        for method in METHODS:
            bound = method.bounds(trace(net, x), ball, x, c).detach()[0]
            for b, e in zip(bound.tolist(), exact, strict=True):
                assert b <= e + 1e-7
                gaps[type(method).__name__].append(e - b)
    mean = {k: np.mean(v) for k, v in gaps.items()}
    assert mean["AlphaCROWN"] <= mean["CROWN"] <= mean["IBP"]
    assert mean["AlphaCROWN"] < 0.05


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_no_descent_breaks_what_is_certified(norm):
    """A short projected descent on the margin, from many starts, at the radius that was proved."""
    net, graph, x, ball = _case("conv", 2, norm, n=8)
    y = net(x).argmax(1)
    radius = CROWN().radius(graph, x, y, ball, radius_max=2.0, tolerance=0.005)
    assert (radius > 0).all()
    net = net.double()
    c = margin_rows(y, 3)
    for seed in range(5):
        at = ball.with_eps(radius)
        z = inside(at, x, 1, seed)[0]
        for _ in range(40):
            z.requires_grad_()
            gradient = torch.autograd.grad(torch.einsum("nkc,nc->nk", c, net(z)).amin(1).sum(), z)[0]
            length = radius.view(-1, 1, 1, 1) / 10
            if norm is Norm.LINF:
                delta = z.detach() - length * gradient.sign() - x
                delta = torch.maximum(torch.minimum(delta, 10 * length), -10 * length)
            else:
                unit = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                delta = z.detach() - length * unit - x
                delta = delta * (10 * length / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)
            z = (x + delta).clamp(0, 1)
        assert (net(z).argmax(1) == y).all()


@pytest.mark.parametrize(("operation", "f"), [(Sigmoid(), torch.sigmoid), (Tanh(), torch.tanh), (LeakyRelu(), None)])
def test_lines_enclose_activations_whatever_the_slope(operation, f):
    generator = torch.Generator().manual_seed(0)
    ends = (
        (torch.randn(2, 1, 4000, generator=generator, dtype=torch.float64) * 10 ** (4 * torch.rand(4000) - 2))
        .sort(0)
        .values
    )
    ends[:, :, :50] = ends[:1, :, :50]  # points
    box = Box(ends[0], ends[1])
    node = Node(
        op="leaky_relu" if f is None else "", inputs=(0,), shape=(4000,), attributes={"slope": 0.1} if f is None else {}
    )
    f = f or (lambda z: torch.where(z > 0, z, 0.1 * z))
    z = box.lower + torch.linspace(0, 1, 300, dtype=torch.float64).view(-1, 1, 1) * (box.upper - box.lower)
    z = torch.minimum(z, box.upper)
    for slope in (None, torch.rand(1, 4000, generator=generator, dtype=torch.float64), torch.full((1, 4000), 3.0)):
        lines = operation.prepare(node, [box], slope)
        lower = lines.lower_slope * z + (0 if lines.lower_intercept is None else lines.lower_intercept)
        upper = lines.upper_slope * z + lines.upper_intercept
        slack = 1e-15 * 20 * (1 + z.abs())  # what `size` pays for
        assert (lower <= f(z) + slack).all()
        assert (upper >= f(z) - slack).all()
    area = (lines.upper_slope * z + lines.upper_intercept - f(z)).mean()
    assert area.isfinite()


def test_tighter_than_either_alone_with_a_mask_and_a_box():
    _, graph, x, ball = _case("dense", 1, Norm.L2)
    masked = LpBall(
        norm=ball.norm,
        eps=ball.eps,
        lower=ball.lower,
        upper=ball.upper,
        mask=torch.tensor([[True, True, False, False, False]]),
    )
    c = torch.eye(3)
    free, held = (CROWN().bounds(graph, b, x, c).detach() for b in (ball, masked))
    assert (held >= free - 1e-12).all()
    assert (held > free + 1e-3).any()


def test_gradients_reach_the_models_parameters():
    net, graph, x, ball = _case("conv", 0, Norm.LINF)
    c = margin_rows(net(x).argmax(1), 3)
    for method in (IBP(), CROWN()):
        loss = method.bounds(graph, ball, x, c).sum()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
        weight = net[0].weight
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        step = 1e-3
        with torch.no_grad():
            weight += step * direction
            above = method.bounds(graph, ball, x, c).sum()
            weight -= 2 * step * direction
            below = method.bounds(graph, ball, x, c).sum()
            weight += step * direction
        slope = float((above - below) / (2 * step))
        assert float((gradients[0] * direction).sum()) == pytest.approx(slope, rel=0.05, abs=1e-2)


def test_rounding_is_paid_for_and_is_cheap():
    """The float64 value of a linear model may lie above its true value; the bound never does, by next to nothing."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Linear(300, 50)
    x = torch.rand(20, 300, generator=generator)
    graph = trace(net, x[:1]).to(torch.float64)
    from fractions import Fraction

    found = Propagation(graph, Region(LpBall.uniform(Norm.LINF, 0.0, 20), x))
    found.run(refine=lambda _: True)
    bound, plain = specification(found, torch.eye(50)).detach(), net.double()(x.double()).detach()
    weight, bias = net.weight.detach().tolist(), net.bias.detach().tolist()
    exact = [
        sum((Fraction(w) * Fraction(v) for w, v in zip(weight[k], x[0].tolist(), strict=True)), Fraction(bias[k]))
        for k in range(50)
    ]
    assert all(Fraction(float(b)) <= e for b, e in zip(bound[0], exact, strict=True))
    assert any(Fraction(float(b)) > e for b, e in zip(plain[0], exact, strict=True))
    assert (plain - bound).max() < 1e-10


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_certifies_nothing_and_is_refused_by_name(bad):
    net, graph, x, ball = _case("dense", 0, Norm.LINF)
    y = net(x).argmax(1)
    with torch.no_grad():
        net[0].weight[0, 0] = bad
    for method in METHODS:
        with pytest.raises(UnsupportedError, match=r"weight of operation 1 \('linear'\) has NaN or infinite"):
            method.certify(graph, x, y, ball.with_eps(0.0))
    unbounded = LpBall(
        norm=Norm.LINF,
        eps=torch.full((3,), torch.inf, dtype=torch.float64),
        lower=torch.tensor(-torch.inf),
        upper=torch.tensor(torch.inf),
    )
    assert not CROWN().certify(_case("dense", 0, Norm.LINF)[1], x, y, unbounded).any()


def test_operations_without_a_bound_are_refused_by_name():
    graph = Graph((Node(op="input", inputs=(), shape=(3,)), Node(op="quantum_gate", inputs=(0,), shape=(3,))))
    with pytest.raises(UnsupportedError, match="quantum_gate"):
        CROWN().bounds(graph, LpBall.uniform(Norm.LINF, 0.1, 1), torch.zeros(1, 3), torch.eye(3))
