"""What is declared of each function of one value (where it bends, turns, ends) is true over its whole parameter range."""

import math
from itertools import pairwise

import pytest
import torch

from holdfast.certifiers.bounds.crown import CROWN
from holdfast.certifiers.bounds.ibp import IBP
from holdfast.certifiers.propagation.operations.activations import Activation, PiecewiseLinear
from holdfast.certifiers.propagation.operations.curves import Wave
from holdfast.certifiers.propagation.operations.smooth import Curve
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Box, Region, gamma
from holdfast.certifiers.propagation.table import TABLE, entry
from holdfast.core.errors import UnsupportedError
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import Graph, Node
from holdfast.graph.operations import compute

F64 = torch.float64
RANGES = {
    "elu": ("alpha", (-1e6, -3.0, -1.0, -1e-3, -0.0, 0.0, 0.4, 1.0, 1.0000001, 1.6732632423543772, 3.0, 1e6)),
    "leaky_relu": ("slope", (0.0, 1e-9, 0.01, 0.5, 0.999, 1.0)),
    "power": (
        "exponent",
        (
            *(-7.0, -4.0, -3.0, -2.5, -2.0, -1.0, -0.5, -1e-3, 0.0, 1e-3, 0.25, 0.5, 0.99),
            *(1.0, 1.01, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 12.0),
        ),
    ),
    "gelu": ("approximate", ("none", "tanh")),
}
ONE = sorted(k for k, op in TABLE.items() if op.elementwise and not op.linear)
NODES = [
    Node(op=op, inputs=(0,), shape=(1,), attributes={RANGES[op][0]: v} if op in RANGES else {})
    for op in ONE
    for v in (RANGES[op][1] if op in RANGES else (None,))
]


def drawn(count=12):
    """More nodes, with parameters drawn at random."""
    g = torch.Generator().manual_seed(0)
    draws = {"elu": (-5, 5), "leaky_relu": (0, 1), "power": (-5, 8)}
    for op, (low, high) in draws.items():
        for share in torch.rand(count, generator=g).tolist():
            yield Node(op=op, inputs=(0,), shape=(1,), attributes={RANGES[op][0]: low + share * (high - low)})


ALL = [*NODES, *drawn()]
JUMPS = [
    Node(op="softplus", inputs=(0,), shape=(1,), attributes={"threshold": t})
    for t in (-30.0, -1.0, 0.0, 0.1, 1.0, 5.0, 20.0, 100.0)
]


def _name(node):
    return "-".join([node.op, *(str(v)[:7] for v in node.attributes.values())])


named = pytest.mark.parametrize("node", ALL, ids=_name)


def f(node, z):
    return compute(node.op, [z], {}, node.attributes)


def domain(node, z):
    """The points at which the function is defined."""
    own = entry(node)
    if not isinstance(own, Curve):
        return z
    known = own.defined(node, Box(z, z))
    return z if known is None else z[known]


def declared(node):
    """Bends, with whether it is convex below the first, and turns."""
    own = entry(node)
    if isinstance(own, Curve):
        return *own.bends(node), own.turns(node)
    return (True, (), (0.0,) if node.op == "abs" else ()) if isinstance(own, PiecewiseLinear) else (True, (0.0,), ())


def grid(node):
    size = torch.logspace(-6, 2 if node.op in ("exp", "power") else 4, 300, dtype=F64)
    return domain(node, torch.cat([-size.flip(0), torch.linspace(-9, 9, 2001, dtype=F64), size]).unique())


def stretches(node, ends):
    """Points of each stretch between declared ends, and its lower end; a pole at 0 is an end of its own."""
    pole = float(node.attributes.get("exponent", -1.0 if node.op == "reciprocal" else 1.0)) < 0
    z = grid(node)
    for low, high in pairwise(sorted({-math.inf, *ends, *((0.0,) if pole else ()), math.inf})):
        yield z[(z >= low) & (z <= high) & ~((z == 0) & pole)], low


