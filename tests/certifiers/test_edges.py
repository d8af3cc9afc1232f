"""Where floats end, where a bound is met with equality, and where nothing leads downhill: verdicts stay true."""

import math
from time import monotonic

import pytest
import torch
from torch import nn

from holdfast.attacks.falsification import falsifier
from holdfast.certifiers.propagation.propagation import Propagation
from holdfast.certifiers.propagation.region import Region
from holdfast.certifiers.verification.query import Query
from holdfast.certifiers.verification.solver import Decision, SearchLimit, Solver
from holdfast.certifiers.verification.verifier import broken, representable, verify
from holdfast.certifiers.verification.vnnlib import parse_vnnlib
from holdfast.core.errors import HoldfastError, UnsupportedError
from holdfast.core.registry import method, names
from holdfast.core.sets import LpBall
from holdfast.core.threat import Norm
from holdfast.graph import Graph, trace
from holdfast.graph.build import Builder

F64 = torch.float64
GRAPHS = [n for n in names("certifier") if isinstance(method(n), type) and hasattr(method(n), "bounds")]
METHODS = [n for n in GRAPHS if hasattr(method(n), "margins")]


def _built(shape, steps) -> Graph:
    """Operations one after another: (name, tensors, attributes)."""
    b, x = Builder(shape, torch.float32), 0
    for op, tensors, attributes in steps:
        x = b.add_node(op, [x], {k: torch.as_tensor(t, dtype=torch.float32) for k, t in tensors.items()}, attributes)
    return b.finish(x)


def _tool(name):
    kind = method(name)
    return kind(seconds=60.0, domains=50) if issubclass(kind, Solver) else kind()


def _said(text: str, inputs: int, outputs: int, ends=(-1.0, 1.0)):
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)] + [
        f"(declare-const Y_{j} Real)" for j in range(outputs)
    ]
    for i in range(inputs):
        lines.append(f"(assert (>= X_{i} {ends[0]}))(assert (<= X_{i} {ends[1]}))")
    return parse_vnnlib("\n".join([*lines, text]))


def _verdict(graph: Graph, text: str, ends=(-1.0, 1.0), name="auto", seconds=8.0):
    said = _said(text, math.prod(graph.input_shape), math.prod(graph.output_shape), ends)
    return verify(
        graph, said.queries(graph), timeout=seconds, falsify=falsifier(graph), method=name,
        believed=lambda x: said.confirm(graph, x) is not None,
    )  # fmt: skip


# what overflows or is not defined


SPOILT = {
    "overflow": [("affine", {"scale": [0.0, 1000.0]}, {}), ("exp", {}, {})],
    "overflow under a tanh": [("affine", {"scale": [1.0, 1000.0]}, {}), ("exp", {}, {}), ("tanh", {}, {})],
    "inf - inf": [("affine", {"scale": 1000.0}, {}), ("exp", {}, {}), ("linear", {"weight": [[1.0, -1.0], [1.0, 1.0]]}, {})],
    "a pole": [("affine", {"shift": -1.5}, {}), ("reciprocal", {}, {})],
    "a pole under a sine": [("affine", {"shift": -1.5}, {}), ("reciprocal", {}, {}), ("sin", {}, {})],
    "a logarithm of negative numbers": [("affine", {"shift": -1.5}, {}), ("log", {}, {}), ("sigmoid", {}, {})],
    "a root of negative numbers": [("affine", {"shift": -1.5}, {}), ("sqrt", {}, {}), ("relu", {}, {})],
    "a power that is not whole": [("affine", {"shift": -1.5}, {}), ("power", {}, {"exponent": 1.5}), ("sign", {}, {})],
    "a huge power": [("affine", {"scale": 1e4}, {}), ("power", {}, {"exponent": 200.0}), ("cos", {}, {})],
    "max of infinities": [
        ("affine", {"scale": 1000.0}, {}), ("exp", {}, {}), ("reshape", {}, {"shape": (1, 2)}),
        ("max_pool", {}, {"kernel": (2,), "stride": (1,), "padding": (0,), "dilation": (1,), "ceil": False}),
        ("reshape", {}, {"shape": (1,)}), ("linear", {"weight": [[1.0], [0.0]]}, {}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("name", METHODS)
def test_what_overflows_or_is_not_defined_is_never_proved(name, spoilt):
    """Neither a property nor its opposite, for inputs in [1, 2]."""
    graph, x = _built((2,), SPOILT[spoilt]), torch.full((1, 2), 1.5, dtype=F64)
    c = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 1.0]])
    tool = _tool(name)
    norm = Norm.LINF if Norm.LINF in tool.card.norms else next(iter(tool.card.norms))
    ball = LpBall.uniform(norm, 0.5, 1, low=1.0, high=2.0)
    try:
        lower = tool.bounds(graph, ball, x, c, torch.full((3,), 1e30))
    except UnsupportedError:
        return
    assert not (lower > 0).any()


@pytest.mark.parametrize("name", ["auto", "ibp", "crown", "forward", "neuron_splitting", "input_splitting", "milp"])
def test_a_finite_value_beside_one_that_overflows_decides_nothing_wrongly(name):
    b = Builder((2,), torch.float32)
    one, other = (b.add_node("select", [0], {"index": torch.tensor([i])}, {"dim": 0}) for i in (0, 1))
    other = b.add_node("exp", [b.add_node("affine", [other], {"scale": torch.tensor([1000.0])})])
    graph = b.finish(b.add_node("concat", [one, other], attributes={"dim": 0}))
    for unsafe in ("(assert (<= Y_0 1.5))", "(assert (>= Y_0 1.5))"):
        assert _verdict(graph, unsafe, (1.0, 2.0), name, 0.4).decision is not Decision.HOLDS


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2, Norm.L1])
@pytest.mark.parametrize("name", ["neuron_splitting", "input_splitting", "milp", "crown"])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.1), nn.Sigmoid()])
def test_a_layer_in_which_nothing_is_live_is_no_crash(act, name, norm):
    if norm not in method(name).card.norms:
        return
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 2)).eval()
    for p in net.parameters():
        p.data.normal_()
    net[0].bias.data.fill_(-100.0)
    x = torch.rand(1, 3)
    y = 1 - net(x).argmax(1)  # the other class: nothing to prove
    tool = _tool(name)
    found = tool.margins(trace(net, x), x, y, LpBall.uniform(norm, 0.1, 1))
    assert not (found > 0).any()


def test_a_set_of_one_point_is_no_crash_for_methods_of_few_variables():
    graph, x = _built((2,), [("relu", {}, {}), ("linear", {"weight": [[1.0, -1.0]]}, {})]), torch.ones(1, 2, dtype=F64)
    for name in ("milp", "sdp_first_order", "input_splitting", "neuron_splitting"):
        low = _tool(name).bounds(graph, LpBall.uniform(Norm.LINF, 0.0, 1), x, torch.ones(1, 1), torch.ones(1))
        assert float(low) == pytest.approx(1.0)


# shapes without a dimension


@pytest.mark.parametrize("name", METHODS)
def test_a_network_with_one_number_as_output_is_bounded(name):
    steps = [("relu", {}, {}), ("linear", {"weight": [[1.0, -1.0]]}, {}), ("reshape", {}, {"shape": ()})]
    graph, x = _built((2,), steps), torch.zeros(1, 2, dtype=F64)
    tool = _tool(name)
    if Norm.LINF not in tool.card.norms:
        return
    low = tool.bounds(graph, LpBall.uniform(Norm.LINF, 1.0, 1, low=-1.0), x, torch.ones(1, 1), torch.full((1,), 9.0))
    assert 0 < float(low) <= 8.0 + 1e-9
    assert _verdict(graph, "(assert (>= Y_0 100.0))", name=name).decision is Decision.HOLDS
    assert _verdict(graph, "(assert (>= Y_0 0.5))", name=name).decision is Decision.BROKEN


# where nothing leads downhill


def test_a_network_of_a_table_is_decided_though_nothing_leads_downhill():
    b = Builder((2,), torch.float32)
    rows = b.add_node("embedding", [0], {"weight": torch.arange(18.0).view(6, 3) / 18})
    mean = b.add_node("mean", [rows], attributes={"dims": (0,)})
    graph = b.finish(b.add_node("reshape", [mean], attributes={"shape": (3,)}))
    assert _verdict(graph, "(assert (>= Y_0 100.0))", (0.0, 5.0)).decision is Decision.HOLDS
    assert _verdict(graph, "(assert (>= Y_0 0.8))", (0.0, 5.0)).decision is Decision.BROKEN
    for name in ("input_splitting", "crown"):
        assert _verdict(graph, "(assert (>= Y_0 100.0))", (0.0, 5.0), name).decision is Decision.HOLDS


# strict bounds and rows


@pytest.mark.parametrize("strict", ["(> X_1 0.0)", "(< X_1 1.0)", "(> X_0 0.25)"])
def test_a_strict_bound_of_an_input_keeps_witnesses_inside(strict):
    graph = _built((2,), [("linear", {"weight": torch.eye(2)}, {})])
    text = f"(assert {strict})(assert (<= Y_1 0.5))"
    answer = _verdict(graph, text, (0.0, 1.0))
    assert answer.decision is Decision.BROKEN
    assert _said(text, 2, 2, (0.0, 1.0)).confirm(graph, answer.witness) is not None