@named
def test_a_function_is_convex_and_concave_where_it_is_declared_to_be(node):
    if isinstance(entry(node), Wave) or node.op == "sign":
        return
    convex, bends, _ = declared(node)
    for part, low in stretches(node, bends):
        left, middle, right = part[:-2], part[1:-1], part[2:]
        share = (middle - left) / (right - left)
        chord = (1 - share) * f(node, left) + share * f(node, right)
        gap = chord - f(node, middle)  # at least 0 where the function is convex
        room = 1e-12 * (f(node, left).abs() + f(node, right).abs() + f(node, middle).abs()) + 1e-15 * (1 + right.abs())
        passed = sum(b <= low for b in bends)
        assert ((gap if convex == (passed % 2 == 0) else -gap) >= -room).all(), (node.attributes, low)


@named
def test_a_function_turns_only_where_it_is_declared_to(node):
    if isinstance(entry(node), Wave):
        return
    for part, low in stretches(node, declared(node)[2]):
        value = f(node, part)
        steps, room = value.diff(), 1e-12 * value.abs() + 1e-15 * (1 + part.abs())
        assert (steps >= -room[1:]).all() or (steps <= room[1:]).all(), (node.attributes, low)


@pytest.mark.parametrize("node", [*ALL, *JUMPS], ids=_name)
def test_values_lie_in_the_declared_range(node):
    least, most = entry(node).range(node)
    value = f(node, grid(node))
    assert ((value >= least) & (value <= most)).all()


def intervals(node):
    """(n,) lower and upper ends: all sizes and places, at bends, points, and beyond what floats can square."""
    g = torch.Generator().manual_seed(1)
    sizes = (0.0, 1e-15, 1e-8, 1e-3, 0.3, 1.0, 4.0, 30.0, 1e3, 1e6, 1e12)
    places = [0.0, *declared(node)[1], *declared(node)[2], node.attributes.get("threshold", 0.0)]
    places += [*(torch.randn(12, generator=g) * 4).tolist(), 1e3, -1e3, 1e9]
    shares = (0.0, 0.01, 0.5, 0.99, 1.0)
    ends = torch.tensor([(p - s * t, p - s * t + s) for p in places for s in sizes for t in shares], dtype=F64)
    return ends[:, 0], ends[:, 1]


@pytest.mark.parametrize("node", [*ALL, *JUMPS], ids=_name)
@pytest.mark.parametrize("position", [None, 0.0, 0.37, 1.0])
def test_both_lines_and_the_box_hold_on_intervals_of_every_size(node, position):
    own = entry(node)
    low, high = (t[None, :] for t in intervals(node))
    node = Node(op=node.op, inputs=(0,), shape=tuple(low.shape[1:]), attributes=node.attributes)
    box, chosen = Box(low, high), None
    if position is not None:
        if isinstance(own, PiecewiseLinear) and node.op == "leaky_relu":
            position = max(position, node.attributes["slope"])  # it is the slope itself
        free = own.alpha(own.prepare(node, [box]))
        chosen = torch.full_like(free, position)[None]
    lines = own.prepare(node, [box], chosen)
    found = Box(*own.interval(node, [box])).known
    slack = gamma(18) * own.size(node, [box], found)
    share = torch.linspace(0, 1, 41, dtype=F64)[:, None, None]
    z = torch.minimum(low + share * (high - low), high)
    if "threshold" in node.attributes:  # on both sides of the jump
        at = torch.tensor([node.attributes["threshold"]] * 2, dtype=F64)
        at[1] = at[1].nextafter(torch.tensor(math.inf, dtype=F64))
        z = torch.cat([z, torch.minimum(torch.maximum(at[:, None, None], low), high)])
    value = f(node, z)
    lower = lines.lower_slope * z + (0.0 if lines.lower_intercept is None else lines.lower_intercept)
    upper = lines.upper_slope * z + lines.upper_intercept
    if position is not None:
        lower, upper = (t.reshape(z.shape) for t in (lower, upper))
    known = value.isfinite() & slack.isfinite()
    for name, ok in (
        ("lower line", ~(lower - slack > value)),
        ("upper line", ~(upper + slack < value)),
        ("box", (found.lower - slack <= value) & (value <= found.upper + slack)),
    ):
        bad = known & ~ok
        where = bad.flatten(1).any(0).nonzero().flatten()
        assert not bad.any(), (name, node.attributes, low[0, where[:3]].tolist(), high[0, where[:3]].tolist())
    # where the function is not a number somewhere on the interval, nothing may be concluded
    undefined = value.isnan().any(0)
    assert not (found.lower.isfinite() | found.upper.isfinite())[undefined].any()