def test_witnesses_of_an_open_box_are_numbers_of_the_models_type_inside():
    edges = (torch.tensor([True]), torch.tensor([True]))
    query = Query.of_box(torch.zeros(1), torch.ones(1), torch.eye(1), -torch.ones(1), outside=edges)
    for x in (0.0, 1.0, 5.0):
        near = representable(query, torch.tensor([[x]]), torch.float32)
        assert 0 < near.item() < 1
        assert near.float().double().equal(near)
    assert not broken(_built((1,), [("relu", {}, {})]), query, torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("steps", "unsafe"),
    [
        ([("relu", {}, {})], "(assert (< Y_0 0.0))"),
        ([("sigmoid", {}, {})], "(assert (or (< Y_0 0.0) (> Y_0 1.0)))"),
        ([("tanh", {}, {})], "(assert (or (< Y_0 -1.0) (> Y_1 1.0)))"),
        ([("abs", {}, {})], "(assert (< Y_0 0.0))"),
        ([("power", {}, {"exponent": 2.0})], "(assert (> 0.0 Y_1))"),
        ([("softmax", {}, {"dim": 0})], "(assert (or (< Y_0 0.0) (> Y_1 1.0)))"),
        ([("sin", {}, {})], "(assert (> Y_0 1.0))"),
        ([("relu", {}, {})], "(assert (< (+ Y_0 Y_1) 0.0))"),
    ],
)
@pytest.mark.parametrize("name", ["auto", "crown"])
def test_a_strict_row_that_is_met_with_equality_at_most_holds(steps, unsafe, name):
    answer = _verdict(_built((2,), steps), unsafe, (-50.0, 50.0), name)
    assert answer.decision is Decision.HOLDS, answer


def test_a_row_that_is_not_strict_is_broken_by_equality_or_open():
    graph = _built((2,), [("relu", {}, {})])
    assert _verdict(graph, "(assert (<= Y_0 0.0))").decision is Decision.BROKEN
    assert _verdict(graph, "(assert (< Y_0 1e-9))").decision is Decision.BROKEN
    # one group at the edge is done with, the other is decided
    text = "(assert (or (< Y_0 0.0) (>= Y_1 {})))"
    assert _verdict(graph, text.format(1.5)).decision is Decision.HOLDS
    assert _verdict(graph, text.format(0.5)).decision is Decision.BROKEN


TOUCHING = {
    "one product": ([("linear", {"weight": [[1.0]]}, {})], (0.0, 1.0)),
    "two products": ([("linear", {"weight": [[0.3]]}, {}), ("relu", {}, {}), ("linear", {"weight": [[3.0]]}, {})], (0.0, 1.0)),
    "what cancels": (
        [("linear", {"weight": [[0.1], [0.1]]}, {}), ("relu", {}, {}), ("linear", {"weight": [[1.0, -1.0]]}, {})],
        (0.0, 1.0),
    ),
    "a magnitude": (
        [("linear", {"weight": [[1.0]], "bias": [-0.5]}, {}), ("abs", {}, {}), ("linear", {"weight": [[0.7]]}, {})],
        (0.0, 1.0),
    ),
    "a ReLU that bends": (
        [("linear", {"weight": [[1.0], [1.0]], "bias": [0.0, -0.3]}, {}), ("relu", {}, {}), ("linear", {"weight": [[1, 2]]}, {})],
        (-1.0, 1.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TOUCHING))
def test_a_piecewise_linear_network_whose_least_output_is_the_edge_is_decided_exactly(name):
    steps, ends = TOUCHING[name]
    graph = _built((1,), steps)
    found = _verdict(graph, "(assert (< Y_0 0.0))", ends, seconds=20.0)
    assert found.decision is Decision.HOLDS, found
    assert "exact" in found.arithmetic
    below = _verdict(graph, "(assert (< Y_0 1e-6))", ends, seconds=20.0)
    assert below.decision is Decision.BROKEN, below  # a hair beyond the edge there are witnesses
    assert _verdict(graph, "(assert (<= Y_0 -0.01))", ends, seconds=20.0).decision is Decision.HOLDS


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("(assert (> X_0 0.0))(assert (<= Y_0 0.0))", [("relu", {}, {})]),
        (
            "(assert (< Y_0 0.0))",  # relu(x) - relu(x - 1) - relu(x) / 2 touches 0 beyond what intervals see
            [
                ("linear", {"weight": [[1.0], [2.0]], "bias": [0.0, -1.0]}, {}),
                ("relu", {}, {}),
                ("linear", {"weight": [[1.0, -1.0]]}, {}),
            ],
        ),
    ],
)
def test_what_no_bound_can_tell_from_equality_is_unknown_at_once(text, steps):
    begun = monotonic()
    found = _verdict(_built((1,), steps), text, (0.0, 1.0), seconds=30.0)
    assert found.decision is Decision.UNKNOWN, found
    assert "equality" in found.reason
    assert monotonic() - begun < 10


def test_an_edge_that_is_touched_hides_no_witness_beyond():
    """0 on half of the box, and less than 0 in a corner of it."""
    steps = [
        ("linear", {"weight": [[1.0, 1.0]], "bias": [-1.9]}, {}), ("relu", {}, {}), ("linear", {"weight": [[-1.0]]}, {}),
    ]  # fmt: skip
    assert _verdict(_built((2,), steps), "(assert (< Y_0 0.0))", (-1.0, 1.0)).decision is Decision.BROKEN


# roots of what is not negative


@pytest.mark.parametrize("exponent", [2.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_norm_around_zero_is_bounded(exponent, seed):
    """Sums of even powers, roots of them, in any order of pieces: never a root of a rounding below 0."""
    torch.manual_seed(seed)
    b = Builder((5,), torch.float32)
    power = b.add_node("power", [0], attributes={"exponent": exponent})
    weight = torch.rand(2, 5)
    sums = [b.add_node("linear", [power], {"weight": weight}), b.add_node("mean", [power], attributes={"dims": (0,)})]
    sums.append(b.add_node("add", [power, power]))
    sums.append(b.add_node("mul", [b.add_node("relu", [0]), power]))
    for total in sums:
        b.nodes = b.nodes[: sums[-1] + 1]
        graph = b.finish(b.add_node("sqrt", [total]))
        found = Propagation(graph.to(F64), Region(LpBall.uniform(Norm.LINF, 1.0, 1, low=-1.0), torch.zeros(1, 5)))
        found.run(refine=lambda _: True)
        low, high = found.boxes[-1]
        assert (low >= 0).all()
        assert (high <= float(weight.sum(1).max()) ** 0.5 + 1.5).all()


def test_the_length_of_a_vector_around_zero_is_decided():
    b = Builder((3,), torch.float32)
    square = b.add_node("power", [0], attributes={"exponent": 2.0})
    total = b.add_node(
        "affine", [b.add_node("mean", [square], attributes={"dims": (0,)})], {"scale": torch.tensor([3.0])}
    )
    graph = b.finish(b.add_node("sqrt", [total]))
    assert _verdict(graph, "(assert (>= Y_0 2.5))").decision is Decision.HOLDS
    assert _verdict(graph, "(assert (>= Y_0 1.7))").decision is Decision.BROKEN


# constants


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_constants_that_are_no_numbers_are_refused_by_name(bad):
    graph = _built((2,), [("linear", {"weight": [[bad, 1.0], [1.0, 1.0]]}, {})])
    with pytest.raises(HoldfastError, match=r"weight of operation 1 \('linear'\) has NaN or infinite entries.*repair"):
        _verdict(graph, "(assert (<= Y_1 1.5))", (0.5, 1.0))


@pytest.mark.parametrize("alpha", [-3.0, -1.5, 1.6732, 3.0])
@pytest.mark.parametrize("name", ["auto", "input_splitting", "crown"])
def test_an_elu_with_any_alpha_is_never_proved_wrongly(alpha, name):
    """At 0 it is 0, whatever alpha is."""
    graph = _built((2,), [("elu", {}, {"alpha": alpha})])
    assert (
        _verdict(graph, "(assert (<= Y_0 0.001))(assert (>= Y_0 -0.001))", (-2.0, 2.0), name, 2.0).decision
        is not Decision.HOLDS
    )


def test_solvers_never_call_an_overflow_proved_on_their_own():
    b = Builder((2,), torch.float32)
    graph = b.finish(b.add_node("add", [b.add_node("exp", [0]), 0]))
    query = Query.of_box(
        torch.full((2,), 0.1), torch.full((2,), 1140.0), torch.tensor([[-1.0, 0.0]]), torch.tensor([400.0])
    )
    for name in ("input_splitting", "neuron_splitting", "milp"):
        try:
            answer = method(name)().solve(graph, query, SearchLimit.seconds(2.0))
        except UnsupportedError:
            continue
        assert answer.decision is not Decision.HOLDS