def test_most_intervals_have_finite_lines():
    """The tests above would pass with lines that say nothing."""
    for node in NODES:
        box = Box(torch.full((1, 1), 0.5, dtype=F64), torch.full((1, 1), 2.0, dtype=F64))
        lines = entry(node).prepare(node, [box])
        assert lines.upper_intercept.isfinite().all(), node


@pytest.mark.parametrize(
    ("op", "attributes", "words"),
    [
        ("elu", {"alpha": math.nan}, "alpha nan"),
        ("elu", {"alpha": math.inf}, "all finite ones"),
        ("power", {"exponent": math.nan}, "exponent nan"),
        ("power", {"exponent": -math.inf}, "exponent -inf"),
        ("leaky_relu", {"slope": math.inf}, "slope inf"),
        ("leaky_relu", {"slope": math.nan}, "slope nan"),
        ("softplus", {"threshold": math.nan}, "threshold nan"),
        ("gelu", {"approximate": "sigmoid"}, "approximate='sigmoid'"),
    ],
)
@pytest.mark.parametrize("certifier", [IBP(), CROWN()])
def test_a_parameter_outside_of_what_is_declared_is_refused_by_name(op, attributes, words, certifier):
    graph = Graph(
        (Node(op="input", inputs=(), shape=(2,)), Node(op=op, inputs=(0,), shape=(2,), attributes=attributes)), F64
    )
    with pytest.raises(UnsupportedError, match=words):
        certifier.bounds(graph, LpBall.uniform(Norm.LINF, 0.1, 1), torch.zeros(1, 2), torch.eye(2))


@pytest.mark.parametrize("slope", [-3.0, -1.0, -0.2, 1.5, 4.0])
def test_a_leaky_relu_with_any_slope_is_bounded_in_real_numbers_and_refused_by_name_as_it_runs(slope):
    graph = Graph(
        (
            Node(op="input", inputs=(), shape=(1,)),
            Node(op="leaky_relu", inputs=(0,), shape=(1,), attributes={"slope": slope}),
        ),
        F64,
    )
    ball, x = LpBall.uniform(Norm.LINF, 1.0, 1, low=-2.0, high=2.0), torch.zeros(1, 1, dtype=F64)
    least = min(0.0, slope * -1.0)
    for certifier in (IBP(), CROWN()):
        low = float(certifier.bounds(graph, ball, x, torch.eye(1)))
        assert low <= least + 1e-12
    assert float(CROWN().bounds(graph, ball, x, torch.eye(1))) >= -1 - abs(slope)
    deployed = Graph(graph.nodes, torch.float64, torch.float32)
    with pytest.raises(UnsupportedError, match=r"'leaky_relu' with slope .* in \[0, 1\]"):
        Propagation(deployed, Region(ball, x))


def test_every_operation_of_the_vocabulary_has_its_shapes_tested_here_or_is_linear_or_of_several_values():
    several = {"max_pool", "mul", "matmul", "embedding"}
    assert {k for k, op in TABLE.items() if not op.linear} == {*ONE, *several} - {"relu"} | {"relu"}
    assert all(isinstance(TABLE[k], Activation | Curve) or k == "sign" for k in ONE)
